"""Variables of a chat template reach all that renders by it: supervised rows as well as prompts."""

import json

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.supervised import RunCount, calls_of
from pdr_graph.train.trajectory import append_trajectories
from pdr_graph.train.warm_start import WarmStartTrainer, fitting
from tests.policy.tiny_model import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from tests.train.test_trajectory import make_call, make_trajectory

QUIET = "{% if quiet %}quiet {% endif %}" + CHAT_TEMPLATE
ROW = {
    "prompt": [{"role": "user", "content": "1+1="}],
    "completion": [{"role": "assistant", "content": "two"}],
}


def quiet_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QUIET
    return tokenizer


@pytest.mark.filterwarnings("ignore")  # of the libraries below
def test_a_warm_start_reads_the_prompt_that_rollouts_ask(tmp_path):
    """And learns the reply alone; with what the variables add a row is longer."""
    tokenizer, variables = quiet_tokenizer(), {"quiet": True}
    rows = fitting([ROW] * 2, tokenizer, 100, variables)
    assert fitting([ROW], tokenizer, 10).too_long == 0
    with pytest.raises(ConfigError, match="more than 10 tokens"):
        fitting([ROW], tokenizer, 10, variables)
    settings = TrainSettings(
        model="none",
        warm_start={"data": "none", "batch_rows": 2, "micro_batch_rows": 2},
        optimiser={"gradient_checkpointing": False},
        policy={"chat_template": variables},
    )
    trainer = WarmStartTrainer(tiny_model(), tokenizer, rows, settings, tmp_path)
    (batch,) = trainer.get_train_dataloader()
    for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(inputs[labels == -100]) == "quiet <user>1+1=<assistant>"
        assert tokenizer.decode(labels[labels != -100]) == "two<end>"


def test_trajectories_of_such_a_run_are_read_back(tmp_path):
    """Its header holds the variables; the message is what the user said."""
    model, run = tmp_path / "model", tmp_path / "run"
    tokenizer = quiet_tokenizer()
    tokenizer.save_pretrained(model)
    run.mkdir()
    settings = {"policy": {"chat_template": {"quiet": True}}}
    (run / "train.json").write_text(json.dumps({"schema": 1, "settings": settings}))
    prompt = tokenizer.apply_chat_template(
        ROW["prompt"], tokenize=False, add_generation_prompt=True, quiet=True
    )
    call = make_call(role="direct", prompt_ids=tuple(tokenizer.encode(prompt)), reward=1.0)
    append_trajectories(run / "trajectories.jsonl", [make_trajectory(calls=(call,))])
    (said,) = calls_of(run, RunCount(), thoughts=False, model=model)
    assert said.prompt == "1+1="

"""The warm start learns what replies say, from rows as `pdr-graph train-data` writes them."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.supervised import RunCount, calls_of
from pdr_graph.train.trajectory import append_trajectories
from pdr_graph.train.warm_start import Rows, WarmStartTrainer, fitting, read_conversations
from tests.policy.tiny_model import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from tests.train.test_trajectory import make_call, make_trajectory


def written(file: Path, *rows: object) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(prompt: str, reply: str, **more: object) -> dict[str, object]:
    """Return one conversation."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": reply}],
        **more,
    }


def test_other_fields_are_left_aside(tmp_path):
    """What the row came from is for people."""
    file = written(tmp_path / "a.jsonl", row("1+1", "2", call="draft", problem_id="q"))
    assert read_conversations(file) == [row("1+1", "2")]


def test_what_is_no_conversation_is_named(tmp_path):
    """By file and line."""
    good = row("1+1", "2")
    for bad, sentence in {
        "[]": "line 2 is not a JSON object",
        "{": "line 2 is not JSON (",
        '{"prompt": "text", "completion": "text"}': "line 2: 'prompt' is no list of messages",
        json.dumps({**good, "completion": []}): "line 2: 'completion' is no list of messages",
    }.items():
        file = written(tmp_path / "b.jsonl", good)
        with file.open("a") as out:
            out.write(bad + "\n")
        with pytest.raises(ConfigError) as raised:
            read_conversations(file)
        assert sentence in str(raised.value)
    with pytest.raises(ConfigError, match="holds no rows"):
        read_conversations(written(tmp_path / "c.jsonl"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_conversations(tmp_path / "d.jsonl")


def test_rows_that_do_not_fit_are_counted():
    """With the tokens that the template adds; if none is left, the sentence says what to raise."""
    tokenizer = tiny_tokenizer()
    rows = [row("1+1", "2"), row("1+1", "2" * 30)]
    # A user's mark, three characters, the assistant's mark, one character, and the end.
    assert fitting(rows, tokenizer, 7).too_long == 1
    assert fitting(rows, tokenizer, 36).too_long == 0
    with pytest.raises(ConfigError, match=r"every one of 2 warm-start rows has more than 6 tokens"):
        fitting(rows, tokenizer, 6)


REPLIES = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<assistant>' }}{{ TEXT }}"
)
CUT = "(m['content'].split('</think>') | last)"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            # As DeepSeek-R1's distilled models have it.
            "{{ '<assistant><think>' if add_generation_prompt else '' }}",
            r"prompt of warm-start row 2 in another way when its reply follows \(2 of 3 rows\): "
            r"the model is asked by '<user>2\+2<assistant><think>' and would",
        ),
        (
            "{{ '<assistant>' if add_generation_prompt else '' }}",
            r"leaves out a part of the reply of warm-start row 2 \(2 of 3 rows\), which would not "
            r"be learnt; make data without thoughts \(`pdr-graph train-data --no-thoughts`\)",
        ),
    ],
    ids=["begins a thought", "leaves thoughts out"],
)
def test_a_template_that_rewrites_replies_is_refused(template, sentence):
    """Less would be learnt than was said; the sentence names a row, how many, and what helps."""
    thought = "<think>one more</think>"
    rows = [
        row("1+1", "<think>two"),
        row("2+2", f"{thought} four"),
        row("3+3", f"{thought} six"),
    ]
    tokenizer = tiny_tokenizer()
    assert fitting(rows, tokenizer, 100).too_long == 0
    tokenizer.chat_template = REPLIES.replace("TEXT", CUT) + "{% endfor %}" + template
    with pytest.raises(ConfigError, match=sentence):
        fitting(rows, tokenizer, 100)


def test_blanks_that_a_template_adds_are_no_rewriting():
    """Nor those that it takes away around what was said."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        REPLIES.replace("TEXT", "m['content'].strip() + ' '")
        + "{% endfor %}{{ '<assistant>' if add_generation_prompt else '' }}"
    )
    assert fitting([row("1+1", "\n two\n")], tokenizer, 100).too_long == 0


@pytest.mark.filterwarnings("ignore")  # of the libraries below
def test_only_the_reply_is_learnt(tmp_path):
    """The labels of a batch are the reply and the token that ends it; the prompt has none."""
    tokenizer = tiny_tokenizer()
    warm = {"data": "none", "epochs": 2.0, "batch_rows": 2, "micro_batch_rows": 2}
    settings = TrainSettings(
        model="none", warm_start=warm, optimiser={"gradient_checkpointing": False}
    )
    rows = Rows([row("1+1=", "two"), row("2+2=", "four"), row("3+3=", "six")], 0)
    heard: list[int] = []
    trainer = WarmStartTrainer(
        tiny_model(),
        tokenizer,
        rows,
        settings,
        tmp_path,
        on_update=lambda update, figures: heard.append(update),
    )
    labels = [
        tokenizer.decode([each for each in labels.tolist() if each != -100])
        for batch in trainer.get_train_dataloader()
        for labels in batch["labels"]
    ]
    assert sorted(labels) == ["four<end>", "six<end>", "two<end>"]
    assert trainer.num_updates == 4
    assert trainer.go_on() == 4
    assert heard == [1, 2, 3, 4]


# ------------------------------------------------------------------------------ template variables

QUIET = "{% if quiet %}quiet {% endif %}" + CHAT_TEMPLATE
ROW = row("1+1=", "two")


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

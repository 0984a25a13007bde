"""Model folders that are run in this process, and what is wrong with those that are not."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.policy.folder import open_folder, tokenizer_of
from pdr_graph.settings import load_settings
from pdr_graph.train.models import open_tokenizer
from pdr_graph.train.supervised import ChatText
from tests.policy.forward_pass import scored
from tests.policy.tiny_model import tiny_model, tiny_tokenizer, write_tiny_model

SAMPLING = Sampling(max_tokens=12, temperature=1.0, top_p=1.0, seed=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def write_adapter(folder: Path, base: str) -> object:
    """Write an adapter over a base, and return the model that has it."""
    peft = pytest.importorskip("peft", reason="needs peft, of the extra train: make test-train")
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    return model


async def test_a_folder_named_as_the_model_is_run_here(whole, tmp_path):
    """Announced as what it is; window and counts are the model's own, and a call works."""
    said: list[str] = []
    settings = load_settings(model=str(whole), data_dir=tmp_path)
    async with open_client(settings, announce=said.append) as client:
        reply = await client.ask("6 x 7?", SAMPLING, Spent())
        assert (client.name, client.window) == (str(whole), 1024)
        assert await client.counter.count("four") == 4
    assert reply.usage.completion == len(reply.sampled.token_ids) > 0
    assert not reply.usage.estimated
    (sentence,) = said
    assert "(314,496 parameters) runs in this process, on cpu" in sentence
    assert "small models and studies" in sentence


def test_its_tokenizer_is_the_one_that_was_written(tmp_path):
    """Also of a Qwen2, of which the library makes a tokenizer of its own."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    text = "a \\boxed{1}\n b"
    opened = open_folder(tmp_path)
    assert opened.tokenizer.encode(text) == tiny_tokenizer().encode(text)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_run_over_its_base(whole, tmp_path):
    """The base is found by the folder that the adapter names."""
    expected = write_adapter(tmp_path / "mine", str(whole))
    opened = open_folder(tmp_path / "mine")
    ids = opened.tokenizer.encode("6 x 7? 42")
    with_it = scored(opened.policy.model, ids[:5], ids[5:], 1.0)
    assert with_it == pytest.approx(scored(expected, ids[:5], ids[5:], 1.0), abs=1e-4)
    assert with_it != pytest.approx(
        scored(open_folder(whole).policy.model, ids[:5], ids[5:], 1.0), abs=0.01
    )
    assert opened.name == "mine"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_whose_base_is_not_here_names_it(whole, tmp_path):
    """Nothing is downloaded."""
    write_adapter(tmp_path, str(whole))
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "base_model_name_or_path": "org/large"}))
    with pytest.raises(ConfigError, match="for the model 'org/large', which is no folder here"):
        open_folder(tmp_path)


def no_folder(folder: Path) -> None:
    folder.rmdir()


def empty(folder: Path) -> None:
    pass


def no_weights(folder: Path) -> None:
    write_tiny_model(folder)
    (folder / "model.safetensors").unlink()


def torn_weights(folder: Path) -> None:
    write_tiny_model(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def other_weights(folder: Path) -> None:
    write_tiny_model(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 4}))


def wider_config(folder: Path) -> None:
    write_tiny_model(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 300}))


def torn_config(folder: Path) -> None:
    write_tiny_model(folder)
    (folder / "config.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    write_tiny_model(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def nameless_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_folder, "does not exist"),
        (empty, "holds no model: it has neither config.json nor adapter_config.json"),
        (no_weights, "the model in .* cannot be read"),
        (torn_weights, "the model in .* cannot be read"),
        (other_weights, "are not those of its config.json: .*layers.3.* missing"),
        (wider_config, "cannot be read|missing or of another shape"),
        (torn_config, "cannot be read"),
        (no_tokenizer, "the tokenizer in .* cannot be read"),
        (nameless_adapter, "does not name the adapter's base"),
    ],
)
def test_a_broken_folder_is_one_sentence(tmp_path, damage, sentence):
    """It names the folder and what is missing, and no weights are made up."""
    folder = tmp_path / "model"
    folder.mkdir()
    damage(folder)
    with pytest.raises(ConfigError, match=sentence) as caught:
        open_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# ------------------------------------------------------------------------------ the tokenizer

TEXT = "a b  12\n"


@pytest.fixture
def qwen(tmp_path):
    """A Qwen2 whose tokenizer is none of Qwen2's."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_tokenizer_of_a_folder_is_the_one_that_it_holds(qwen):
    """Whatever kind of model stands beside it, and with the blanks that it knows."""
    tokenizer, own = tokenizer_of(qwen), tiny_tokenizer()
    assert tokenizer.encode(TEXT, add_special_tokens=False) == own.encode(TEXT)
    assert tokenizer.chat_template == own.chat_template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (own.eos_token_id, own.pad_token_id)


def test_what_trains_draws_and_reads_back_has_one_tokenizer(qwen):
    """Else prompts would be trained on that no evaluation asks."""
    tokens = tiny_tokenizer().encode(TEXT)
    opened = open_tokenizer(qwen), open_folder(qwen).tokenizer, ChatText.of_folder(qwen)
    assert [each.encode(TEXT, add_special_tokens=False) for each in opened[:2]] == [tokens] * 2
    assert opened[2].reply(tuple(tokens)) == TEXT

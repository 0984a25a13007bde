"""Hidden states that are read in this process, for a judge."""

import asyncio
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from transformers import AutoModelForCausalLM

from pdr_graph.errors import ConfigError
from pdr_graph.judge import UnweighedError
from pdr_graph.judge.hidden import judged_turns, unit_length
from pdr_graph.llm.usage import Spent
from pdr_graph.policy.folder import tokenizer_of
from pdr_graph.policy.hidden_states import TransformersStates, write_first_layers
from pdr_graph.servers.data_dir import default_data_dir
from pdr_graph.servers.weights import find_weights
from tests.policy.tiny_model import write_tiny_model

SOLUTIONS = ("The answer is 4.", "It is 22, since 2 + 2 = 22.", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of three layers."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def read_plainly(folder: Path, turns: object, layer: int | None) -> list[float]:
    """Read a conversation whole and alone, by the library's own output."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tokenizer_of(folder)
    messages = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    return states[-1 if layer is None else layer][0, -1].tolist()


@pytest.mark.parametrize("layer", [1, 2, None])
async def test_drafts_that_are_read_together_are_read_as_each_alone(folder, layer):
    """Behind any layer; the prompt that they share is read once, and charged as cached."""
    reader, spent = (
        TransformersStates(folder, threads=1, dtype="float32"),
        [Spent() for _ in SOLUTIONS],
    )
    turns = [judged_turns("What is 2 + 2?", each) for each in SOLUTIONS]
    states = await asyncio.gather(
        *(reader.read(each, (layer,), bill) for each, bill in zip(turns, spent, strict=True))
    )
    for (state,), each in zip(states, turns, strict=True):
        assert state == pytest.approx(read_plainly(folder, each, layer), abs=1e-4)
    cached = sorted(bill.usage[0].cached for bill in spent)
    assert cached[0] == 0
    assert cached[1] == cached[2] > len("What is 2 + 2?")
    (later,) = [Spent()]
    await reader.read(turns[0], (layer,), later)
    assert later.usage[0].cached == cached[1]
    assert later.usage[0].prompt == next(
        bill.usage[0].prompt for bill, each in zip(spent, turns, strict=True) if each == turns[0]
    )


async def test_several_layers_are_had_for_one_price(folder):
    """As a fit needs them that chooses among layers; one after another they are the same."""
    reader, spent = TransformersStates(folder, threads=1, dtype="float32"), Spent()
    turns = judged_turns("What is 2 + 2?", "4")
    both = await reader.read(turns, (2, 1), spent)
    assert both[0] == pytest.approx(read_plainly(folder, turns, 2), abs=1e-4)
    (alone,) = await reader.read(turns, (1,), Spent())
    assert both[1] == pytest.approx(alone, abs=1e-4)
    assert spent.requests == len(spent.usage) == 1


async def test_a_copy_of_the_first_layers_reads_the_same(folder, tmp_path):
    """Up to its length: an engine can serve it, and the judge needs the direction alone."""
    write_first_layers(folder, 2, tmp_path / "copy")
    turns = judged_turns("What is 2 + 2?", "It is 4.")
    (whole,) = await TransformersStates(folder, threads=1, dtype="float32").read(
        turns, (2,), Spent()
    )
    (copied,) = await TransformersStates(tmp_path / "copy", threads=1, dtype="float32").read(
        turns, (None,), Spent()
    )
    assert unit_length(copied) == pytest.approx(unit_length(whole), abs=1e-4)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert causal.config.num_hidden_layers == len(causal.model.layers) == 2
    with pytest.raises(ConfigError, match="has 3 layers"):
        write_first_layers(folder, 4, tmp_path / "more")


async def test_what_cannot_be_read_says_why(folder, tmp_path):
    """A layer that is not there, a draft beyond the window, weights that are none."""
    reader = TransformersStates(folder, threads=1, dtype="float32")
    turns = judged_turns("What is 2 + 2?", "4")
    with pytest.raises(UnweighedError, match="has 3 layers, not 4"):
        await reader.read(turns, (4,), Spent())
    with pytest.raises(UnweighedError, match="reads 1024"):
        await reader.read(judged_turns("What is 2 + 2?", "4" * 2000), (1,), Spent())
    (tmp_path / "config.json").write_text("{}")
    spent = Spent()
    with pytest.raises(UnweighedError, match="cannot be read"):
        await TransformersStates(tmp_path).read(turns, (1,), spent)
    assert (spent.failed, spent.usage) == (1, [])
    with pytest.raises(ConfigError, match="is missing"):
        TransformersStates(tmp_path / "none")


async def test_the_loop_goes_on_while_drafts_are_read(folder):
    """Reading is done in a thread of its own."""
    reader = TransformersStates(folder, threads=1, dtype="float32")
    reading = asyncio.ensure_future(reader.read(judged_turns("x", "y" * 500), (2,), Spent()))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 3
    await reading


async def test_a_gguf_file_is_read_too():
    """The embedded model's: its first layers, with the template that the file holds."""
    pytest.importorskip("gguf", reason="needs gguf, which reads .gguf files")
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("the weights of SmolLM2 are not on this machine")
    reader, spent = TransformersStates(weights, threads=1, dtype="float32"), Spent()
    turns = judged_turns("What is 2 + 2?", "4")
    (first,), (again,) = await asyncio.gather(
        reader.read(turns, (10,), spent), reader.read(turns, (10,), Spent())
    )
    assert len(first) == 576
    assert first == pytest.approx(again, abs=1e-3)

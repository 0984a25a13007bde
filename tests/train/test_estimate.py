"""The estimate of a run, held against models that are really built and passes that are made."""

import json
from pathlib import Path

import pytest

from pdr_graph.train.estimate import PromptSize, activation_bytes, estimate, shape_of
from pdr_graph.train.settings import TrainSettings

TOLERANCE = 0.25
"""Of activations, either way; weights, gradients and optimiser are counted, and equal."""

SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
}
SIZE = PromptSize(direct=100, refine=200, problem=50, exact=True)


def settings_of(**tables: object) -> TrainSettings:
    """Return settings of a run on no model in particular."""
    return TrainSettings.model_validate({"model": Path("m"), "data": "x", **tables})


def built(kind: str, **fields: object):
    """Build a model of a kind, with random weights."""
    pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SHAPE, **fields)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_weights_are_counted_exactly(kind, tied):
    """What `config.json` gives is the number of weights that the model has."""
    model = built(kind, tie_word_embeddings=tied)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)), "config.json")
    assert shape.parameters == sum(each.numel() for each in model.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an older name
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_are_counted_exactly(modules):
    """So is what peft adds."""
    model = built("qwen2")
    from peft import LoraConfig, get_peft_model

    shape = shape_of(model.config.to_dict(), "config.json")
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=modules))
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    chosen = modules if isinstance(modules, str) else tuple(modules)
    assert shape.adapter_parameters(8, chosen) == trained


def kept_bytes(model, rows: int, tokens: int) -> int:
    """Return what a forward pass of the layers keeps for the backward pass, weights left out."""
    import torch

    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, tuple[object, int]] = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor too: else its place would be given to another.
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    ids = torch.randint(0, 1000, (rows, tokens))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    total = sum(size for _, size in kept.values())
    del hidden
    kept.clear()
    return total


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_activations_are_those_of_a_real_pass(kind):
    """Within a quarter of what a forward pass keeps."""
    model = built(kind)
    model.train()
    shape = shape_of(model.config.to_dict(), "config.json")
    asked = activation_bytes(shape, 4, 256, 4, checkpointing=False)
    measured = kept_bytes(model, 4, 256)
    assert abs(asked / measured - 1) < TOLERANCE, (asked, measured)


def test_weights_gradients_and_optimiser_are_those_of_a_real_step():
    """After one step of AdamW, byte for byte."""
    model = built("qwen2")
    import torch

    shape = shape_of(model.config.to_dict(), "config.json")
    memory = estimate(settings_of(), shape, SIZE).memory
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimiser.step()
    parameters = list(model.parameters())
    assert memory.weights == sum(each.nbytes for each in parameters)
    assert memory.gradients == sum(each.grad.nbytes for each in parameters)
    states = [
        state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    assert memory.optimiser == sum(each.nbytes for each in states)


def test_checkpointing_keeps_a_fraction():
    """One layer whole, and the input of each."""
    shape = shape_of({"model_type": "qwen2", **SHAPE}, "config.json")
    whole = activation_bytes(shape, 2, 100, 4, checkpointing=False)
    less = activation_bytes(shape, 2, 100, 4, checkpointing=True)
    assert less == whole // 6 + 6 * 2 * 100 * 256 * 4


def test_the_cache_is_that_of_all_calls_in_flight():
    """Keys and values of every layer, at the longest prompt and the longest reply."""
    shape = shape_of({"model_type": "qwen2", **SHAPE}, "config.json")
    settings = settings_of(strategy={"max_tokens": 50}, policy={"max_in_flight": 3})
    memory = estimate(settings, shape, SIZE).memory
    assert memory.kv_cache == 3 * (200 + 50) * 2 * 6 * 2 * 32 * 4


def test_tokens_are_those_of_the_plans():
    """Half of 8 problems by long CoT; of the other half 4 drafts and 4 refinements each."""
    settings = settings_of(steps=10, strategy={"max_tokens": 50})
    tokens = estimate(settings, shape_of({"model_type": "x", **SHAPE}, "c"), SIZE).tokens
    assert tokens.calls_per_step == 8 * 8
    assert tokens.drawn_per_step == tokens.trained_per_step == 8 * 8 * 50
    assert tokens.read_per_step == (4 * 8 + 4 * 4) * 100 + 4 * 4 * 200
    assert (tokens.drawn, tokens.read) == (10 * 3200, 10 * tokens.read_per_step)


def test_a_distillers_calls_are_drawn_and_not_trained():
    """A summary is one call of each workspace more; drafts without credit are not trained."""
    shape = shape_of({"model_type": "x", **SHAPE}, "c")
    settings = settings_of(
        strategy={"max_tokens": 50, "distiller": "summary"}, objective={"draft_credit": "none"}
    )
    tokens = estimate(settings, shape, SIZE).tokens
    assert tokens.calls_per_step == 8 * 8 + 4
    assert tokens.trained_per_step == (8 * 8 - 4 * 4) * 50


def test_adapters_shrink_what_is_kept():
    """Only they have gradients."""
    shape = shape_of({"model_type": "qwen2", **SHAPE}, "config.json")
    adapted = estimate(settings_of(lora={"rank": 4}, devices={"precision": "bf16"}), shape, SIZE)
    assert adapted.memory.gradients == 4 * adapted.trained_parameters
    assert adapted.memory.weights == 2 * shape.parameters + 4 * adapted.trained_parameters

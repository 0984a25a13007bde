"""Weights by the names of the base model's files, with adapters added to a copy."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from peft import LoraConfig, get_peft_model

from pdr_graph.errors import ConfigError
from pdr_graph.train.push import merged_weights
from tests.policy.tiny_model import tiny_model
from tests.train.given_rows import SMALL

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def adapted(**fields):
    torch.manual_seed(2)
    config = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **fields)
    model = get_peft_model(tiny_model(**SMALL), config)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.3)
    return model


def test_a_model_without_an_adapter_gives_its_own_weights():
    """Under their own names; a tied head is there once."""
    model = tiny_model(**SMALL)
    found = dict(merged_weights(model))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in found
    assert all(torch.equal(found[name], each) for name, each in model.named_parameters())


def test_merged_weights_are_those_that_peft_merges():
    """Under the names of a model that never had an adapter."""
    found = dict(merged_weights(adapted()))
    merged = dict(adapted().merge_and_unload().named_parameters())
    assert found.keys() == merged.keys() == dict(tiny_model(**SMALL).named_parameters()).keys()
    for name, each in merged.items():
        torch.testing.assert_close(found[name], each.detach())
    plain = dict(tiny_model(**SMALL).named_parameters())
    assert not torch.equal(found["model.layers.0.mlp.up_proj.weight"],
                           plain["model.layers.0.mlp.up_proj.weight"])  # fmt: skip


def test_merging_leaves_the_model_as_it_was():
    """To the last bit, which merging in place and taking out again would not."""
    model = adapted()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    list(merged_weights(model))
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())


def test_a_module_that_is_trained_whole_beside_adapters_is_refused():
    """Its weights are none of the base model's."""
    with pytest.raises(ConfigError, match="is trained whole beside adapters"):
        list(merged_weights(adapted(modules_to_save=["norm"])))

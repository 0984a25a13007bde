"""Graph, real vLLM, trainer, push, and again: the policy stays the model, and the guard holds it.

The trainer needs torch, the server has an environment of its own: run by `make test-train-vllm`.
"""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train-vllm")

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from engine.server import VLLMServer
from pdr_graph.errors import ConfigError
from pdr_graph.train.push import DiskReload, LoraPush, VLLMAdmin
from pdr_graph.train.steps import DriftError
from tests.vllm.served_policy import Withheld, graph_on, served, train

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

EXACT = 1e-4
"""Two implementations of one model in float32."""


@dataclass
class Unrefused:
    """Reloads from disk whatever the model."""

    push_of: DiskReload

    @property
    def cause(self) -> str:
        return self.push_of.cause

    def push(self, model, version: int) -> None:
        self.push_of.send(model, version)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A server of a model whose head has weights of its own, ready for adapters."""
    options = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "1")
    with served(tmp_path_factory.mktemp("untied"), *options, tied=False) as server:
        yield server


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A server of a model whose head is its embedding."""
    with served(tmp_path_factory.mktemp("tied"), tied=True) as server:
        yield server


def opened(server: VLLMServer):
    return AutoModelForCausalLM.from_pretrained(server.model)


def adapted(server: VLLMServer, folder):
    """Return the served model with a fresh adapter; the server has its base weights again."""
    DiskReload(VLLMAdmin(server.base_url), folder).push(opened(server), 0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(opened(server), config)


def test_an_adapter_that_is_hot_loaded_draws_as_the_trainer_scores(untied, tmp_path):
    """At every step, by calls that ask for the adapter of that step."""
    with graph_on(untied) as collect:
        push = LoraPush(VLLMAdmin(untied.base_url), tmp_path / "adapters", collect.use)
        figures = train(tmp_path / "run", adapted(untied, tmp_path), collect, push)
    assert [each["policy_version"] for each in figures] == [0, 1, 2]
    assert [name.split("-")[:2] for name in collect.asked] == [["policy", v] for v in "012"]
    assert max(each["drift/largest"] for each in figures) < EXACT
    assert all(each["rows/fillers"] == 0 for each in figures)


def test_an_adapter_that_is_withheld_trips_the_guard(untied, tmp_path):
    """The server answers every call, by the weights of the step before."""
    with graph_on(untied) as collect:
        push = LoraPush(VLLMAdmin(untied.base_url), tmp_path / "adapters", collect.use)
        with pytest.raises(DriftError, match="calls ask for another model than the adapter") as e:
            train(tmp_path / "run", adapted(untied, tmp_path), collect, Withheld(push, last=0))
    assert e.value.policy_version == 1
    assert e.value.drift.largest > 1e-2


def test_weights_from_disk_draw_as_the_trainer_scores(untied, tmp_path):
    """Of a model whose head has weights of its own."""
    with graph_on(untied) as collect:
        push = DiskReload(VLLMAdmin(untied.base_url), tmp_path / "weights")
        figures = train(tmp_path / "run", opened(untied), collect, push)
    assert [each["policy_version"] for each in figures] == [0, 1, 2]
    assert max(each["drift/largest"] for each in figures) < EXACT


def test_weights_from_disk_are_refused_where_the_head_is_tied(tied, tmp_path):
    """In a sentence, before the first rollout."""
    with graph_on(tied) as collect:
        push = DiskReload(VLLMAdmin(tied.base_url), tmp_path / "weights")
        with pytest.raises(ConfigError, match="tied to the embedding"):
            train(tmp_path / "run", opened(tied), collect, push)
    assert collect.asked == []


def test_the_guard_trips_where_the_refusal_is_passed_by(tied, tmp_path):
    """All requests succeed, and the head is the old one: what the refusal is for.

    Should this fail because nothing drifts, vLLM reloads tied weights, and the refusal can go.
    """
    with graph_on(tied) as collect:
        push = Unrefused(DiskReload(VLLMAdmin(tied.base_url), tmp_path / "weights"))
        with pytest.raises(DriftError, match="the old head where that is tied") as caught:
            train(tmp_path / "run", opened(tied), collect, push)
    assert caught.value.policy_version == 1
    assert caught.value.drift.largest > 1e-2

"""An adapter that was trained to judge, served by real vLLM beside its model, judges as it did.

The trainer needs torch, the server has an environment of its own: run by `make test-train-vllm`.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train-vllm")

from engine.environment import vllm_environment
from engine.server import ON_CPU, VLLMServer
from pdr_graph import ChatVLLM, ModelClient
from pdr_graph.errors import ConfigError
from pdr_graph.judge import Evidence, probability
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.train.judge import train_judge
from tests.fakes import make_draft
from tests.train.test_judge import PROMPTS, drafts_of, quick, write_judging_model

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, drafts, and what an adapter of it says of them."""
    weights, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("judge")
    write_judging_model(weights)
    drafts = drafts_of(32)
    return weights, drafts, train_judge(drafts, quick(weights, epochs=3), out, prompts=PROMPTS), out


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """Real vLLM with the model, and the adapter beside it."""
    weights, _, _, out = trained
    options = ("--enable-lora", "--lora-modules", f"judge={out / 'adapter'}")
    started = VLLMServer(
        python=vllm_environment(),
        model=weights,
        log=tmp_path_factory.mktemp("vllm") / "server.log",
        name="tiny",
        options=(*ON_CPU, "--max-model-len", "512", "--max-num-seqs", "8", *options),
        environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    with started as running:
        yield running


async def test_a_served_adapter_weighs_as_it_was_fitted(trained, server):
    """The weight of each draft is the one that the training has found for it."""
    _, drafts, made, _ = trained
    judge = AdapterJudge(
        model="tiny",
        adapter="judge",
        question=PROMPTS.templates["self_check"],
        scale=made.scale,
        shift=made.shift,
    )
    model = ChatVLLM(base_url=server.base_url, model=server.name)
    client = ModelClient(model)
    await judge.meet(client)
    for place, margin in made.margins.items():
        draft, evidence = drafts[place], Evidence("", drafts[place].problem, client)
        weight = await judge.weigh(make_draft(0, "1", solution=draft.solution), evidence)
        # Beyond the twenty likeliest tokens the server tells nothing.
        expected = probability(made.scale * max(-13.8, min(13.8, margin)) + made.shift)
        assert weight == pytest.approx(expected, abs=0.02)
        assert (evidence.spent.requests, evidence.spent.usage[0].completion) == (1, 1)
    with pytest.raises(ConfigError, match=r"it serves: tiny, judge; serve it beside its model"):
        await judge.model_copy(update={"adapter": "other"}).meet(client)
    await model.aclose()

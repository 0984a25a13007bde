"""Every preset on the embedded model: a real tokenizer, real drafts, a server that ignores `n`."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio

from pdr_graph import PRESETS, ModelClient, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.distill import DISTILLERS
from pdr_graph.distill.workspace import pack
from pdr_graph.settings import load_settings
from pdr_graph.types import Draft
from tests.fakes import make_step

pytestmark = [pytest.mark.local, pytest.mark.asyncio(loop_scope="module")]

PROBLEM = "Tom has 3 boxes with 4 apples in each box. How many apples does Tom have?"
TINY = {"max_tokens": 24, "solution_tokens": 24, "kappa": 48, "seed": 5, "k": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[ModelClient]:
    async with open_client(load_settings(base_url=None)) as client:
        yield client


@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_a_preset_runs_on_a_real_model(client, name):
    """The run ends with a solution, and its workspaces hold kappa by the model's own tokenizer."""
    widths = {"long_cot": (), "majority": (3,), "genselect": (3,), "rsa": (2, 2)}.get(
        name, (1, 1) if name.startswith("sr") else (2, 1)
    )
    result = await solve(PROBLEM, preset(name, widths=widths, **TINY), model=client)
    assert result.solution
    ledger = result.to_json()["ledger"]
    assert (ledger["failed"], ledger["aborted"], result.ledger.estimated) == (0, 0, False)
    for workspace in result.state["workspaces"]:
        assert workspace["tokens"] <= TINY["kappa"]
        assert await client.counter.count(workspace["text"]) == workspace["tokens"]
    assert result.state["record"]["token_counts"] == "server"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drafts(client: ModelClient) -> list[Draft]:
    """Three drafts of one round, which all distillers read."""
    result = await solve(PROBLEM, preset("majority", widths=(3,), **TINY), model=client)
    return result.state["drafts"]


@pytest.mark.parametrize("name", sorted(DISTILLERS.keys() - {"none", "trusted"}))
async def test_a_distiller_runs_on_a_real_model(client, drafts, name):
    """Each distiller holds kappa on what a real model writes."""
    config = preset("pdr", widths=(3,), distiller=name, **TINY)
    step = make_step(drafts, problem=PROBLEM, client=client, **config.model_dump())
    entries = (await DISTILLERS[name].distil(step))[0]
    workspace = await pack(entries, config.kappa, client.counter)
    assert 0 < workspace["tokens"] <= TINY["kappa"]
    assert workspace["sources"]


async def test_the_embedded_model_is_told_no_priorities():
    """llama.cpp has none, whatever the settings say of endpoints."""
    async with open_client(load_settings(base_url=None, priority=True)) as client:
        assert not client.priorities


async def test_drafts_of_one_round_differ(client):
    """Each draft has a seed of its own, so no sample is passed off as several."""
    config = preset("majority", widths=(4,), **TINY)
    result = await solve(PROBLEM, config, model=client)
    assert len({draft["solution"] for draft in result.state["drafts"]}) > 1


async def test_a_cut_drafts_request_really_ends(client):
    """A straggler that a quorum cuts leaves its slot at the server."""
    config = preset(
        "majority", widths=(4,), quorum=0.25, min_success=0.25, **{**TINY, "max_tokens": 1500}
    )
    result = await solve("Tell a long story about a fox.", config, model=client)
    assert any(draft["error"] == "cut" for draft in result.state["drafts"])
    root = str(client.model.base_url).removesuffix("/v1")
    key = client.model.openai_api_key.get_secret_value()
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        for _ in range(8):
            # llama.cpp looks for clients that left once it has been asked nothing for a second.
            await asyncio.sleep(2.0)
            slots = (await http.get(f"{root}/slots")).json()
            if not any(slot["is_processing"] for slot in slots):
                return
    pytest.fail("a cancelled request still holds a slot after 16 s")

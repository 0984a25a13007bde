"""Every preset on real vLLM, compared with what vLLM itself counts."""

import httpx2
import pytest

from pdr_graph import PRESETS, preset, solve
from tests.vllm.conftest import PROBLEM, TINY, counted_since

WIDTHS = {
    "long_cot": (),
    "majority": (3,),
    "genselect": (3,),
    "rsa": (2, 2),
    "sr": (1,),
    "sr_error_analysis": (1,),
}


@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_the_ledger_of_a_preset_is_what_vllm_counted(server, client, name):
    """Prompt, completion and cached tokens equal the change of vLLM's counters, to the token."""
    before = server.counters()
    config = preset(name, widths=WIDTHS.get(name, (2, 1)), **TINY)
    result = await solve(PROBLEM, config, model=client)
    ledger = result.to_json()["ledger"]
    counted = await counted_since(server, before, ledger["prompt_tokens"])
    assert counted.prompt_tokens == ledger["prompt_tokens"]
    assert counted.generation_tokens == ledger["completion_tokens"]
    assert counted.prefix_hits == sum(row["cached_tokens"] for row in ledger["rows"])
    assert (ledger["failed"], ledger["aborted"], result.ledger.estimated) == (0, 0, False)
    assert result.solution
    assert result.state["record"]["token_counts"] == "server"


@pytest.mark.parametrize("distiller", ["summary", "top_k", "answers"])
async def test_kappa_holds_by_vllms_tokenizer(server, client, distiller):
    """Each workspace is as long as `POST /tokenize` says, and never above kappa."""
    config = preset("pdr", widths=(3,), distiller=distiller, **TINY)
    result = await solve(PROBLEM, config, model=client)
    assert result.state["workspaces"]
    for workspace in result.state["workspaces"]:
        body = {"model": server.name, "prompt": workspace["text"], "add_special_tokens": False}
        reply = httpx2.post(f"{server.root}/tokenize", json=body, timeout=30.0)
        assert reply.json()["count"] == workspace["tokens"] <= TINY["kappa"]


async def test_texts_are_counted_as_vllm_counts_them(server, client):
    """The counter agrees with `/tokenize` on text of every kind, special tokens not added."""
    for text in ["x", "two words", "∑ 𝔵 — 汉字 🦊", "\\boxed{12}\n\n", " " * 40, "a" * 3000]:
        body = {"model": server.name, "prompt": text, "add_special_tokens": False}
        reply = httpx2.post(f"{server.root}/tokenize", json=body, timeout=30.0)
        assert await client.counter.count(text) == reply.json()["count"]
    assert client.counter.source == "server"


async def test_drafts_of_one_round_take_their_prefix_from_the_cache(server, client):
    """All whole blocks of the prompt but the first draft's come from the cache."""
    server.forget_prefixes()
    long_problem = " ".join(f"Box {n} holds {n} red and {n + 1} green apples." for n in range(12))
    config = preset("majority", widths=(6,), **TINY)
    result = await solve(f"{long_problem} How many are there?", config, model=client)
    (row,) = [row for row in result.ledger.rows if row["node"] == "drafter"]
    prompt = row["prompt_tokens"] // 6
    # vLLM computes at least one token of each prompt, and shares whole blocks only.
    shareable = 5 * ((prompt - 1) // 32 * 32)
    assert row["cached_tokens"] >= 0.95 * shareable > 0

"""Windows that are too small, requests that are cut, a server that dies."""

import asyncio
from collections import Counter

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from engine.server import VLLMServer
from pdr_graph import ChatVLLM, ModelClient, Parts, preset, resume, solve
from pdr_graph.connect import open_client
from pdr_graph.errors import ContextWindowError, QuorumError
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.usage import Spent
from pdr_graph.settings import load_settings
from tests.vllm.conftest import PROBLEM, TINY, WINDOW, eventually

ENDLESS = {"ignore_eos": True}
"""Makes vLLM write up to `max_tokens`, so that a call is surely under way for seconds."""
LENGTH = 900


def running(server: VLLMServer) -> float:
    return server.metrics()["vllm:num_requests_running"]


async def written_until_idle(server: VLLMServer, before: int) -> int:
    """Return the tokens that the server has written, once it runs nothing any more.

    Tokens tell whether requests were cut; seconds would tell how busy the machine is.
    """
    assert await eventually(lambda: running(server) == 0, within_s=120.0)
    return server.counters().generation_tokens - before


async def test_a_window_too_small_is_refused_before_any_draft(server, client):
    """The window is read from `/v1/models`, and nothing is generated."""
    assert client.window == WINDOW
    before = server.counters()
    config = preset("pdr", widths=(2,), **{**TINY, "max_tokens": WINDOW})
    with pytest.raises(ContextWindowError, match=f"window is {WINDOW}"):
        await solve(PROBLEM, config, model=client)
    assert server.counters() == before


@pytest.mark.parametrize(
    ("words", "max_tokens"), [(10, WINDOW + 1), (WINDOW, 16)], ids=["completion", "prompt"]
)
async def test_vllms_own_refusal_is_a_context_window_error(client, words, max_tokens):
    """Both of vLLM's sentences on a window are recognised where nothing was checked before."""
    unchecked = ModelClient(client.model)
    sampling = Sampling(max_tokens=max_tokens, temperature=1.0, top_p=1.0, seed=1)
    with pytest.raises(ContextWindowError, match=str(WINDOW)):
        await unchecked.ask("word " * words, sampling, Spent())


async def test_long_seeded_prompts_at_once_are_survived(server, client):
    """More prompt tokens than one step reads: on CPUs vLLM must not split a seeded request."""
    sampling = [Sampling(max_tokens=4, temperature=1.0, top_p=1.0, seed=seed) for seed in range(12)]
    calls = (client.ask(f"{one.seed} " + "word " * 800, one, Spent()) for one in sampling)
    replies = await asyncio.gather(*calls)
    assert all(reply.usage.completion for reply in replies)


class OneShort(ChatVLLM):
    """Ends its first reply after 8 tokens, and every other one at its limit only."""

    shortened: bool = False

    async def _agenerate(self, messages, stop=None, run_manager=None, **asked):
        if not self.shortened:
            self.shortened, asked["max_tokens"] = True, 8
        return await super()._agenerate(messages, stop, run_manager, **asked)


async def test_a_cut_stragglers_request_leaves_vllm(server):
    """With a quorum the others are cancelled; vLLM soon runs none of them."""
    config = preset(
        "majority", widths=(4,), quorum=0.25, min_success=0.25, **{**TINY, "max_tokens": LENGTH}
    )
    before = server.counters().generation_tokens
    model = OneShort(base_url=server.base_url, model=server.name, extra_body=ENDLESS)
    result = await solve("Write a long story about a fox.", config, model=model)
    assert await written_until_idle(server, before) < 3 * LENGTH / 2
    await model.aclose()
    cut = [draft for draft in result.state["drafts"] if draft["error"] == "cut"]
    assert len(cut) == 3
    assert result.to_json()["ledger"]["aborted"] == 3


async def test_a_cancelled_run_leaves_nothing_running(server, chat):
    """Cancelling the task that solves ends its requests at vLLM."""
    config = preset("majority", widths=(3,), **{**TINY, "max_tokens": LENGTH})
    model, before = chat(extra_body=ENDLESS), server.counters().generation_tokens
    run = asyncio.create_task(solve("Write a long story about a fox.", config, model=model))
    assert await eventually(lambda: server.counters().generation_tokens > before, within_s=60.0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await written_until_idle(server, before) < 3 * LENGTH / 2


async def test_a_server_that_dies_in_mid_round_costs_only_what_was_under_way(server):
    """SIGKILL, restart, resume: finished drafts are kept as they are and not asked for again."""
    saver, first, second = InMemorySaver(), [], []
    config = preset("pdr", widths=(6,), min_success=1.0, **TINY)

    def kill_after_three(event):
        if event["event"] == "draft":
            first.append(event)
            if sum(each["error"] is None for each in first) == 3:
                server.kill()

    settings = load_settings(base_url=server.base_url, retries=0)
    try:
        async with open_client(settings) as opened:
            # One call at a time, so that some drafts are in when the server dies.
            narrow = ModelClient(
                opened.model, counter=opened.counter, retry=Retry(attempts=1), max_in_flight=1
            )
            with pytest.raises(QuorumError):
                await solve(
                    PROBLEM, config, model=narrow, checkpointer=saver, thread_id="died",
                    parts=Parts(on_event=kill_after_three),
                )  # fmt: skip
    finally:
        await asyncio.to_thread(server.start)
    kept = {event["index"]: event["answer"] for event in first if event["error"] is None}
    assert len(kept) == 3
    async with open_client(settings) as opened:
        result = await resume(
            "died", model=opened, checkpointer=saver, parts=Parts(on_event=second.append)
        )
    asked = Counter(event["index"] for event in second if event["event"] == "draft")
    assert asked == Counter(set(range(6)) - kept.keys())
    assert [draft["error"] for draft in result.state["drafts"]] == [None] * 6
    assert result.solution

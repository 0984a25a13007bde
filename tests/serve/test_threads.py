"""Runs by name: resumed where they were left, replayed where they have ended."""

import asyncio

import openai
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.embed.stored import until_drafts_are_stored
from tests.serve.conftest import CALLS
from tests.serve.test_chat import ask, stream, text_of

NAMED = {"metadata": {"thread_id": "t1"}}


async def test_a_finished_run_is_replayed(serve, mock):
    """Without any call, streaming or not, on another server of the same store."""
    saver = InMemorySaver()
    first = await ask(await serve(saver), **NAMED)
    assert first.pdr["thread_id"] == "t1"
    other = await serve(saver)
    again = await ask(other, seed=99, **NAMED)
    chunks = await stream(other, **NAMED, stream_options={"include_usage": True})
    assert again.choices[0].message.content == first.choices[0].message.content
    assert text_of(chunks) == first.choices[0].message.content
    assert chunks[-1].usage == again.usage == first.usage
    assert mock.stats()["calls"] == CALLS


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_run_whose_client_left_is_resumed(serve, mock, streamed):
    """Its finished drafts are not asked for again; the call that was cut off is charged too."""
    mock.configure(status=[{"match": {"call": 3}, "status": "hang"}])
    saver = InMemorySaver()
    served = await serve(saver)
    run = asyncio.ensure_future(ask(served, **NAMED))
    await mock.until(lambda stats: stats["calls"] == 3 and stats["in_flight"] == 1)
    await until_drafts_are_stored(saver, "t1", 2)
    run.cancel()
    await mock.until(lambda stats: stats["in_flight"] == 0, timeout_s=1)
    await _until_idle(served)
    mock.configure(status=[])
    if streamed:
        assert "boxed" in text_of(await stream(served, **NAMED))
    else:
        assert (await ask(served, **NAMED)).pdr["ledger"]["calls"] == CALLS + 1
    assert mock.stats()["calls"] == CALLS + 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": [{"role": "user", "content": "Another"}]}, "a run of another problem"),
        ({"model": "pdr?widths=9"}, "another widths"),
        ({"model": "sr"}, "another preset"),
        ({"temperature": 0.5}, "another temperature"),
    ],
)
async def test_a_thread_answers_only_what_it_was_asked(serve, mock, fields, sentence):
    """The name of a thread does not give access to its answer."""
    served = await serve()
    await ask(served, **NAMED)
    with pytest.raises(openai.ConflictError, match=sentence):
        await ask(served, **{**NAMED, **fields})
    assert (await ask(served, **NAMED)).pdr["thread_id"] == "t1"


async def test_a_thread_is_run_by_one_request_at_a_time(serve, mock):
    """The second is refused, and asked to wait."""
    mock.configure(delay_s=0.3)
    served = await serve()
    run = asyncio.ensure_future(ask(served, **NAMED))
    await mock.until(lambda stats: stats["in_flight"] > 0)
    with pytest.raises(openai.ConflictError, match="being run by another request"):
        await ask(served, **NAMED)
    await run


async def test_a_corrected_request_may_take_the_thread(serve, mock):
    """A run that was refused before its first step leaves nothing behind."""
    served = await serve()
    with pytest.raises(openai.BadRequestError, match="context window"):
        await ask(served, max_tokens=10**6, **NAMED)
    assert (await ask(served, max_tokens=100, **NAMED)).pdr["thread_id"] == "t1"


async def test_runs_without_a_name_need_not_be_kept(serve, mock):
    """A store in memory would only grow; a named run is kept there too."""
    saver = InMemorySaver()
    served = await serve(saver, keeps_unnamed=False)
    await ask(served)
    assert not saver.storage
    await ask(served, **NAMED)
    assert list(saver.storage) == ["t1"]


async def test_a_drained_run_goes_on_elsewhere(serve, mock):
    """The client learns how; calls in flight are waited for, and none is made again."""
    mock.configure(delay_s=0.3)
    saver = InMemorySaver()
    served = await serve(saver)
    run = asyncio.ensure_future(ask(served))
    await mock.until(lambda stats: stats["in_flight"] == 3)
    served.server.stop()
    with pytest.raises(openai.APIStatusError, match="shutting down") as drained:
        await run
    assert drained.value.status_code == 503
    assert drained.value.response.headers["retry-after"]
    thread_id = drained.value.body["message"].split('"thread_id": "')[1].split('"')[0]
    await served.running
    mock.configure(delay_s=0)
    reply = await ask(await serve(saver), metadata={"thread_id": thread_id})
    assert reply.pdr["ledger"]["calls"] == CALLS == mock.stats()["calls"]
    assert mock.stats()["aborted"] == 0


async def test_a_run_that_outlasts_the_drain_is_stopped(serve, mock):
    """Its client learns how to resume, as if the run had stopped by itself."""
    mock.configure(delay_s=60)
    served = await serve(drain_s=0.2)
    run = asyncio.ensure_future(ask(served))
    await mock.until(lambda stats: stats["in_flight"] == 3)
    served.server.stop()
    with pytest.raises(openai.APIStatusError, match="shutting down; send the request") as stopped:
        await run
    assert stopped.value.status_code == 503
    await served.running
    assert mock.stats()["aborted"] == 3


async def _until_idle(served) -> None:
    async with asyncio.timeout(30):
        while served.runner.admission.running:  # noqa: ASYNC110  # it has no event for that
            await asyncio.sleep(0.01)

"""A client that goes away, and many that come at once."""

import asyncio
import gc
import json

import httpx2
import openai
import psutil
import pytest

from pdr_graph.connect import open_client
from pdr_graph.errors import LocalError
from pdr_graph.settings import load_settings
from tests.serve.conftest import ASK, SMALL
from tests.serve.test_chat import ask, stream, text_of


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_takes_its_calls_along(serve, mock, streamed):
    """Within a second no call of its run is at the model, and its place is free."""
    mock.configure(delay_s=60)
    served = await serve()
    run = asyncio.ensure_future(ask(served, stream=streamed))
    await mock.until(lambda stats: stats["in_flight"] == 3)
    if streamed:  # the head has come, and with it the progress
        reply = await run
        assert text_of([await anext(aiter(reply))]) == ""
        await reply.close()
    else:
        run.cancel()
    await mock.until(lambda stats: stats["in_flight"] == 0, timeout_s=1)
    assert mock.stats()["aborted"] == 3
    async with asyncio.timeout(1):
        while served.runner.admission.running:  # noqa: ASYNC110  # it has no event for that
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_in_mid_answer(serve, mock):
    """The call that writes the answer ends with its reader."""
    mock.configure(stream_delay_s=0.2)
    reply = await ask(await serve(), stream=True)
    async for chunk in reply:
        if text_of([chunk]):
            break
    await reply.close()
    await mock.until(lambda stats: stats["in_flight"] == 0, timeout_s=1)
    assert mock.stats()["aborted"] == 1


async def test_a_client_that_does_not_read_runs_out_of_time(serve, mock):
    """A request has a limit; what it held is given back."""
    mock.configure(delay_s=60)
    served = await serve(timeout_s=0.5)
    with pytest.raises(openai.APIStatusError, match=r"no answer within 0\.5 s") as late:
        await ask(served)
    assert late.value.status_code == 504
    with pytest.raises(openai.APIError, match=r"no answer within 0\.5 s"):
        await stream(served)
    await mock.until(lambda stats: stats["in_flight"] == 0, timeout_s=1)


@pytest.mark.local
async def test_the_embedded_model_is_freed_too(serve):
    """Its server computes for nobody soon after the client has left."""
    try:
        settings = load_settings(base_url=None)
        async with open_client(settings, announce=lambda line: None) as client:
            root = client.model.base_url.removesuffix("/v1")
            served = await serve(client=client)
            fields = {"max_tokens": 1200, "extra_body": {"pdr": {"kappa": 64}}}
            run = asyncio.ensure_future(ask(served, model="pdr?widths=4", **fields))
            key = client.model.openai_api_key.get_secret_value()
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx2.AsyncClient(headers=headers) as http:
                await _until_busy(http, root, 4, within_s=60)
                run.cancel()
                # It takes 0.1 s; the rest is for a machine that is busy with other tests.
                await _until_busy(http, root, 0, within_s=60)
    except LocalError as error:
        pytest.skip(str(error))


async def _until_busy(http: httpx2.AsyncClient, root: str, slots: int, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await _busy_slots(http, root) != slots:  # noqa: ASYNC110  # in another process
            await asyncio.sleep(0.05)


async def _busy_slots(http: httpx2.AsyncClient, root: str) -> int:
    return sum(slot["is_processing"] for slot in (await http.get(f"{root}/slots")).json())


async def test_two_hundred_clients_at_once(serve, mock):
    """Every one is answered by a stream of its own, and afterwards the memory is there again."""
    mock.configure(delay_s=0.05, record=False)
    served = await serve(keeps_unnamed=False)
    process = psutil.Process()
    await _crowd(served, 50)  # what is loaded on first use stays loaded
    gc.collect()
    before = process.memory_info().rss
    mock.reset()
    mock.configure(delay_s=0.05, record=False)
    await _crowd(served, 200)
    gc.collect()
    grown = process.memory_info().rss - before
    assert mock.stats()["calls"] == 200 * 3
    assert mock.stats()["in_flight"] == served.runner.admission.running == 0
    assert grown < 40 * 2**20, f"{grown / 2**20:.0f} MiB"


async def _crowd(served, size: int) -> None:
    limits = httpx2.Limits(max_connections=size)
    async with httpx2.AsyncClient(limits=limits, timeout=120) as http:

        async def one(number: int) -> None:
            text = ""
            question = [{"role": "user", "content": f"What is {number} + {number}?"}]
            body = {"model": "pdr?widths=1", "messages": question, "stream": True}
            async with http.stream("POST", f"{served.url}/chat/completions", json=body) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        for choice in json.loads(line[6:])["choices"]:
                            text += choice["delta"].get("content") or ""
            assert "boxed" in text

        await asyncio.gather(*(one(number) for number in range(size)))


async def test_too_many_clients_are_told_when_to_come_again(serve, mock):
    """429 with Retry-After, which the official client heeds by itself."""
    mock.configure(delay_s=0.1)
    served = await serve(max_runs=1, max_waiting=1)
    replies = await asyncio.gather(*(ask(served) for _ in range(4)), return_exceptions=True)
    turned_away = [each for each in replies if isinstance(each, openai.RateLimitError)]
    assert len(turned_away) == 2
    assert all(int(each.response.headers["retry-after"]) >= 1 for each in turned_away)
    patient = served.client.with_options(max_retries=3)
    fields = {"model": SMALL, "messages": ASK}
    both = await asyncio.gather(*(patient.chat.completions.create(**fields) for _ in range(3)))
    assert len(both) == 3

"""The mock endpoint counts and replies as the rest of the suite relies on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.mock_endpoint import MockEndpoint, count, count_messages


@pytest.fixture(scope="module")
def server() -> Iterator[MockEndpoint]:
    """Start one process for all of these tests."""
    with MockEndpoint() as mock:
        yield mock


@pytest.fixture
def mock(server: MockEndpoint) -> MockEndpoint:
    """Hand it out as it was started."""
    server.reset()
    return server


@pytest.fixture
async def client(mock: MockEndpoint) -> AsyncIterator[openai.AsyncOpenAI]:
    """Connect a client that does not retry."""
    async with openai.AsyncOpenAI(base_url=mock.url, api_key="k", max_retries=0) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, problem: str = "2+2?", **options: Any) -> Any:
    """Ask for one completion."""
    messages = [{"role": "user", "content": problem}]
    options = {"model": "mock-model"} | options
    return await client.chat.completions.create(messages=messages, **options)


async def test_text_depends_on_seed_and_messages_only(client: openai.AsyncOpenAI) -> None:
    """Order of arrival, length limits and server changes to timing do not change the words."""
    forward = [await ask(client, seed=seed) for seed in (1, 2, 3)]
    backward = [await ask(client, seed=seed) for seed in (3, 2, 1)]
    texts = [each.choices[0].message.content for each in forward]
    assert texts == [each.choices[0].message.content for each in reversed(backward)]
    assert len(set(texts)) == 3


async def test_counts_agree(mock: MockEndpoint, client: openai.AsyncOpenAI) -> None:
    """Usage, the text itself and the statistics tell the same numbers."""
    replies = [await ask(client, seed=seed) for seed in range(5)]
    for reply in replies:
        assert reply.usage.completion_tokens == count(reply.choices[0].message.content) == 64
        messages = [{"role": "user", "content": "2+2?"}]
        assert reply.usage.prompt_tokens == count_messages(messages)
    stats = mock.stats()
    assert stats["by_status"] == {"200": 5}
    assert stats["completion_tokens"] == 5 * 64


async def test_max_tokens_cuts_the_reply(client: openai.AsyncOpenAI) -> None:
    """A reply over the limit is a prefix, and says so."""
    whole, cut = await ask(client), await ask(client, max_completion_tokens=7)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 7
    assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)


@pytest.mark.parametrize("place", ["reasoning", "reasoning_content", "think_tags", None])
async def test_stream_says_what_the_plain_reply_says(
    mock: MockEndpoint, client: openai.AsyncOpenAI, place: str | None
) -> None:
    """Both forms carry the same text and usage, wherever the reasoning goes."""
    mock.configure(reasoning=place)
    plain = await ask(client)
    content, thought, usage = "", "", None
    stream = await ask(client, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            thought += getattr(choice.delta, place or "", None) or ""
    assert content == plain.choices[0].message.content
    assert thought == (getattr(plain.choices[0].message, place or "", None) or "")
    assert usage == plain.usage


async def test_a_thousand_calls_are_in_flight_at_once(mock: MockEndpoint) -> None:
    """The server itself is never the limit on concurrency."""
    mock.configure(status=[{"status": "hang"}])

    async def hang() -> asyncio.StreamWriter:
        host, port = mock.root.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"messages": []}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        return writer

    writers = await asyncio.gather(*(hang() for _ in range(1000)))
    await mock.until(lambda stats: stats["in_flight"] == 1000)
    for writer in writers:
        writer.close()
    stats = await mock.until(lambda stats: stats["in_flight"] == 0)
    assert stats["aborted"] == stats["peak_in_flight"] == 1000


async def test_a_client_that_leaves_is_counted_as_aborted(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """Its prompt is known, and no completion is counted as served."""
    mock.configure(delay_s=30)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(client), 0.2)
    stats = await mock.until(lambda stats: stats["aborted"] == 1)
    assert stats["completion_tokens"] == 0
    assert stats["aborted_prompt_tokens"] > 0
    assert mock.requests()[0]["disconnected"] is True


async def test_faults_befall_the_calls_they_name(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """By number, by text, by seed, and as often as asked."""
    mock.configure(
        status=[
            {"match": {"call": 1}, "status": 429, "retry_after": 2},
            {"match": {"contains": "bad"}, "status": 400},
            {"match": {"seed": 7}, "status": "drop", "times": 1},
        ]
    )
    with pytest.raises(openai.RateLimitError) as limited:
        await ask(client)
    assert limited.value.response.headers["retry-after"] == "2"
    with pytest.raises(openai.BadRequestError):
        await ask(client, "a bad problem")
    with pytest.raises(openai.APIConnectionError):
        await ask(client, seed=7)
    await ask(client, seed=7)
    assert mock.stats()["by_status"] == {"429": 1, "400": 1, "drop": 1, "200": 1}


async def test_first_call_of_each_seed_can_fail(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """Every retry then succeeds."""
    mock.configure(status=[{"match": {"first_per_seed": True}, "status": 503}])
    for seed in (1, 2):
        with pytest.raises(openai.InternalServerError):
            await ask(client, seed=seed)
        await ask(client, seed=seed)


async def test_a_stream_can_break_in_the_middle(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """What was sent before the break arrives."""
    mock.configure(status=[{"status": "drop", "after_chunks": 2}])
    seen: list[str] = []

    async def listen() -> None:
        async for chunk in await ask(client, stream=True):
            seen.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIConnectionError):
        await listen()
    assert len([text for text in seen if text]) == 2


async def test_the_window_is_guarded_as_vllm_guards_it(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """Too many tokens are refused, or max_tokens is lowered without a word."""
    mock.configure(max_model_len=40)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 40 tokens"):
        await ask(client, max_tokens=100)
    mock.configure(overflow="clamp")
    reply = await ask(client, max_tokens=100)
    assert reply.usage.total_tokens == 40
    assert reply.choices[0].finish_reason == "length"


async def test_wrong_model_and_wrong_key_are_refused(
    mock: MockEndpoint, client: openai.AsyncOpenAI
) -> None:
    """404 names the model, 401 comes without the bearer token."""
    with pytest.raises(openai.NotFoundError, match="`other` does not exist"):
        await ask(client, model="other")
    mock.configure(api_key="secret")
    with pytest.raises(openai.AuthenticationError):
        await ask(client)
    await ask(client.with_options(api_key="secret"))


async def test_tokenize_speaks_both_forms(mock: MockEndpoint, client: openai.AsyncOpenAI) -> None:
    """The form of vLLM counts messages as usage does; that of llama.cpp gives tokens only."""
    http = client.with_options(base_url=mock.root)
    messages = [{"role": "user", "content": "2+2?"}]
    vllm: Any = await http.post("/tokenize", body={"messages": messages}, cast_to=object)
    assert vllm["count"] == (await ask(client)).usage.prompt_tokens == len(vllm["tokens"])
    mock.configure(tokenize="llama_cpp")
    llama: Any = await http.post("/tokenize", body={"content": "one two"}, cast_to=object)
    assert len(llama["tokens"]) == count("one two")
    mock.configure(tokenize=None)
    with pytest.raises(openai.NotFoundError):
        await http.post("/tokenize", body={"prompt": "x"}, cast_to=object)


async def test_extras_are_honoured(mock: MockEndpoint, client: openai.AsyncOpenAI) -> None:
    """Log-probabilities, token ids and cached tokens come on request."""
    mock.configure(cached_tokens=3)
    reply = await ask(client, logprobs=True, extra_body={"return_token_ids": True})
    assert len(reply.choices[0].logprobs.content) == reply.usage.completion_tokens
    assert len(reply.choices[0].token_ids) == reply.usage.completion_tokens
    assert len(reply.prompt_token_ids) == reply.usage.prompt_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


def test_the_process_ends_with_its_parent() -> None:
    """The end of its standard input is the end of the server."""
    with MockEndpoint() as mock:
        process = psutil.Process(mock.pid)
        assert process.is_running()
    assert not process.is_running()


def test_unknown_rules_are_refused(mock: MockEndpoint) -> None:
    """A misspelt rule is not silently without effect."""
    with pytest.raises(ValueError, match="delay"):
        mock.configure(delay=1)

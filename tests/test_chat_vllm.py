"""What vLLM's endpoint adds to the protocol, on the way there and back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import split_message
from pdr_graph.llm.usage import Usage, read_usage
from tests.mock_endpoint import MockEndpoint

MODEL = "mock-model"
PROMPT = "What is 6 x 7?"
REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It is 42."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


@pytest.fixture
async def make(mock: MockEndpoint) -> AsyncIterator[Callable[..., ChatVLLM]]:
    """Makes models of the mock endpoint, and closes their connections."""
    made: list[ChatVLLM] = []

    def build(**fields) -> ChatVLLM:
        made.append(ChatVLLM(base_url=mock.url, model=MODEL, **fields))
        return made[-1]

    yield build
    for model in made:
        await model.aclose()


async def gather_stream(model: ChatVLLM, **kwargs) -> AIMessageChunk:
    """Return the sum of a stream's chunks."""
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(PROMPT, **kwargs):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


def body_of(mock: MockEndpoint) -> dict:
    return mock.requests()[-1]["body"]


# ------------------------------------------------------------------------------ the request

PARAMETERS = {
    "temperature": 0.3,
    "top_p": 0.8,
    "seed": 11,
    "max_tokens": 99,
    "thinking_token_budget": 40,
    "priority": -3,
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize("streaming", [False, True])
async def test_parameters_of_the_model_reach_the_server(mock, make, streaming):
    """Under the names that every server of the protocol reads, at the top of the body."""
    await make(streaming=streaming, **PARAMETERS).ainvoke(PROMPT)
    body = body_of(mock)
    assert {name: body.get(name) for name in PARAMETERS} == PARAMETERS
    assert "max_completion_tokens" not in body
    assert "extra_body" not in body
    assert bool(body.get("stream")) is streaming


async def test_parameters_of_a_call_reach_the_server(mock, make):
    """They win over the model's own."""
    model = make(temperature=1.0, max_tokens=5, priority=1, thinking_token_budget=1)
    await model.ainvoke(PROMPT, **PARAMETERS)
    body = body_of(mock)
    assert {name: body.get(name) for name in PARAMETERS} == PARAMETERS


async def test_nothing_is_sent_that_was_not_asked_for(mock, make):
    """Servers other than vLLM see the plain protocol."""
    await make().ainvoke(PROMPT)
    assert set(body_of(mock)) <= {"model", "messages", "stream"}


async def test_a_budget_of_no_thought_reaches_the_server_with_a_call(mock, make):
    """0 closes the thought at once; it is not the same as no budget."""
    await make().ainvoke(PROMPT, thinking_token_budget=0, priority=0)
    assert (body_of(mock)["thinking_token_budget"], body_of(mock)["priority"]) == (0, 0)


async def test_a_budget_of_no_thought_reaches_the_server_as_a_field(mock, make):
    """A model made with a budget of 0 does not think."""
    await make(thinking_token_budget=0).ainvoke(PROMPT)
    assert body_of(mock)["thinking_token_budget"] == 0


async def test_a_callers_own_extra_body_is_kept(mock, make):
    """It stands beside what this class puts there."""
    await make(priority=2, extra_body={"top_k": 20}).ainvoke(PROMPT)
    assert (body_of(mock)["top_k"], body_of(mock)["priority"]) == (20, 2)


async def test_a_server_without_a_key_needs_none(mock, make):
    """VLLM takes any key by default; one that asks for it gets the caller's."""
    await make().ainvoke(PROMPT)
    mock.configure(api_key="secret")
    await make(api_key="secret").ainvoke(PROMPT)
    assert mock.stats()["by_status"] == {"200": 2}


# ------------------------------------------------------------------------------ the reply


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_the_reasoning_is_kept_under_both_names(mock, make, name, streaming):
    """Older servers call it `reasoning_content`, newer ones `reasoning`."""
    plain = await make().ainvoke(PROMPT, seed=1)
    mock.configure(reasoning=name, reasoning_tokens=20)
    message = await make(streaming=streaming).ainvoke(PROMPT, seed=1)
    parts = split_message(message)
    assert len(parts.thought) > 20
    assert parts.solution == message.text
    assert parts.thought not in message.text
    assert parts.solution.splitlines()[-1] == plain.text.splitlines()[-1]


async def test_a_reply_without_reasoning_has_none(make):
    """No empty key is left behind."""
    message = await make().ainvoke(PROMPT)
    assert "reasoning_content" not in message.additional_kwargs


@pytest.mark.parametrize("streaming", [False, True])
async def test_cached_and_reasoning_tokens_are_in_the_usage(mock, make, streaming):
    """Exactly as the server counts them."""
    mock.configure(cached_tokens=6, reasoning="reasoning", reasoning_tokens=20)
    usage = read_usage(await make(streaming=streaming).ainvoke(PROMPT))
    stats = mock.stats()
    assert usage == Usage(stats["prompt_tokens"], 6, stats["completion_tokens"], 20)


@pytest.mark.parametrize("streaming", [False, True])
async def test_token_ids_and_logprobs_come_on_request(mock, make, streaming):
    """One id and one log-probability for each token, and the prompt's ids."""
    model = make(streaming=streaming, return_token_ids=True, logprobs=True)
    message = await model.ainvoke(PROMPT)
    metadata, usage = message.response_metadata, message.usage_metadata
    assert len(metadata["token_ids"]) == usage["output_tokens"]
    assert len(metadata["prompt_token_ids"]) == usage["input_tokens"]
    rows = metadata["logprobs"]["content"]
    assert len(rows) == usage["output_tokens"]
    assert "".join(row["token"] for row in rows) == message.text
    assert all(row["logprob"] <= 0 for row in rows)


async def test_without_a_request_there_are_no_token_ids(make):
    """They would fill traces and checkpoints."""
    message = await make().ainvoke(PROMPT)
    assert {"token_ids", "prompt_token_ids"}.isdisjoint(message.response_metadata)
    assert not message.response_metadata.get("logprobs")


async def test_a_stream_says_what_the_plain_reply_says(mock, make):
    """Text, reasoning, usage, token ids and reason do not depend on how they came."""
    mock.configure(reasoning="reasoning", cached_tokens=2)
    options = {"return_token_ids": True, "logprobs": True}
    plain = await make(**options).ainvoke(PROMPT, seed=3)
    streamed = await gather_stream(make(**options), seed=3)
    assert split_message(streamed) == split_message(plain)
    assert read_usage(streamed) == read_usage(plain)
    for name in ("token_ids", "prompt_token_ids", "logprobs", "finish_reason"):
        assert streamed.response_metadata[name] == plain.response_metadata[name]


async def test_a_stream_tells_thought_and_text_as_they_come(mock, make):
    """Studio shows a draft while it is written."""
    mock.configure(reasoning="reasoning", reasoning_tokens=32, chunk_tokens=8)
    chunks = [chunk async for chunk in make().astream(PROMPT)]
    thoughts = [chunk for chunk in chunks if chunk.additional_kwargs.get("reasoning_content")]
    assert len(thoughts) == 4
    assert len([chunk for chunk in chunks if chunk.text]) >= 3


async def test_a_reply_cut_in_its_thought_has_no_solution(mock, make):
    """The server closes nothing: all tokens went into the reasoning."""
    mock.configure(reasoning="reasoning", reasoning_tokens=32)
    message = await make(max_tokens=10).ainvoke(PROMPT)
    parts = split_message(message)
    assert (parts.solution, message.response_metadata["finish_reason"]) == ("", "length")
    assert parts.thought


# ------------------------------------------------------------------------------ the wire


def model_on(handler: Callable[[httpx2.Request], httpx2.Response], **fields) -> ChatVLLM:
    """Return a model whose requests are answered by a function."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    return ChatVLLM(base_url="http://endpoint/v1", model=MODEL, http_async_client=http, **fields)


async def test_no_reply_is_too_late():
    """A thought may take an hour: there is a limit on connecting and none on reading."""
    limits: list[dict] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        limits.append(request.extensions["timeout"])
        return httpx2.Response(200, json=REPLY)

    await model_on(answer).ainvoke(PROMPT)
    assert limits == [{"connect": 10.0, "read": None, "write": None, "pool": None}]


async def test_a_timeout_of_the_callers_own_holds():
    """A caller that wants a limit sets one."""
    limits: list[dict] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        limits.append(request.extensions["timeout"])
        return httpx2.Response(200, json=REPLY)

    await model_on(answer, timeout=7).ainvoke(PROMPT)
    assert limits[0]["read"] == 7


async def test_it_never_retries_by_itself():
    """`ModelClient` counts the tokens, and decides about a further request."""
    requests: list[httpx2.Request] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(503, json={"error": {"message": "busy"}})

    with pytest.raises(Exception, match="busy"):
        await model_on(refuse).ainvoke(PROMPT)
    assert len(requests) == 1


async def test_a_content_of_none_is_an_empty_reply():
    """VLLM's reasoning parser leaves the content out when the thought fills the reply."""
    message = {"role": "assistant", "content": None, "reasoning": "hm"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={**REPLY, "choices": [choice]})

    parts = split_message(await model_on(answer).ainvoke(PROMPT))
    assert (parts.thought, parts.solution) == ("hm", "")


async def test_connections_are_kept_and_shared():
    """Ten calls one after another are one connection; a new one each would cost a handshake."""
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        data = json.dumps(REPLY).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        while request := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            fields = dict(line.split(b": ", 1) for line in request.lower().split(b"\r\n")[1:-2])
            await reader.readexactly(int(fields[b"content-length"]))
            writer.write(head.encode() + b"\r\n\r\n" + data)
            await writer.drain()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client closed its side
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = ChatVLLM(base_url=f"http://127.0.0.1:{port}/v1", model=MODEL)
    for _ in range(10):
        assert (await model.ainvoke(PROMPT)).text == "It is 42."
    assert num_connections == 1
    await model.aclose()
    server.close()
    await server.wait_closed()


async def test_a_closed_model_opens_new_connections(make):
    """`aclose` ends what this event loop opened and no more."""
    model = make()
    await model.ainvoke(PROMPT)
    await model.aclose()
    assert isinstance(await model.ainvoke(PROMPT), AIMessage)


async def test_closing_before_any_call_is_no_error(make):
    """There is nothing to close yet."""
    await make().aclose()


def test_the_base_url_is_told_without_a_slash_at_its_end():
    """Other addresses of the server are made from it."""
    model = ChatVLLM(base_url="http://endpoint:8000/v1/", model=MODEL)
    assert model.base_url == "http://endpoint:8000/v1"

"""An endpoint that attacks: replies that do not end, grow, or quote what is secret."""

import asyncio
import gzip
import json
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter, process_time

import httpx2
import pytest
import zstandard
from langchain_core.callbacks import BaseCallbackHandler
from langchain_openai import ChatOpenAI

from pdr_graph.errors import CallError, EndpointError, keep_secrets_of, redacted
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient, Sampling
from pdr_graph.llm.endpoint import chat_fields, probe_endpoint
from pdr_graph.llm.pool import ask_small, make_http_client
from pdr_graph.llm.retry import BadReplyError, Retry
from pdr_graph.llm.tokens import ServerCounter, estimate_tokens
from pdr_graph.llm.usage import Spent

pytestmark = pytest.mark.security

SAMPLING = Sampling(max_tokens=64, temperature=0.7, top_p=0.9, seed=1)
ANSWER = {"index": 0, "message": {"content": "It is 42."}, "finish_reason": "stop"}
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
MEMORY_MIB = 96
"""Memory that one attack may cost this process."""

Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def endpoint(attack: Attack) -> AsyncIterator[str]:
    """Serve an attack for every request; lend the base URL."""
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await attack(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if length:
        await reader.readexactly(int(length[0].split(b":")[1]))
    return head


def sending(
    body: bytes = b"",
    *,
    status: str = "200 OK",
    kind: str = "application/json",
    headers: str = "",
    then: bytes = b"",
    pause_s: float = 0.0,
) -> Attack:
    """Send a body, and after it `then` for ever, if it is given."""

    async def attack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{headers}\r\n".encode() + body)
        await writer.drain()
        while then:
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return attack


def stream_of(**options) -> Attack:
    return sending(kind="text/event-stream", **options)


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def client_of(
    url: str, *, streamed: bool = False, kind: type[ChatOpenAI] = ChatVLLM, **fields
) -> ModelClient:
    model = kind(base_url=url, model="m", api_key=fields.pop("api_key", "k"), **fields)
    return ModelClient(model, retry=Retry(attempts=1), streamed=streamed)


async def failure(client: ModelClient, sampling: Sampling = SAMPLING) -> tuple[str, Spent, float]:
    """Return the sentence of a call that fails, what it cost, and how long it took."""
    spent, began = Spent(), perf_counter()
    with pytest.raises(CallError) as caught:
        await client.ask("What is 6 x 7?", sampling, spent)
    return str(caught.value), spent, perf_counter() - began


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


BOMB = b"[" * (300 * 2**20)
LARGE = {
    "a body without an end": sending(b'{"choices": [', then=b" " * 65536),
    "10 GB announced": sending(b"{}", headers="content-length: 10000000000\r\n"),
    "a gzip bomb": sending(gzip.compress(BOMB, 1), headers="content-encoding: gzip\r\n"),
    "a deflate bomb": sending(zlib.compress(BOMB, 1), headers="content-encoding: deflate\r\n"),
    "a zstd bomb": sending(zstandard.compress(BOMB), headers="content-encoding: zstd\r\n"),
    "a bomb in a bomb": sending(
        gzip.compress(gzip.compress(BOMB, 1), 1), headers="content-encoding: gzip, gzip\r\n"
    ),
    "a stream in place of a body": stream_of(then=event(PIECE) * 100),
}
del BOMB


@pytest.mark.parametrize("kind", [ChatVLLM, ChatOpenAI])
@pytest.mark.parametrize("case", LARGE)
async def test_a_reply_that_is_too_large_is_refused(case, kind):
    """Whatever its form, in little memory, and once: it would be the same again."""
    before = peak_mib()
    async with endpoint(LARGE[case]) as url:
        said, spent, _ = await failure(client_of(url, kind=kind, max_retries=0))
    # Where nothing unpacks zstd, what came is no JSON.
    packed = "zstd" in case and "is not a JSON object" in said
    assert packed or said.startswith("call failed: the endpoint's reply is larger than 1.0 MiB")
    assert (spent.requests, spent.failed, len(spent.usage)) == (1, 1, 1)
    assert spent.usage[0].estimated
    assert peak_mib() - before < MEMORY_MIB


STREAMS = {
    "comments": (b": keep-alive\n\n" * 4096, "larger than"),
    "one line": (b"data: " + b"a" * 65536, "larger than"),
    "pieces": (event(PIECE) * 512, "pieces"),
    "empty pieces": (event({"choices": [{"index": 0, "delta": {}}]}) * 512, "pieces"),
}


@pytest.mark.parametrize("case", STREAMS)
async def test_a_stream_without_an_end_is_ended(case):
    """By its bytes or its pieces."""
    then, reason = STREAMS[case]
    before = peak_mib()
    async with endpoint(stream_of(then=then)) as url:
        said, spent, _ = await failure(client_of(url, streamed=True))
    assert reason in said
    assert (spent.requests, spent.failed, len(spent.usage)) == (1, 1, 1)
    assert peak_mib() - before < MEMORY_MIB


@pytest.mark.parametrize("then", [b": keep-alive\n\n", event({"choices": []}), b":"])
async def test_a_stream_that_says_nothing_is_ended(then):
    """Signs of life are no pieces of an answer."""
    attack = stream_of(body=event(PIECE), then=then, pause_s=0.02)
    async with endpoint(attack) as url:
        said, spent, seconds = await failure(client_of(url, streamed=True, idle_timeout_s=0.3))
    assert "the stream brought nothing of the answer for 0.3 s" in said
    assert 0.2 < seconds < 15
    assert spent.usage[0].completion == estimate_tokens("a")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "attack",
    [sending(then=b" ", pause_s=0.02), stream_of(then=event(PIECE), pause_s=0.02), None],
    ids=["a byte at a time", "a piece at a time", "nothing"],
)
async def test_a_reply_has_a_time_in_all(attack, streamed):
    """However little at a time it comes; a connection that only opens too."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with endpoint(attack or silent) as url:
        said, spent, seconds = await failure(client_of(url, streamed=streamed, reply_timeout_s=0.4))
    assert "the endpoint's reply was not whole after 0.4 s" in said
    assert 0.3 < seconds < 15
    assert len(spent.usage) == 1


@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Internal Server Error"])
async def test_a_refusal_without_an_end_is_still_a_refusal(status):
    """Its beginning says what there is to say."""
    attack = sending(b"bad luck", status=status, then=b" " * 65536)
    async with endpoint(attack) as url:
        said, _, seconds = await failure(client_of(url))
    assert said == f"HTTP {status[:3]}: bad luck"
    assert seconds < 15


ODD = {
    "a million choices": (b'{"choices": [' + b"{}," * 300_000 + b"{}]}", "300001 choices"),
    "many whole choices": (json.dumps({"choices": [ANSWER] * 5000}).encode(), "5000 choices"),
    "deep JSON": (b"[" * 500_000, "not a JSON object"),
    "deep content": (
        b'{"choices": [{"message": {"content": ' + b"[" * 900 + b"]" * 900 + b"}}]}",
        "",
    ),
    "a giant header": (None, "connection to the model lost"),
}


@pytest.mark.parametrize("case", ODD)
async def test_a_reply_of_a_hostile_form_fails_or_is_empty(case):
    """In a sentence, and soon."""
    body, reason = ODD[case]
    attack = sending(body or b"", headers="" if body else f"x: {'a' * 500_000}\r\n")
    began = process_time()
    async with endpoint(attack) as url:
        client = client_of(url)
        if reason:
            said, spent, _ = await failure(client)
            assert reason in said
            assert len(spent.usage) == 1
        else:
            assert (await client.ask("What?", SAMPLING, Spent())).solution == ""
    assert process_time() - began < 2


async def test_a_reply_before_the_request_is_read_and_a_half_closed_one_end():
    """A server need not keep the order of things."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
        writer.write_eof()
        await reader.read()

    async with endpoint(early) as url:
        said, _, seconds = await failure(client_of(url, reply_timeout_s=1.0))
    assert said
    assert seconds < 15


async def test_a_flooding_stream_slows_no_other():
    """Between two turns of the others it computes for milliseconds, though it never pauses."""
    flood = stream_of(then=b": x\n" * 16384)
    late: list[float] = []
    async with endpoint(flood) as url:
        client = client_of(url, streamed=True)
        sampling = Sampling(max_tokens=8192, temperature=0.7, top_p=0.9, seed=1)
        flooding = asyncio.create_task(failure(client, sampling))
        while not flooding.done() and len(late) < 200:
            began = process_time()
            await asyncio.sleep(0.001)
            late.append(process_time() - began)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    late.sort()
    assert len(late) >= 50
    assert late[int(len(late) * 0.95)] < 0.05


# ---------------------------------------------------------------------------- small calls


SMALL = {
    "endless": sending(b'{"data": [', then=b" " * 65536),
    "deep": sending(b"[" * 100_000),
    "infinite": sending(b'{"count": Infinity, "data": 1e999}'),
    "negative": sending(b'{"count": -5, "data": [{"id": "m", "max_model_len": -1}]}'),
    "a bomb": sending(gzip.compress(b" " * (200 * 2**20), 1), headers="content-encoding: gzip\r\n"),
}


@pytest.mark.parametrize("case", SMALL)
async def test_small_calls_end(case):
    """A list of models is refused in a sentence, and what need not be there is not there."""
    before, began = peak_mib(), process_time()
    async with endpoint(SMALL[case]) as url, make_http_client() as http:
        if case == "negative":
            assert (await probe_endpoint(http, url, api_key="k")).window is None
        else:
            with pytest.raises(EndpointError, match="list of models"):
                await probe_endpoint(http, url, api_key="k")
        assert await chat_fields(http, url, api_key="k") == frozenset()
        counter = ServerCounter(http, url, "m", "k")
        assert await counter.count("one two three") == estimate_tokens("one two three")
        assert counter.source == "estimate"
    assert process_time() - began < 2
    assert peak_mib() - before < MEMORY_MIB


@pytest.mark.parametrize("ours", [True, False])
async def test_a_small_call_has_a_time_in_all(ours):
    """With any client, and however little at a time the reply comes."""
    began = perf_counter()
    http = make_http_client() if ours else httpx2.AsyncClient(trust_env=False)
    async with endpoint(sending(then=b" ", pause_s=0.02)) as url, http:
        with pytest.raises(BadReplyError, match=r"was not whole after 0\.3 s"):
            await ask_small(http, "GET", url, api_key="k", total_s=0.3)
    assert perf_counter() - began < 15


# ---------------------------------------------------------------------------- figures


BAD_FIGURES = [
    (-5, 7), (11, -7), (2**63, 7), (11, 10**30), (1.5, 7), (float("nan"), 7), (11, float("inf")),
    ("11", 7), (True, 7), ([], 7), (11, 10**9), (10**9, 7),
]  # fmt: skip


@pytest.mark.parametrize("figures", BAD_FIGURES)
@pytest.mark.parametrize("streamed", [False, True])
async def test_figures_that_cannot_be_are_estimated_and_told_once(figures, streamed, caplog):
    """The ledger stays one that can be stored and added up."""
    usage = dict(zip(("prompt_tokens", "completion_tokens"), figures, strict=True))
    whole = sending(json.dumps({"choices": [ANSWER], "usage": usage}).encode())
    last = event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    attack = stream_of(body=event(PIECE) + last) if streamed else whole
    async with endpoint(attack) as url:
        client = client_of(url, streamed=streamed)
        for _ in range(2):
            spent = Spent()
            await client.ask("What is 6 x 7?", SAMPLING, spent)
            [cost] = spent.usage
            assert cost.estimated
            assert 0 < cost.prompt + cost.completion < 100
            client.tell_refused(spent, "t")
    assert [record.message.split()[0] for record in caplog.records] == ["usage.refused"]


async def test_a_figure_of_thousands_of_digits_costs_no_reply():
    """The answer is there."""
    body = json.dumps({"choices": [ANSWER]})[:-1] + ', "usage": {"prompt_tokens": ' + "9" * 9999
    async with endpoint(sending(f"{body}}}}}".encode())) as url:
        spent = Spent()
        assert (await client_of(url).ask("?", SAMPLING, spent)).solution == "It is 42."
    assert spent.usage[0].estimated


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": {"content": [{"logprob": "x"}]}, "token_ids": [1]},
        {"logprobs": {"content": [{"logprob": float("nan")}]}, "token_ids": [1]},
        {"logprobs": {"content": 7}, "token_ids": [1]},
        {"logprobs": {"content": [{"logprob": -1.0}]}, "token_ids": [-1]},
        {"logprobs": {"content": [{"logprob": -1.0}]}, "token_ids": "abc"},
    ],
)
async def test_tokens_that_are_none_were_not_sent(fields):
    """A policy gradient of nonsense would be worse than none."""
    body = {"choices": [ANSWER | fields], "prompt_token_ids": [1, 2]}
    async with endpoint(sending(json.dumps(body).encode())) as url:
        reply = await client_of(url).ask("?", SAMPLING, Spent())
    assert reply.sampled is None


# ---------------------------------------------------------------------------- secrets


KEY = "tiger-4711-in-the-night"
QUOTING = {
    "plain": f"Incorrect API key provided: {KEY}. See our page.",
    "json": json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY}}),
    "header": f"refused: authorization: Bearer {KEY}",
    "html": f"<html><title>401 for {KEY}</title></html>",
    "detail": json.dumps({"detail": [{"loc": ["header"], "msg": KEY}]}),
    "at the cut": json.dumps({"message": "x" * 390 + KEY}),
}


class Heard(BaseCallbackHandler):
    """Hears errors as a tracer does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_llm_error(self, error: BaseException, **more) -> None:
        self.said.append(f"{error} {error!r} {getattr(error, 'body', '')}")


@pytest.mark.parametrize("status", ["401 Unauthorized", "200 OK", "503 Busy"])
@pytest.mark.parametrize("case", QUOTING)
async def test_a_key_that_the_server_quotes_goes_nowhere(case, status):
    """Neither into the sentence nor to those who trace calls."""
    heard = Heard()
    async with endpoint(sending(QUOTING[case].encode(), status=status)) as url:
        client = client_of(url, api_key=KEY, callbacks=[heard])
        said, _, _ = await failure(client)
    assert "tiger" not in said
    assert heard.said
    assert not any("tiger" in each for each in heard.said)


async def test_a_password_in_the_address_is_not_shown():
    """Of an endpoint that is dead, refuses the key, or is none."""
    for url in ("http://me:pa55word@127.0.0.1:9/v1", "ftp://me:pa55word@h/v1"):
        async with make_http_client() as http:
            with pytest.raises(EndpointError) as caught:
                await probe_endpoint(http, url, api_key="k")
        assert "pa55word" not in str(caught.value)
        assert "me:***@" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see redis://:hush@h:1/0 now", "see redis://:***@h:1/0 now"),
        ("GET https://h/v1?api_key=abc&x=1", "GET https://h/v1?api_key=***&x=1"),
        ("https://ghp_abcdefgh12345678@h/v1", "https://***@h/v1"),
        ("provided: sk-proj-ab12****9xYz!", "provided: sk-***!"),
        ("{'x-api-key': 'abcdef'}", "{'x-api-key': '***'}"),
        ("a Bearer abc123def456 b", "a Bearer *** b"),
        ("set --api-key / PDR_API_KEY", "set --api-key / PDR_API_KEY"),
        ("max_tokens=100 is not 8000", "max_tokens=100 is not 8000"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text, shown):
    """And what does not is kept."""
    assert redacted(text) == shown


def test_known_passwords_are_hidden_in_every_form():
    """As they are, as an address has them, and as a header does."""
    keep_secrets_of("http://me:pa%40ss%2Fword@h/v1?token=zebra-99")
    said = redacted("pa@ss/word pa%40ss%2Fword zebra-99 bWU6cGFAc3Mvd29yZA==")
    assert said == "*** *** *** ***"

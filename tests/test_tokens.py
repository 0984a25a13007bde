"""Where token counts come from: the server, a file the user names, or the estimate."""

import asyncio
import json
import sys
from collections.abc import Callable

import httpx2
import pytest
from hypothesis import given
from tokenizers import Tokenizer

from pdr_graph.errors import ConfigError
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.tokens import EstimateCounter, FileCounter, ServerCounter, estimate_tokens
from tests.fakes import num_bytes, odd_texts, write_tokenizer
from tests.mock_endpoint import count

TEXT = "So let x be the sum: 2 + 2 = 4, and we are done."


@pytest.fixture
async def server_counter(mock):
    """A counter that asks the mock endpoint."""
    async with make_http_client() as http:
        yield ServerCounter(http, mock.url, "mock-model", "EMPTY")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A small tokenizer on disk."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return file


@pytest.fixture(scope="module")
def file_counter(tokenizer_file):
    """A counter that has read it."""
    return FileCounter(tokenizer_file)


def counter_on(handler: Callable[[httpx2.Request], httpx2.Response], url: str) -> ServerCounter:
    """Return a counter whose requests are answered by a function."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    return ServerCounter(http, url, "m", "secret")


# ------------------------------------------------------------------------------ the server


@pytest.mark.parametrize("form", ["vllm", "llama_cpp"])
async def test_the_servers_count_is_used_in_both_forms(mock, server_counter, form):
    """VLLM says how many, llama.cpp lists them; the first count finds out which it is."""
    mock.configure(tokenize=form)
    assert await server_counter.count(TEXT) == count(TEXT)
    assert server_counter.source == "server"


@pytest.mark.parametrize(("form", "probes"), [("vllm", 1), ("llama_cpp", 2)])
async def test_the_form_is_found_once(mock, server_counter, form, probes):
    """Each further count is one request."""
    mock.configure(tokenize=form)
    for _ in range(5):
        await server_counter.count(TEXT)
    assert mock.stats()["tokenize_calls"] == probes + 5


async def test_a_server_that_does_not_count_leaves_the_estimate(mock, server_counter):
    """It is marked as such, and the server is not asked again."""
    mock.configure(tokenize=None)
    for _ in range(3):
        assert await server_counter.count(TEXT) == estimate_tokens(TEXT)
    assert server_counter.source == "estimate"
    assert mock.stats()["tokenize_calls"] == 2


async def test_no_text_is_no_request(mock, server_counter):
    """Nothing has no tokens, whoever counts."""
    assert await server_counter.count("") == 0
    assert mock.stats()["tokenize_calls"] == 0


async def test_lone_surrogates_are_counted(mock, server_counter):
    """What no UTF-8 can carry is counted as its replacement."""
    assert await server_counter.count("half \ud83d of it") == count("half ? of it")


@pytest.mark.parametrize("url", ["http://x:1/v1", "http://x:1/v1/", "http://x:1", "http://x:1/"])
async def test_the_address_is_the_servers_root(url):
    """`/tokenize` stands beside `/v1`, and is asked with the user's key."""
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(200, json={"count": 3})

    await counter_on(answer, url).count(TEXT)
    assert {str(request.url) for request in asked} == {"http://x:1/tokenize"}
    assert asked[0].headers["authorization"] == "Bearer secret"


async def test_special_tokens_are_not_counted():
    """A begin-of-text token is no part of a workspace."""
    bodies: list[dict] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return httpx2.Response(200, json={"count": 3} if "prompt" in bodies[-1] else {})

    await counter_on(answer, "http://x/v1").count(TEXT)
    assert bodies[-1] == {"model": "m", "prompt": TEXT, "add_special_tokens": False}


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, json=[1, 2, 3]),
        httpx2.Response(200, json={}),
        httpx2.Response(200, json={"count": None}),
        httpx2.Response(200, json={"count": 0, "tokens": []}),
        httpx2.Response(200, json={"tokens": []}),
        httpx2.Response(200, json=7),
        httpx2.Response(401),
        httpx2.Response(500),
    ],
)
async def test_an_answer_that_is_no_count_leaves_the_estimate(reply):
    """A proxy that answers everything with 200 is not believed."""
    counter = counter_on(lambda request: reply, "http://x/v1")
    assert await counter.count(TEXT) == estimate_tokens(TEXT)
    assert counter.source == "estimate"


async def test_a_count_that_fails_in_mid_run_is_estimated_and_marked():
    """A hiccup makes one count an estimate, and the next is the server's again."""
    replies = iter([200, 200, 500, 200])
    counter = counter_on(
        lambda request: httpx2.Response(next(replies), json={"count": 3}), "http://x/v1"
    )
    counts = []
    for _ in range(3):
        counts.append((await counter.count(TEXT), counter.source))
    assert counts == [(3, "server"), (estimate_tokens(TEXT), "estimate"), (3, "server")]


async def test_a_dead_server_leaves_the_estimate():
    """Nobody is kept from counting by a connection that fails."""

    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    counter = counter_on(refuse, "http://x/v1")
    assert await counter.count(TEXT) == estimate_tokens(TEXT)


# ------------------------------------------------------------------------------ a file


async def test_a_file_counts_exactly(tokenizer_file):
    """As the library counts, special tokens not added."""
    counter = FileCounter(tokenizer_file)
    ids = Tokenizer.from_file(str(tokenizer_file)).encode(TEXT).ids
    assert await counter.count(TEXT) == len(ids) - 1
    assert await counter.count("") == 0
    assert counter.source == "file"


async def test_a_folder_stands_for_the_file_in_it(tokenizer_file):
    """A model's folder holds its tokenizer.json."""
    by_folder, by_file = FileCounter(tokenizer_file.parent), FileCounter(tokenizer_file)
    assert await by_folder.count(TEXT) == await by_file.count(TEXT)


async def test_a_long_text_does_not_hold_up_the_event_loop(tokenizer_file):
    """A million characters are counted in a thread; other drafts go on meanwhile."""
    counter, text = FileCounter(tokenizer_file), TEXT * 20_000
    counting = asyncio.ensure_future(counter.count(text))
    turns = 0
    while not counting.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    assert await counting >= 10_000 * await counter.count(TEXT)


@given(text=odd_texts)
async def test_a_file_counts_any_text(file_counter, text):
    """Lone surrogates included; no more tokens than bytes, as the clip relies on."""
    assert 0 <= await file_counter.count(text) <= num_bytes(text)


def test_a_missing_file_is_named(tmp_path):
    """A file, and a folder without one."""
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(
            ConfigError, match=r"^tokenizer file '.*tokenizer\.json' does not exist$"
        ):
            FileCounter(path)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    """The library's own error is in the sentence."""
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json' is not a tokenizer\.json: "):
        FileCounter(file)


def test_a_missing_library_is_told_with_its_command(tokenizer_file, monkeypatch):
    """The library is optional; the sentence says what to install."""
    # None in the table of modules is Python's own way to say that there is none of this name.
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError) as refused:
        FileCounter(tokenizer_file)
    assert str(refused.value) == (
        "a tokenizer file needs tokenizers: pip install 'pdr-graph[tokenizers]'"
    )


# ------------------------------------------------------------------------------ the estimate


async def test_the_estimate_says_that_it_is_one():
    """Whoever reads the ledger knows."""
    counter = EstimateCounter()
    assert await counter.count(TEXT) == estimate_tokens(TEXT)
    assert counter.source == "estimate"

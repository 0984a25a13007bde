"""Counting and cutting text by model tokens."""

import asyncio
import json
import sys
from collections.abc import Callable

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.tokens import (
    CUT,
    EstimateCounter,
    FileCounter,
    ServerCounter,
    clip,
    estimate_tokens,
    surely_fits,
)
from tests.fakes import LENGTHS, CountBy, num_bytes, num_words, odd_texts, write_tokenizer
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
    """An empty text has no tokens, by any counter."""
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
        f"a tokenizer file needs tokenizers: {install_command('tokenizers')}"
    )


# ------------------------------------------------------------------------------ the estimate


async def test_the_estimate_says_that_it_is_one():
    """The ledger says so."""
    counter = EstimateCounter()
    assert await counter.count(TEXT) == estimate_tokens(TEXT)
    assert counter.source == "estimate"


PROSE = {
    "story": (
        "The old man walked down to the harbour every morning, before the boats came in. He said "
        "nothing to anyone, and nobody asked him why he was there; it had been like that for years."
    ),
    "solution": (
        "Let n be the number of apples. Since each of the 12 boxes holds 7 apples, we get "
        "n = 12 * 7 = 84. Taking away the 15 that were eaten leaves 84 - 15 = 69.\n\n"
        "The answer is \\boxed{69}."
    ),
    "notes": (
        "- The attempts agree that the sum is even.\n- They differ in the last step: one of them "
        "divides by two, the other does not.\n- What is still open: the case where k is odd.\n"
    ),
    "code": (
        "def total(values):\n    result = 0\n    for value in values:\n        if value % 3 == 0:\n"
        "            result += value ** 2\n    return result\n"
    ),
    "headings": "# First Part\n\n## The Second Step\n\nWe Try Again, With Fewer Words This Time.\n",
    "numbers": "1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024; 3.14159; 10,000; 2/3; 50%; 7 x 6",
    "Chinese": "答案是四十二。因为六乘七等于四十二。",
    "emoji": "So the answer is 42 😀👍 as we said",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A byte-level tokenizer of six thousand tokens, an order smaller than a model's."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return Tokenizer.from_file(str(file))


@pytest.mark.parametrize("kind", sorted(PROSE))
def test_the_estimate_is_an_upper_bound_on_what_people_write(tokenizer, kind):
    """A real tokenizer, and a small one at that, makes no more tokens than we charge."""
    tokens = len(tokenizer.encode(PROSE[kind], add_special_tokens=False).ids)
    assert estimate_tokens(PROSE[kind]) >= tokens


@pytest.mark.parametrize("kind", ["story", "notes"])
def test_the_estimate_is_not_far_above_plain_english(tokenizer, kind):
    """A workspace measured by it is less than half wasted."""
    tokens = len(tokenizer.encode(PROSE[kind], add_special_tokens=False).ids)
    assert estimate_tokens(PROSE[kind]) < 2 * tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("cat", 1),
        ("cats", 2),
        ("a b", 2),
        ("a     b", 3),
        ("2024", 4),
        ("x=1;", 4),
        ("\n\n", 2),
        ("CamelCase", 5),
        ("é", 2),
        ("😀", 4),
        ("\ud800", 3),
    ],
)
def test_what_each_kind_of_piece_costs(text, tokens):
    """Three letters, a digit, a mark, a line break, four more spaces, a byte beyond ASCII."""
    assert estimate_tokens(text) == tokens


@given(left=odd_texts, right=odd_texts)
def test_a_text_costs_no_more_than_its_parts(left, right):
    """Joining two texts merges at most a piece at the seam, so shares can be added up."""
    whole = estimate_tokens(left + right)
    assert whole <= estimate_tokens(left) + estimate_tokens(right) + 1
    assert whole >= max(estimate_tokens(left), estimate_tokens(right))


@given(text=st.text(st.characters(min_codepoint=128, exclude_categories=["Cs"])))
def test_beyond_ascii_every_byte_is_charged(text):
    """A byte-level tokenizer that never saw the script spends a token on each byte."""
    assert estimate_tokens(text) == len(text.encode())


@given(text=odd_texts)
def test_only_single_spaces_are_free(text):
    """Nothing that a model writes counts as nothing, but for a space that belongs to its word."""
    assert estimate_tokens(text) > 0 or not text.strip(" ")


def test_long_runs_of_spaces_are_charged():
    """A million spaces are no empty text."""
    assert estimate_tokens(" " * 10**6) >= 10**6 // 4


LINE = "Final answer: 42"

lengths = st.sampled_from(sorted(LENGTHS))


@given(text=odd_texts, limit=st.integers(0, 128), name=lengths, keep=st.sampled_from(["", LINE]))
async def test_clip_never_exceeds_its_limit(text, limit, name, keep):
    """For any text and any counter, the result fits."""
    count = LENGTHS[name]
    assert count(await clip(text, limit, CountBy(count), keep=keep)) <= limit


@given(text=odd_texts, limit=st.integers(0, 64), keep=odd_texts, name=lengths)
async def test_any_closing_line_leaves_the_bound_in_force(text, limit, keep, name):
    """A closing line may itself be longer than the limit, and is then dropped."""
    count = LENGTHS[name]
    assert count(await clip(text, limit, CountBy(count), keep=keep)) <= limit


@given(text=odd_texts, limit=st.integers(24, 128))
async def test_a_cut_keeps_the_closing_line(text, limit):
    """Text that was cut ends with the line that must survive; text that fits is not touched."""
    out = await clip(text, limit, CountBy(num_bytes), keep=LINE)
    assert out == text if num_bytes(text) <= limit else out.endswith(f"{CUT}\n{LINE}")


@given(text=odd_texts, limit=st.integers(1, 128), name=lengths)
async def test_a_cut_is_a_beginning_and_a_mark(text, limit, name):
    """Nothing is reordered or invented: the head of the text, then the mark."""
    out = await clip(text, limit, CountBy(LENGTHS[name]))
    assert out == text or out == "" or text.startswith(out.removesuffix(CUT).removesuffix("\n"))


async def test_text_within_the_limit_is_returned_as_it_is():
    """Nothing is stripped from text that fits."""
    text = "  two words \n"
    assert await clip(text, 2, CountBy(num_words), keep=LINE) == text


@pytest.mark.parametrize("name", sorted(LENGTHS))
@pytest.mark.parametrize("keep", ["", LINE, "Final answer: " + "9" * 4000])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("word " * 200_000, id="prose"),
        pytest.param(" " * 10**6, id="blank"),
        pytest.param("😀!" * 500_000, id="emoji"),
        pytest.param(" " * 30_000 + "é!" * 30_000, id="dense tail"),
        pytest.param("!é" * 999 + " " * 30_000, id="dense head"),
    ],
)
async def test_a_million_characters_are_cut_in_few_counts(text, keep, name):
    """A counter may be a server: about a dozen counts, none of them of the whole text."""
    sizes: list[int] = []

    def count(each: str) -> int:
        sizes.append(len(each))
        return LENGTHS[name](each)

    out = await clip(text, 256, CountBy(count), keep=keep)
    assert LENGTHS[name](out) <= 256
    assert len(sizes) - 1 <= 20
    assert max(sizes, default=0) <= 256 * 16 + len(keep) + 10


async def test_a_short_text_is_not_counted_at_all():
    """No tokenizer makes more tokens than bytes, so a draft of few bytes needs no count."""
    counter = CountBy(num_bytes)
    assert await clip("short", 6, counter) == "short"
    assert counter.asked == 0


@given(text=odd_texts, beyond=st.integers(-3, 6))
def test_what_surely_fits_has_fewer_bytes_than_tokens_allowed(text, beyond):
    """One token is left for the leading space that some tokenizers add."""
    limit = max(0, num_bytes(text) + beyond)
    assert surely_fits(text, limit) == (num_bytes(text) + 1 <= limit)


@pytest.mark.parametrize("limit", [0, 1, 4])
async def test_a_limit_too_small_for_the_mark_leaves_nothing(limit):
    """Where not even the mark fits, the text is gone rather than too long."""
    assert await clip("x" * 100, limit, CountBy(num_bytes), keep=LINE) == ""


async def test_a_closing_line_beyond_the_limit_leaves_its_room_to_the_text():
    """A line that can never fit is given up at once, and not at the cost of everything else."""
    out = await clip("x" * 1000, 64, CountBy(num_bytes), keep="9" * 400)
    assert out.startswith("x" * 40)
    assert out.endswith(CUT)


async def test_the_closing_line_outlives_the_mark():
    """Where line and mark do not fit together, the line stays."""
    assert await clip("x" * 100, len(LINE), CountBy(num_bytes), keep=LINE) == LINE

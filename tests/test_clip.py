"""Cutting text to a bound, whatever the text and whoever counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.llm.tokens import CUT, clip, surely_fits
from tests.fakes import LENGTHS, CountBy, num_bytes, num_words, odd_texts

LINE = "Final answer: 42"

lengths = st.sampled_from(sorted(LENGTHS))


@given(text=odd_texts, limit=st.integers(0, 128), name=lengths, keep=st.sampled_from(["", LINE]))
async def test_clip_never_exceeds_its_limit(text, limit, name, keep):
    """Whatever the text and whoever counts, what comes out fits."""
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

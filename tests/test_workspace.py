"""The workspace bound: at most kappa model tokens, whatever the drafts hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.distill.workspace import Entry, draft_entry, numbered, pack
from pdr_graph.errors import WorkspaceOverflowError
from tests.fakes import LENGTHS, CountBy, every, make_draft, num_bytes, num_words, odd_texts

answers = st.one_of(
    st.none(),
    st.integers(0, 999).map(str),
    st.tuples(st.sampled_from("9x"), st.integers(1, 400)).map(lambda each: each[0] * each[1]),
    odd_texts.map(str.strip).map(lambda text: text or None),
)
solutions = st.lists(st.tuples(odd_texts, answers), max_size=8)
lengths = st.sampled_from(sorted(LENGTHS))


def drafts_of(pairs):
    return [make_draft(n, answer, solution=text) for n, (text, answer) in enumerate(pairs)]


def closing_line(draft) -> str:
    return f"Final answer: {draft['answer']}"


@given(pairs=solutions, kappa=st.integers(16, 200), name=lengths)
async def test_a_workspace_never_exceeds_kappa(pairs, kappa, name):
    """With any drafts and any counter, the workspace fits and states its true length."""
    count = LENGTHS[name]
    workspace = await pack(numbered(drafts_of(pairs)), kappa, CountBy(count))
    assert count(workspace["text"]) == workspace["tokens"] <= kappa


@given(
    entries=st.lists(st.builds(Entry, odd_texts, odd_texts, st.just((0,)), odd_texts), max_size=5),
    kappa=st.integers(16, 200),
    name=lengths,
)
async def test_any_entries_fit(entries, kappa, name):
    """A distiller of the user's own may return as much as it likes, titles and lines included."""
    count = LENGTHS[name]
    workspace = await pack(entries, kappa, CountBy(count))
    assert count(workspace["text"]) <= kappa


@given(pairs=solutions, kappa=st.integers(16, 200), name=lengths)
async def test_every_admitted_draft_is_whole_or_keeps_its_answer(pairs, kappa, name):
    """A cut removes reasoning, never the answer, unless the answer exceeds the workspace."""
    drafts = drafts_of(pairs)
    workspace = await pack(numbered(drafts), kappa, CountBy(LENGTHS[name]))
    for index in workspace["sources"]:
        draft = drafts[index]
        is_whole = draft["solution"] in workspace["text"]
        too_long = LENGTHS[name](closing_line(draft)) > kappa
        is_kept = draft["answer"] is None or closing_line(draft) in workspace["text"]
        assert is_whole or is_kept or too_long


@given(pairs=solutions, kappa=st.integers(16, 200), name=lengths)
async def test_drafts_enter_in_order_and_once(pairs, kappa, name):
    """Each draft enters at most once, and those that do stay in the order given."""
    drafts = [draft for draft in drafts_of(pairs) if draft["solution"].strip() or draft["answer"]]
    workspace = await pack(numbered(drafts), kappa, CountBy(LENGTHS[name]))
    assert workspace["sources"] == sorted(set(workspace["sources"]))


@pytest.mark.parametrize("name", sorted(LENGTHS))
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("word " * 200_000, id="prose"),
        pytest.param("<think>" + "word " * 200_000, id="unclosed thought"),
        pytest.param(" \n" * 500_000, id="blank"),
        pytest.param("😀" * 10**6, id="emoji"),
        pytest.param("\u202eשלום " * 200_000, id="right to left"),
        pytest.param("\ud800" * 10**6, id="lone surrogates"),
    ],
)
async def test_a_million_characters_a_draft_fit(text, name):
    """Drafts of a million characters share the workspace, and each keeps its answer."""
    drafts = [make_draft(index, str(index), solution=text) for index in range(3)]
    workspace = await pack(numbered(drafts), 512, CountBy(LENGTHS[name]))
    assert LENGTHS[name](workspace["text"]) <= 512
    assert len(workspace["sources"]) == 3
    for draft in drafts:
        assert text in workspace["text"] or closing_line(draft) in workspace["text"]


@pytest.mark.parametrize("name", sorted(LENGTHS))
@pytest.mark.parametrize("num_drafts", [2, 16])
async def test_packing_takes_few_counts_per_draft(num_drafts, name):
    """Sixteen long drafts do not cost hundreds of requests to a server that counts."""
    drafts = [make_draft(index, "4", solution="prose " * 400) for index in range(num_drafts)]
    counter = CountBy(LENGTHS[name])
    await pack(numbered(drafts), 1024, counter)
    assert counter.asked <= 24 * num_drafts + 16


async def test_thirty_two_drafts_share_a_thousand_tokens():
    """Each has room for its title, a few words and its answer, so none is left out."""
    drafts = [make_draft(index, "4", solution="prose " * 400) for index in range(32)]
    counter = CountBy(LENGTHS["estimate"])
    workspace = await pack(numbered(drafts), 1024, counter)
    assert len(workspace["sources"]) == 32
    assert counter.asked <= 24 * 32 + 16


@pytest.mark.parametrize("position", [0, 15])
async def test_a_huge_answer_does_not_multiply_the_counts(position):
    """One draft whose answer fits no share costs no more counts than the others."""
    drafts = [make_draft(index, "4", solution="prose " * 400) for index in range(16)]
    drafts[position]["answer"] = "9" * 4000
    counter = CountBy(num_bytes)
    await pack(numbered(drafts), 1024, counter)
    assert counter.asked <= 24 * 16 + 16


async def test_a_huge_answer_does_not_expel_the_other_drafts():
    """The draft that cannot keep its answer goes, not those that can."""
    drafts = [make_draft(index, "4", solution="prose " * 400) for index in range(8)]
    drafts[0]["answer"] = "9" * 4000
    workspace = await pack(numbered(drafts), 1024, CountBy(num_bytes))
    assert set(workspace["sources"]) >= set(range(1, 8))


async def test_entries_that_fit_are_joined_as_they_are():
    """Titles above, a blank line between; nothing is cut that need not be."""
    entries = [
        draft_entry(make_draft(3, "4", solution="It is 4."), title="Attempt 1:"),
        Entry("A note.", sources=(1, 2)),
    ]
    workspace = await pack(entries, 64, CountBy(num_words))
    assert workspace == {
        "text": "Attempt 1:\nIt is 4.\n\nA note.",
        "tokens": 7,
        "estimated": False,
        "sources": [3, 1, 2],
    }


async def test_short_entries_stay_whole_beside_long_ones():
    """The long entries get what short ones leave of their shares."""
    entries = [
        draft_entry(make_draft(0, "1", solution="long " * 500)),
        draft_entry(make_draft(1, "2", solution="A short one.")),
    ]
    workspace = await pack(entries, 100, CountBy(num_words))
    assert "A short one." in workspace["text"]
    assert workspace["text"].count("long") > 60


async def test_the_last_entries_go_when_shares_get_too_small():
    """A workspace of 64 tokens does not hold 32 crumbs."""
    drafts = [make_draft(index, str(index), solution="prose " * 100) for index in range(32)]
    workspace = await pack(numbered(drafts), 64, CountBy(num_words))
    assert 1 <= len(workspace["sources"]) < 8
    assert workspace["sources"][0] == 0


async def test_no_entries_make_an_empty_workspace():
    """The next calls then see the problem alone."""
    for entries in ([], [Entry("  \n ")]):
        workspace = await pack(entries, 64, CountBy(num_words))
        assert (workspace["text"], workspace["tokens"], workspace["sources"]) == ("", 0, [])


async def test_a_workspace_measured_by_the_estimate_is_marked():
    """The workspace says that its length is an estimate."""
    counter = CountBy(LENGTHS["estimate"], source="estimate")
    assert (await pack([Entry("Some notes.")], 64, counter))["estimated"] is True


async def test_an_overflow_is_an_error_and_never_a_long_workspace():
    """A counter that contradicts itself raises: no workspace above kappa is returned."""
    grown = iter([10, 100])
    with pytest.raises(WorkspaceOverflowError, match="workspace has 100 tokens, kappa allows 64"):
        await pack([Entry("Some notes.")], 64, CountBy(lambda text: next(grown)))


@given(kappa=st.integers(16, 64), size=st.integers(1, 5000))
async def test_a_single_draft_uses_the_room_it_has(kappa, size):
    """A cut leaves no more than a fifth of the bound unused."""
    draft = make_draft(0, None, solution="x" * size)
    workspace = await pack([draft_entry(draft)], kappa, CountBy(every(2)))
    assert workspace["tokens"] >= min(0.8 * kappa, size / 2)

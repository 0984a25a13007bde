"""How each distiller makes a workspace out of a round of drafts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.distill import DISTILLERS, Distiller, one_call
from pdr_graph.distill.notes import words_of
from pdr_graph.distill.selection import candidates, picked
from pdr_graph.distill.workspace import Entry, pack
from pdr_graph.errors import CallError
from pdr_graph.llm.tokens import estimate_tokens
from tests.fakes import (
    CountBy,
    drafts_with,
    make_draft,
    make_step,
    num_words,
    odd_texts,
    prompts_of,
)

PER_SAMPLE = {"random_k", "top_k_per_sample"}
FREE = {"random_k", "latest", "answers", "consensus", "evidence", "contested", "tail"}
FREE |= {"none", "trusted"}


async def distil(name: str, step) -> list[list[Entry]]:
    return [list(entries) for entries in await DISTILLERS[name].distil(step)]


def sources_of(entries: list[Entry]) -> list[int]:
    return [source for entry in entries for source in entry.sources]


def seen_in(prompt: str, drafts) -> list[int]:
    """Return the indices of the drafts that a prompt shows, in the order in which it does."""
    places = {draft["index"]: prompt.find(draft["solution"]) for draft in drafts}
    return sorted((index for index in places if places[index] >= 0), key=places.__getitem__)


# ------------------------------------------------------------------------------ all of them

rounds = st.lists(st.none() | st.integers(1, 4).map(str), min_size=1, max_size=9)
replies = st.sampled_from(["Best: 2", "Best: 3, 1, 2", "no line", "", "<think>Best: 1", "Best: 99"])


@pytest.mark.parametrize("name", sorted(DISTILLERS))
@given(answers=rounds, k=st.integers(1, 5), next_width=st.integers(1, 5), reply=replies)
async def test_it_makes_as_many_workspaces_as_are_read_and_no_more_calls_than_planned(
    name, answers, k, next_width, reply
):
    """One shared workspace or one for each next draft, of drafts that exist, each once."""
    drafts = drafts_with(*answers)
    step = make_step(drafts, [reply], k=k, next_width=next_width, distiller=name)
    made = await distil(name, step)
    assert len(made) == (next_width if name in PER_SAMPLE else 1)
    assert len(prompts_of(step)) <= DISTILLERS[name].max_calls(len(drafts), next_width, k)
    assert step.ask.meter.row()["calls"] == len(prompts_of(step))
    for entries in made:
        sources = sources_of(entries)
        assert len(set(sources)) == len(sources)
        assert sources or name in {"none", "trusted"}
        assert set(sources) <= set(range(len(drafts)))


@pytest.mark.parametrize("name", sorted(DISTILLERS))
async def test_the_same_seed_makes_the_same_workspaces(name):
    """A step that is run again after a kill asks and draws the same."""

    async def run(seed: int):
        drafts = drafts_with("1", "2", "3", None, "1", "2")
        step = make_step(drafts, ["Best: 2"], next_width=3, seed=seed, distiller=name)
        return await distil(name, step), prompts_of(step)

    assert await run(5) == await run(5)


@pytest.mark.parametrize("name", ["random_k", "answers", "tournament", "top_k_per_sample"])
async def test_another_seed_draws_otherwise(name):
    """Random draws depend on the run's seed, not on the process."""

    async def run(seed: int):
        step = make_step(
            drafts_with(*"123456789"), ["Best: 2"], next_width=3, seed=seed, distiller=name
        )
        return await distil(name, step), prompts_of(step)

    runs = [await run(seed) for seed in range(4)]
    assert any(each != runs[0] for each in runs[1:])


@pytest.mark.parametrize("name", sorted(DISTILLERS))
@given(texts=st.lists(odd_texts, min_size=1, max_size=4), kappa=st.integers(16, 80))
async def test_whatever_the_drafts_hold_its_workspaces_fit(name, texts, kappa):
    """From drafts to workspace, the bound is kept."""
    drafts = [make_draft(n, "4", solution=text) for n, text in enumerate(texts)]
    step = make_step(drafts, ["a note " * 50], kappa=kappa, distiller=name, next_width=2)
    for entries in await distil(name, step):
        workspace = await pack(entries, kappa, step.counter)
        assert workspace["tokens"] <= kappa


@pytest.mark.parametrize("name", sorted(DISTILLERS))
async def test_the_problem_comes_first_in_every_call(name):
    """The calls of a run share a prefix, which the server caches."""
    step = make_step(drafts_with(*"12345"), ["Best: 1"], distiller=name)
    await distil(name, step)
    assert all(prompt.startswith(f"{step.problem}\n") for prompt in prompts_of(step))


@pytest.mark.parametrize("name", sorted(set(DISTILLERS) - FREE))
async def test_a_call_that_fails_is_an_error(name):
    """The error ends the step: no half distilled round goes on, and the run can be resumed."""
    step = make_step(drafts_with(*"12345"), [ValueError("gone")], distiller=name)
    with pytest.raises(CallError, match="gone"):
        await distil(name, step)


@pytest.mark.parametrize("num_drafts", [2, 8, 16, 32])
async def test_a_prompt_of_candidates_fits_the_models_window(num_drafts):
    """However many drafts there are, prompt and completion together stay within the window."""
    drafts = [make_draft(n, "4", solution="prose " * 2000) for n in range(num_drafts)]
    step = make_step(
        drafts,
        ["notes"],
        window=2048,
        max_tokens=512,
        kappa=256,
        counter=CountBy(estimate_tokens),
    )
    await distil("summary", step)
    assert estimate_tokens(prompts_of(step)[0]) + 512 <= 2048


async def test_a_bare_function_is_planned_as_one_call():
    """A user's own distiller is a function; what it may cost is then one call."""

    async def mine(step):
        return [[Entry("x")]]

    assert Distiller(mine).max_calls(16, 8, 2) == one_call(16, 8, 2) == 1


# ------------------------------------------------------------------------------ each of them


async def test_summary_lets_the_models_notes_stand_for_all_drafts():
    """One call reads every draft; its notes are the workspace, the tally its last line."""
    drafts = drafts_with("1", "2", "1")
    step = make_step(drafts, ["<think>hm</think>They differ."])
    assert await distil("summary", step) == [
        [Entry("They differ.", "Answers reached: 1 (2 of 3); 2 (1 of 3)", (0, 1, 2))]
    ]
    (prompt,) = prompts_of(step)
    assert seen_in(prompt, drafts) == [0, 1, 2]


async def test_summary_asks_for_fewer_words_than_kappa_holds_tokens():
    """The model is told the bound in words, with room to spare."""
    step = make_step(drafts_with("1"), ["x"], kappa=1000)
    await distil("summary", step)
    assert "at most 600 words" in prompts_of(step)[0]
    assert all(words_of(tokens) <= tokens for tokens in range(16, 5000))


@pytest.mark.parametrize("reply", ["", "<think>and so on", "  \n"])
async def test_an_empty_summary_is_replaced_by_the_most_agreed_drafts(reply):
    """The run has a note that says so."""
    step = make_step(drafts_with("1", "2", None, "2"), [reply])
    (entries,) = await distil("summary", step)
    assert sources_of(entries) == [1, 3, 0, 2]
    assert step.notes == [
        "round 1: the model wrote no summary; the most agreed drafts stand in for it"
    ]


async def test_top_k_admits_the_named_drafts_best_first():
    """One call, one pick, shared by the whole next round."""
    drafts = drafts_with("1", "2", "3", "4")
    step = make_step(drafts, ["The third and the first hold.\nBest: 3, 1"], k=2, next_width=8)
    (entries,) = await distil("top_k", step)
    assert sources_of(entries) == [2, 0]
    assert [entry.title for entry in entries] == ["Attempt 1:", "Attempt 2:"]
    assert [entry.keep for entry in entries] == ["Final answer: 3", "Final answer: 1"]
    assert len(prompts_of(step)) == 1
    assert "Which 2 of them" in prompts_of(step)[0]


async def test_top_k_takes_no_more_than_k():
    """Picks beyond k are ignored."""
    step = make_step(drafts_with("1", "2", "3", "4"), ["Best: 4, 3, 2, 1"], k=2)
    (entries,) = await distil("top_k", step)
    assert sources_of(entries) == [3, 2]


@pytest.mark.parametrize(("reply", "sources"), [("no line", [1, 3]), ("Best: 3", [2, 1])])
async def test_top_k_is_completed_by_agreement(reply, sources):
    """Where the `Best:` line is missing or short, the most agreed drafts complete the pick."""
    step = make_step(drafts_with("1", "2", "3", "2"), [reply], k=2)
    (entries,) = await distil("top_k", step)
    assert sources_of(entries) == sources


@pytest.mark.parametrize("name", ["top_k", "top_k_per_sample"])
async def test_a_pick_among_k_needs_no_call(name):
    """With at most k drafts all enter: there is nothing to choose."""
    step = make_step(drafts_with("1", "2"), k=2, next_width=3)
    made = await distil(name, step)
    assert [sorted(sources_of(entries)) for entries in made] == [[0, 1]] * len(made)
    assert prompts_of(step) == []


async def test_top_k_per_sample_reads_its_pick_in_the_order_it_was_shown():
    """Each next draft gets a pick of its own, over candidates in another order."""
    drafts = drafts_with("1", "2", "3", "4", "5")
    step = make_step(drafts, ["Best: 2"], k=1, next_width=4)
    made = await distil("top_k_per_sample", step)
    shown = [seen_in(prompt, drafts) for prompt in prompts_of(step)]
    assert len({tuple(order) for order in shown}) > 1
    assert [sources_of(entries) for entries in made] == [[order[1]] for order in shown]


async def test_random_k_draws_anew_for_each_next_draft():
    """Without replacement within one workspace, and without a call."""
    step = make_step(drafts_with(*"12345678"), k=3, next_width=6)
    made = [sources_of(entries) for entries in await distil("random_k", step)]
    assert all(len(set(sources)) == 3 for sources in made)
    assert len({tuple(sources) for sources in made}) > 1
    assert prompts_of(step) == []


async def test_random_k_is_fair():
    """Over many draws each draft enters about as often as any other."""
    step = make_step(drafts_with(*"1234"), k=2, next_width=400)
    made = [sources_of(entries) for entries in await distil("random_k", step)]
    counts = [sum(index in sources for sources in made) for index in range(4)]
    assert all(150 < count < 250 for count in counts)


async def test_latest_admits_the_previous_answer_and_nothing_else():
    """Sequential refinement reads one draft, without a title."""
    drafts = drafts_with("1", "2")
    (entries,) = await distil("latest", make_step(drafts))
    assert entries == [Entry(drafts[1]["solution"], "Final answer: 2", (1,))]


async def test_critique_admits_the_draft_with_its_flaws():
    """One call lists them; draft and flaws are read together."""
    drafts = drafts_with("1", "2")
    step = make_step(drafts, ["Step 2 does not follow."])
    (entries,) = await distil("critique", step)
    assert entries == [
        Entry(drafts[1]["solution"], "Final answer: 2", (1,), "Attempt:"),
        Entry("Step 2 does not follow.", title="Its flaws:"),
    ]
    assert seen_in(prompts_of(step)[0], drafts) == [1]


async def test_a_critique_that_says_nothing_leaves_the_draft():
    """Sequential refinement goes on without it."""
    (entries,) = await distil("critique", make_step(drafts_with("1"), ["<think>hm"]))
    assert sources_of(entries) == [0]
    assert len(entries) == 1


async def test_answers_admits_what_each_draft_concludes_shuffled():
    """The last paragraph of every draft, in an order that no position favours."""
    drafts = drafts_with(*"123456")
    step = make_step(drafts)
    (entries,) = await distil("answers", step)
    order = list(range(6))
    random.Random(0).shuffle(order)
    assert sources_of(entries) == order != sorted(order)
    assert entries[0].text == f"The answer is \\boxed{{{order[0] + 1}}}."
    assert prompts_of(step) == []


@pytest.mark.parametrize(
    ("solution", "answer", "text"),
    [
        ("So it is 4.\n\nCheck: 2 + 2.", "4", "Check: 2 + 2.\nFinal answer: 4"),
        ("We find 4.\n\nThere are 14 trees.", "4", "There are 14 trees.\nFinal answer: 4"),
        ("Reasons.\n\nHence x = 4.", "4", "Hence x = 4."),
        (
            "Reasons.\n\nHence \\boxed{\\frac{1}{2}}.",
            "\\frac{1}{2}",
            "Hence \\boxed{\\frac{1}{2}}.",
        ),
        ("One paragraph alone.", None, "One paragraph alone."),
    ],
)
async def test_a_conclusion_states_its_answer(solution, answer, text):
    """Where the last paragraph does not name it, a line is added; 4 is not in 14."""
    (entries,) = await distil("answers", make_step([make_draft(0, answer, solution=solution)]))
    assert entries[0].text == text


async def test_consensus_admits_the_tally_and_one_draft_for_each_answer():
    """The k most common answers, each with its first draft; no call."""
    drafts = drafts_with("1", "2", "2", "3", "3", "3")
    step = make_step(drafts, k=2)
    (entries,) = await distil("consensus", step)
    tally = "Answers reached: 3 (3 of 6); 2 (2 of 6); 1 (1 of 6)"
    assert entries[0] == Entry(tally, tally)
    assert [entry.title for entry in entries[1:]] == [
        "An attempt that reaches 3 (3 do):",
        "An attempt that reaches 2 (2 do):",
    ]
    assert sources_of(entries) == [3, 1]
    assert prompts_of(step) == []


async def test_consensus_without_any_answer_admits_k_drafts():
    """Without answers there is no tally: the first k drafts enter."""
    (entries,) = await distil("consensus", make_step(drafts_with(None, None, None), k=2))
    assert entries[0].text == "No attempt reached a final answer."
    assert sources_of(entries) == [0, 1]


async def test_a_tournament_plays_pairs_until_k_are_left():
    """Eight drafts, two left: six matches, four and then two side by side."""
    step = make_step(drafts_with(*"12345678"), ["Best: 1"], k=2)
    (entries,) = await distil("tournament", step)
    assert len(entries) == 2
    assert len(prompts_of(step)) == 6
    assert all(
        "<candidate 2>" in prompt and "<candidate 3>" not in prompt for prompt in prompts_of(step)
    )


async def test_the_winner_of_a_match_goes_on():
    """The one that the reply names, and the first where it names neither."""
    for reply, winner in (("Best: 2", 1), ("Best: 1", 0), ("both", 0), ("Best: 7", 0)):
        drafts = drafts_with("1", "2")
        step = make_step(drafts, [reply], k=1)
        (entries,) = await distil("tournament", step)
        assert sources_of(entries) == [seen_in(prompts_of(step)[0], drafts)[winner]]


@given(width=st.integers(1, 20), k=st.integers(1, 6))
async def test_a_tournament_makes_exactly_the_calls_that_were_planned(width, k):
    """Each call takes one draft out."""
    step = make_step(drafts_with(*["1"] * width), ["Best: 1"], k=k)
    (entries,) = await distil("tournament", step)
    assert len(entries) == min(width, k)
    assert len(prompts_of(step)) == DISTILLERS["tournament"].max_calls(width, 1, k)


# ------------------------------------------------------------------------------ reading a pick


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        ("Best: 3, 1", [3, 1]),
        ("best: 3 1", [3, 1]),
        ("**Best:** 2", [2]),
        ("Best: **2**, **4**", [2, 4]),
        ("Best: [1, 2]", [1, 2]),
        ("Best - 4.", [4]),
        ("Best: 1\nBest: 2", [2]),
        ("Best: 2, 2, 2", [2]),
        ("Best: 0, 5, 4", [4]),
        ("Best: 3\n\n1 of them is wrong", [3]),
        ("The best of them is hard to tell", []),
        ("", []),
        ("Best:", []),
        ("Best: none", []),
    ],
)
def test_the_last_line_of_choice_is_read(reply, numbers):
    """Any markup is read; unknown and repeated numbers are ignored."""
    assert [position + 1 for position in picked(reply, 4)] == numbers


@given(reply=odd_texts | st.text("Best: ,0123456789\n*", max_size=200), count=st.integers(0, 9))
def test_a_pick_is_always_of_candidates(reply, count):
    """Whatever the model writes, every position is one of `count`, and none comes twice."""
    positions = picked(reply, count)
    assert len(set(positions)) == len(positions)
    assert all(0 <= position < count for position in positions)


def test_a_pick_is_read_in_no_time_out_of_a_million_characters():
    """A long, repetitive reply is read in no time."""
    for text in ("Best: " * 170_000, "Best: " + "1" * 10**6, "best" + " " * 10**6, "1, " * 10**6):
        assert picked(text, 4) in ([], [0])


async def test_candidates_are_numbered_and_cut_to_their_limit():
    """A long draft keeps its answer; a short one stays as it is."""
    drafts = [make_draft(4, "7", solution="word " * 500), make_draft(6, "8", solution="Short.")]
    step = make_step(drafts, counter=CountBy(num_words), solution_tokens=20)
    first, second = (await candidates(step, drafts)).split("\n\n<candidate 2>\n")
    assert first.startswith("<candidate 1>\nword word")
    assert first.endswith("[...]\nFinal answer: 7\n</candidate 1>")
    assert num_words(first) <= 20 + 4
    assert second == "Short.\n</candidate 2>"

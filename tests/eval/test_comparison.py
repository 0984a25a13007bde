"""Where answers are won and lost, what a vote attains, and the plots."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdr_graph.answers import answer_kind
from pdr_graph.eval.comparison import compare
from pdr_graph.eval.comparison_page import (
    FEW_PROBLEMS,
    comparison_page,
    plot,
    side_by_side,
    too_few,
)
from pdr_graph.eval.decomposition import (
    CORRECT,
    Admitted,
    Outcome,
    anchoring,
    decompose,
    outcome_of,
)
from pdr_graph.eval.stats import IntervalOptions
from pdr_graph.eval.summary import arms_of, matched_vote
from tests.eval.recorded import draft, recorded, sample, workspace

MATH = answer_kind("math")
ANSWERS = st.sampled_from(["7", "8", "9", None])


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, Outcome.CORRECT_ALONE),
        ({"answer": "8"}, Outcome.WRONG_ALONE),
        ({"drafts": [draft(0, "7"), draft(1, "7")]}, Outcome.CORRECT_WITH_MAJORITY),
        (
            {"drafts": [draft(0, "8"), draft(1, "8"), draft(2, "7")]},
            Outcome.CORRECT_AGAINST_MAJORITY,
        ),
        ({"drafts": [draft(0, "8")]}, Outcome.CORRECT_WITHOUT_DRAFT),
        ({"answer": "8", "drafts": [draft(0, "8")]}, Outcome.NO_CORRECT_DRAFT),
        (
            {"answer": "8", "drafts": [draft(0, "7")], "workspaces": [workspace(False)]},
            Outcome.LOST_IN_DISTILLATION,
        ),
        (
            {"answer": "8", "drafts": [draft(0, "7")], "workspaces": [workspace(True)]},
            Outcome.LOST_IN_REFINEMENT,
        ),
        (
            {
                "answer": "8",
                "drafts": [draft(0, "7"), draft(0, "8", round_number=2)],
                "workspaces": [workspace(True), workspace(False, 2)],
            },
            Outcome.LOST_IN_REDRAFTING,
        ),
        ({"answer": "8", "drafts": [draft(0, "7"), draft(1, "8")]}, Outcome.LOST_IN_CHOICE),
        ({"answer": "8", "reason": "timeout"}, Outcome.UNJUDGED),
        ({"answer": None, "reason": "failed"}, Outcome.FAILED),
    ],
    ids=str,
)
async def test_each_loss_has_its_place(fields, outcome):
    """A loss is placed after the last stage that held a correct answer."""
    assert await outcome_of(sample(**fields), MATH) is outcome


ROUNDS = [
    draft(0, "7"),
    draft(1, "7"),
    draft(0, "8", round_number=2),
    draft(1, None, round_number=2),
]


@pytest.mark.parametrize(
    ("fields", "pooled", "outcome"),
    [
        ({"drafts": ROUNDS}, True, Outcome.CORRECT_WITH_MAJORITY),
        ({"drafts": ROUNDS}, False, Outcome.CORRECT_AGAINST_MAJORITY),
        ({"drafts": ROUNDS, "answer": "8", "finish": "vote"}, True, Outcome.LOST_IN_CHOICE),
        ({"drafts": ROUNDS, "answer": "8", "finish": "vote"}, False, Outcome.LOST_IN_DISTILLATION),
        ({"drafts": ROUNDS, "answer": "8", "finish": "refine"}, True, Outcome.LOST_IN_DISTILLATION),
    ],
    ids=str,
)
async def test_where_rounds_vote_together_every_draft_counts(fields, pooled, outcome):
    """No workspace lies between them, so a correct draft of any round is lost in the vote."""
    assert await outcome_of(sample(**fields), MATH, pooled=pooled) is outcome


@st.composite
def samples(draw):
    """Return a sample of any shape that a run may record."""
    rounds = draw(st.integers(0, 3))
    drafts = [
        draft(index, draw(ANSWERS), round_number=number)
        for number in range(1, rounds + 1)
        for index in range(draw(st.integers(1, 3)))
    ]
    spaces = [workspace(draw(st.booleans()), number) for number in range(1, rounds + 1)]
    reason = draw(st.sampled_from([None, None, None, "timeout", "failed", "truncated"]))
    made = sample(
        answer=draw(ANSWERS), drafts=drafts, workspaces=draw(st.sampled_from([spaces, []]))
    )
    if reason:
        made |= {"reason": reason, "correct": False}
    return made


@given(made=st.lists(samples(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
async def test_the_classes_sum_to_the_whole(made, tmp_path_factory):
    """Every sample has one class, and only correct samples have a correct one."""
    for number, each in enumerate(made):
        each["sample"] = number
    run = recorded(tmp_path_factory.mktemp("run"), made, num_samples=len(made))
    (arm,) = arms_of([run])
    found = await decompose(arm)
    assert found.num_samples == len(made)
    assert sum(found.counts[each] for each in CORRECT) == sum(each["correct"] for each in made)


async def test_anchoring_tells_what_the_last_workspace_admitted(tmp_path):
    """It also counts the wrong answers that were copied from it."""
    drafts = [draft(0, "7"), draft(1, "8")]
    made = [
        sample(number=0, drafts=drafts, workspaces=[workspace(True, sources=[0])]),
        sample(number=1, answer="8", drafts=drafts, workspaces=[workspace(False, sources=[1])]),
        sample(number=2, answer="9", drafts=drafts, workspaces=[workspace(True, sources=[0, 1])]),
    ]
    (arm,) = arms_of([recorded(tmp_path / "run", made, num_samples=3)])
    rows = {row.admitted: row for row in await anchoring(arm, 0.95)}
    assert {admitted: row.accuracy.value for admitted, row in rows.items()} == {
        Admitted.CORRECT: 1.0,
        Admitted.MIXED: 0.0,
        Admitted.WRONG: 0.0,
    }
    assert (rows[Admitted.WRONG].num_copied, rows[Admitted.MIXED].num_copied) == (1, 0)


async def test_a_vote_of_as_many_tokens_is_drawn_from_the_first_drafts(tmp_path):
    """Two drafts cost half of B_total, so it pays for four: the whole pool."""
    drafts = [draft(0, "7"), draft(1, "7")]
    made = [
        sample(number=0, answer="8", drafts=drafts),
        sample(number=1, answer="8", drafts=[draft(0, "8"), draft(1, "7")]),
    ]
    (arm,) = arms_of([recorded(tmp_path / "run", made, num_samples=2)])
    found = await matched_vote(arm, IntervalOptions())
    assert (found.num_drafts, found.num_short) == (4.0, 0)
    assert (found.accuracy.value, found.vote.value, found.best.value) == (0.0, 1.0, 1.0)


@pytest.mark.asyncio
@pytest.mark.parametrize("costs", [(1000, 1030), (1000, 1900), (620, 2900), (40, 90_000)])
async def test_an_axis_of_cost_has_several_labels_and_not_too_many(costs, tmp_path):
    """Whatever range it covers, it has two to eight labels."""
    samples = [
        sample(arm, f"p{index}", b_total=cost + index)
        for arm, cost in zip(("pdr", "majority"), costs, strict=True)
        for index in range(3)
    ]
    figure = plot(await compare([recorded(tmp_path / "run", samples)]), "b_total")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 8


def whiskers(figure) -> list[tuple[float, float, float]]:
    """The vertical whiskers of a plot: x, low, high."""
    [axes] = figure.axes
    lines = [line for each in axes.containers for line in each.lines[2]]
    paths = [path for line in lines for path in line.get_paths()]
    ends = [(*path.vertices[0], *path.vertices[1]) for path in paths]
    return [(x0, y0, y1) for x0, y0, x1, y1 in ends if x0 == x1 and y0 != y1]


@pytest.mark.parametrize("what", ["b_seq", "b_total"])
async def test_arms_of_equal_cost_stand_side_by_side_with_whole_whiskers(tmp_path, what):
    """No whisker covers another, and the axes have room for all of each."""
    made = [
        sample(arm, f"p{n}", answer="7" if n % part else "8")
        for arm, part in (("pdr", 3), ("majority", 2), ("sr", 1))
        for n in range(6)
    ]
    arms = ("pdr", "majority", "sr")
    found = await compare([recorded(tmp_path / "run", made, arms=arms)])
    figure = plot(found, what)
    [axes] = figure.axes
    shown = whiskers(figure)
    places = sorted(x for x, _, _ in shown)
    assert len(set(places)) == len(places) >= 2
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for x, low, high in shown:
        assert left < x < right
        assert bottom < low <= high < top
    assert bottom < 0 < 100 < top


@given(st.lists(st.floats(1, 1e7), max_size=8))
def test_what_is_side_by_side_keeps_its_order(costs):
    """Every shift is small, and costs that differ much are not shifted."""
    moved = [cost * shift for cost, shift in zip(costs, side_by_side(costs), strict=True)]
    order = sorted(range(len(costs)), key=costs.__getitem__)
    assert all(moved[a] <= moved[b] * (1 + 1e-9) for a, b in pairwise(order))
    if len(costs) == 1:
        assert moved == costs


async def test_a_plot_of_few_problems_says_so(tmp_path):
    """In its title and on the page; with enough of them it says nothing."""
    for number in (1, 6, FEW_PROBLEMS):
        made = [sample(arm, f"p{n}") for arm in ("pdr", "majority") for n in range(number)]
        found = await compare([recorded(tmp_path / str(number), made)])
        title = plot(found, "b_seq").axes[0].get_title(loc="left")
        assert title == too_few(found)
        assert bool(title) == (number < FEW_PROBLEMS)
        assert ("too few to believe any difference" in comparison_page(found)) == bool(title)

"""The ledger's sums, and the bound on what a run may cost."""

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.budget import (
    TEMPLATE_TOKENS,
    Ledger,
    b_total,
    elapsed_s,
    finish_cost,
    merge_rows,
    round_cost,
    why_not_another_round,
)
from pdr_graph.config import make_config, num_rounds, width_of
from pdr_graph.distill import DISTILLERS
from pdr_graph.extensions import Extensions
from pdr_graph.llm.tokens import estimate_tokens
from pdr_graph.llm.usage import Meter, Spent, Usage
from pdr_graph.nodes.toolbox import why_not_round
from pdr_graph.prompts import VARIABLES
from pdr_graph.state import PDRState
from pdr_graph.types import LedgerRow
from tests.fakes import PROMPTS, CountBy, make_draft, make_row, make_step, prompts_of

SUMS = (
    "calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "failed",
    "aborted",
    "nominal_tokens",
)


def make_bill(num: int, prompt: int, completion: int, failed: bool) -> Spent:
    """Return a call of `num` attempts, whose other numbers follow from these."""
    usage = Usage(prompt, prompt // 3, completion, completion // 2, estimated=num > 1)
    return Spent(
        requests=num + failed,
        usage=[usage] * num,
        failed=failed,
        aborted=num % 2,
        seconds=(prompt + completion) / 8,
        nominal=2 * completion,
    )


bills = st.builds(
    make_bill, st.integers(0, 2), st.integers(0, 999), st.integers(0, 999), st.booleans()
)


@st.composite
def rows_of(draw, step: int = 1, node: str = "drafter", round_number: int = 1) -> LedgerRow:
    """Draw a row as a node makes it: a few turns, each of a few calls side by side."""
    meter = Meter(node, round_number, step)
    for turn in draw(st.lists(st.lists(bills, max_size=2), max_size=2)):
        meter.add(turn)
    return meter.row()


@st.composite
def ledgers(draw) -> list[LedgerRow]:
    """Draw the rows of a run: one node a super-step, its tasks side by side."""
    rows: list[LedgerRow] = []
    for step in range(1, draw(st.integers(1, 5))):
        node = draw(st.sampled_from(["drafter", "distiller", "refiner"]))
        row = rows_of(step=step, node=node, round_number=draw(st.integers(1, 2)))
        rows += merge_rows([], draw(st.lists(row, min_size=1, max_size=3)))
    return functools.reduce(lambda done, row: merge_rows(done, [row]), rows, [])


# ------------------------------------------------------------------------------ merging rows


@given(rows=st.lists(rows_of(), min_size=1, max_size=5), data=st.data())
def test_rows_of_one_step_merge_in_any_order(rows, data):
    """Parallel drafts may end in any order; the ledger is the same."""
    shuffled = data.draw(st.permutations(rows))
    assert merge_rows([], rows) == merge_rows([], shuffled)


@given(a=rows_of(), b=rows_of(), c=rows_of())
def test_merging_is_associative(a, b, c):
    """Whether a saver hands in writes one at a time or together makes no difference."""
    assert merge_rows(merge_rows([a], [b]), [c]) == merge_rows([a], merge_rows([b], [c]))


@given(rows=st.lists(rows_of(), min_size=1, max_size=5))
def test_a_merged_row_has_the_sums_of_its_parts(rows):
    """No call is lost, and none is counted twice."""
    (merged,) = merge_rows([], rows)
    for name in SUMS:
        assert merged[name] == sum(row[name] for row in rows)
    assert merged["estimated"] == any(row["estimated"] for row in rows)


@given(rows=st.lists(rows_of(), min_size=1, max_size=5))
def test_side_by_side_the_longest_counts(rows):
    """The critical path of parallel calls is that of the largest."""
    (merged,) = merge_rows([], rows)
    for name in ("critical_tokens", "critical_nominal", "seconds"):
        assert merged[name] == max(row[name] for row in rows)


@given(row=rows_of())
def test_merging_changes_no_row_that_it_was_given(row):
    """A reducer must leave its arguments alone: they belong to a checkpoint."""
    before = row.copy()
    merge_rows([row], [row])
    assert row == before


def test_rows_of_different_steps_stay_apart_and_in_order():
    """A node that ran twice has two rows, by super-step."""
    second, first = make_row(step=4, calls=1), make_row(step=2, calls=2)
    assert merge_rows([second], [first]) == [first, second]


# ------------------------------------------------------------------------------ sums


@given(rows=ledgers())
def test_b_seq_never_exceeds_b_total(rows):
    """The critical path is part of the run."""
    report = Ledger(tuple(rows)).to_json()
    assert report["b_seq"] <= report["b_total"]
    assert report["b_seq_nominal"] <= report["b_total_nominal"]


@given(rows=ledgers())
def test_the_report_adds_up(rows):
    """Rows per round and node sum to the totals, and those to the prompts and completions."""
    report = Ledger(tuple(rows)).to_json()
    assert report["b_total"] == report["prompt_tokens"] + report["completion_tokens"]
    for name in ("calls", "prompt_tokens", "completion_tokens", "failed", "aborted"):
        assert sum(row[name] for row in report["rows"]) == report[name]
        assert sum(row[name] for row in rows) == report[name]
    assert sum(row["seconds"] for row in report["rows"]) == pytest.approx(elapsed_s(rows))


@given(rows=ledgers())
def test_the_report_has_one_row_per_round_and_node(rows):
    """In the order in which they first ran."""
    keys = [(row["round"], row["node"]) for row in Ledger(tuple(rows)).per_round_and_node()]
    assert keys == list(dict.fromkeys((row["round"], row["node"]) for row in rows))


@given(rows=ledgers())
def test_adding_up_rounds_keeps_the_critical_path(rows):
    """Steps of one node ran one after another, so their critical tokens add."""
    ledger = Ledger(tuple(rows))
    assert Ledger(tuple(ledger.per_round_and_node())).b_seq == ledger.b_seq


def test_a_round_asked_for_again_is_one_row():
    """Drafts owed after a failure are paid for in a later step of the same round."""
    rows = [
        make_row(step=2, calls=16, critical_tokens=50, seconds=2.0),
        make_row(step=4, calls=1, critical_tokens=30, seconds=1.0, estimated=True),
    ]
    (row,) = Ledger(tuple(rows)).per_round_and_node()
    assert (row["calls"], row["critical_tokens"], row["seconds"]) == (17, 80, 3.0)
    assert row["estimated"] is True


def test_a_reported_row_has_the_documented_fields():
    """A program that reads `--json` finds these and no others."""
    (row,) = Ledger((make_row(),)).to_json()["rows"]
    assert list(row) == [
        "round",
        "node",
        "calls",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "failed",
        "aborted",
        "seconds",
        "estimated",
    ]


def test_an_empty_ledger_costs_nothing():
    """A run that has not begun."""
    report = Ledger().to_json()
    assert (report["b_total"], report["b_seq"], report["rows"]) == (0, 0, [])
    assert Ledger().estimated is False


# ------------------------------------------------------------------------------ the bound

budgeted = {
    "widths": st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
    "distiller": st.sampled_from(sorted(DISTILLERS)),
    "kappa": st.integers(16, 500),
    "k": st.integers(1, 5),
    "max_tokens": st.integers(1, 2000),
    "solution_tokens": st.integers(16, 500),
    "verifier": st.sampled_from(["none", "consensus", "judge"]),
}


def worst_run(config, problem_tokens: int, *, max_extra_rounds: int = 0) -> int:
    """Run the plan with every call as dear as it can be, and return B_total."""

    def call(input_tokens: int) -> int:
        return problem_tokens + input_tokens + TEMPLATE_TOKENS + config.max_tokens

    max_calls = DISTILLERS[config.distiller].max_calls
    state = PDRState(
        config=config.model_dump(mode="json"), problem_tokens=problem_tokens, round=0, ledger=[]
    )
    steps = itertools.count(1)

    def charge(tokens: int) -> None:
        state["ledger"].append(make_row(step=next(steps), prompt_tokens=tokens))

    rounds, width = num_rounds(config, max_extra_rounds), 0
    while state["round"] < rounds and why_not_round(state, max_calls, Extensions()) is None:
        state["round"] += 1
        width = width_of(config, state["round"])
        charge(width * call(config.kappa))
        is_last = state["round"] == rounds
        if not (is_last and config.finish in {"vote", "select"}):
            after = 1 if is_last else width_of(config, state["round"] + 1)
            charge(max_calls(width, after, config.k) * call(width * config.solution_tokens))
    if config.finish == "select" and width:
        charge(call(width * config.solution_tokens))
    elif config.finish == "refine" or not width:
        charge(call(config.kappa if width and config.distiller != "none" else 0))
    if config.verifier == "judge":
        charge(call(config.solution_tokens))
    return b_total(state["ledger"])


def least(config, problem_tokens: int) -> int:
    """Return what a run costs at least; a smaller budget is refused at the start."""
    drafts = 0
    if config.finish == "vote":
        drafts = round_cost(
            config, width=config.widths[0], problem_tokens=problem_tokens, distiller_calls=0
        )
    return drafts + finish_cost(config, problem_tokens=problem_tokens)


def limit_of(config, problem_tokens: int, num_paid: int, spare: int) -> int:
    """Return a bound that pays for some rounds, the finish, and little more."""
    max_calls = DISTILLERS[config.distiller].max_calls
    limit = least(config, problem_tokens) + spare
    for number in range(1, min(num_paid, len(config.widths)) + 1):
        width, after = width_of(config, number), width_of(config, number + 1)
        calls = max_calls(width, after, config.k)
        limit += round_cost(
            config, width=width, problem_tokens=problem_tokens, distiller_calls=calls
        )
    return limit


@given(
    fields=st.fixed_dictionaries({**budgeted, "finish": st.sampled_from(["refine", "vote"])}),
    problem_tokens=st.integers(1, 2000),
    num_paid=st.integers(0, 4),
    spare=st.integers(0, 3000),
)
def test_the_dearest_run_stays_within_its_budget(fields, problem_tokens, num_paid, spare):
    """Every prompt and reply as long as allowed, and B_total is still at most the bound."""
    limit = limit_of(make_config(**fields), problem_tokens, num_paid, spare)
    config = make_config(**fields, max_total_tokens=limit)
    assert worst_run(config, problem_tokens) <= limit


@pytest.mark.parametrize("num_paid", [1, 2, 3])
@pytest.mark.parametrize("finish", ["refine", "vote"])
@pytest.mark.parametrize("distiller", sorted(DISTILLERS))
def test_a_budget_that_just_pays_for_some_rounds_is_kept(distiller, finish, num_paid):
    """Every distiller is charged for each of its calls."""
    fields = {"widths": (8, 6, 4), "distiller": distiller, "finish": finish, "k": 2}
    limit = limit_of(make_config(**fields), 100, num_paid, 0)
    config = make_config(**fields, max_total_tokens=limit)
    assert worst_run(config, 100) <= limit


@pytest.mark.parametrize("num_paid", [1, 2])
def test_the_dearest_selection_stays_within_its_budget(num_paid):
    """Where the budget ends the rounds at a wide one, the selection reads all of its drafts."""
    fields = {"widths": (16, 8, 2), "distiller": "random_k", "finish": "select"}
    limit = limit_of(make_config(**fields), 100, num_paid, 0)
    config = make_config(**fields, max_total_tokens=limit)
    assert worst_run(config, 100) <= limit


def test_the_judge_is_paid_for_within_the_budget():
    """A verdict costs a call, which the bound includes like any other."""
    fields = {"widths": (2, 2), "verifier": "judge", "max_tokens": 1000, "kappa": 100}
    rounds = round_cost(make_config(**fields), width=2, problem_tokens=10, distiller_calls=1)
    limit = 2 * rounds + finish_cost(make_config(**fields), problem_tokens=10)
    config = make_config(**fields, max_total_tokens=limit)
    assert worst_run(config, 10) <= limit


@given(
    fields=st.fixed_dictionaries(budgeted),
    problem_tokens=st.integers(1, 2000),
)
def test_a_budget_for_the_dearest_run_is_not_cut_short(fields, problem_tokens):
    """The bound does not ask for more than every planned call could cost together."""
    config = make_config(**fields)
    unbounded = worst_run(config, problem_tokens)
    # The last round's distiller is planned for as many readers as a further round would have.
    slack = round_cost(config, width=12, problem_tokens=problem_tokens, distiller_calls=12)
    config = make_config(**fields, max_total_tokens=unbounded + slack)
    assert worst_run(config, problem_tokens) == unbounded


def test_without_a_bound_every_round_may_start():
    """None is unbounded, whatever was spent."""
    rows = [make_row(prompt_tokens=10**9, seconds=10**6)]
    assert why_not_another_round(make_config(), rows, cost=10**9, reserve=10**9) is None


def test_a_round_that_fits_exactly_may_start():
    """The bound itself may be reached."""
    config = make_config(max_total_tokens=1000)
    rows = [make_row(prompt_tokens=300, completion_tokens=200)]
    assert why_not_another_round(config, rows, cost=400, reserve=100) is None
    assert why_not_another_round(config, rows, cost=401, reserve=100) == (
        "the next round may cost 401 tokens and the final call 100; "
        "500 of max_total_tokens 1000 are spent"
    )


def test_a_deadline_counts_the_round_to_come_as_long_as_the_last():
    """A round is not started that would end too late if it took as long as the one before."""
    config = make_config(deadline_s=10)
    rows = [
        make_row(round=1, step=1, seconds=1.0),
        make_row(round=2, step=2, seconds=3.0),
        make_row(round=2, step=3, node="distiller", seconds=1.0),
    ]
    assert why_not_another_round(config, rows, cost=0, reserve=0) is None
    rows[-1]["seconds"] = 2.0
    assert why_not_another_round(make_config(deadline_s=11), rows, cost=0, reserve=0) == (
        "the next round may take 5.0 s; 6.0 s of deadline_s 11 are gone"
    )


def test_a_vote_costs_nothing_at_the_end():
    """There is no final call to keep tokens back for."""
    assert finish_cost(make_config(finish="vote"), problem_tokens=100) == 0


@pytest.mark.parametrize("template", sorted(VARIABLES))
def test_the_allowance_for_a_prompt_covers_its_fixed_words(template):
    """Even by the conservative estimate; user's templates may be longer."""
    text = PROMPTS.render(template, **dict.fromkeys(VARIABLES[template], ""))
    assert estimate_tokens(text) <= TEMPLATE_TOKENS


@pytest.mark.parametrize("width", [16, 32])
async def test_a_prompt_full_of_candidates_costs_no_more_than_planned(width):
    """What a distiller really asks stays within what `round_cost` keeps for it."""
    drafts = [make_draft(n, "4", solution="prose " * 400) for n in range(width)]
    step = make_step(
        drafts, ["ok"], counter=CountBy(estimate_tokens), solution_tokens=256, max_tokens=512
    )
    await DISTILLERS["summary"].distil(step)
    cost = functools.partial(
        round_cost, step.config, width=width, problem_tokens=step.problem_tokens
    )
    planned = cost(distiller_calls=1) - cost(distiller_calls=0)
    assert estimate_tokens(prompts_of(step)[0]) + 512 <= planned

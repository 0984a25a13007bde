"""One run as a page: a lane for each round, what was kept of it, and what it cost."""

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from pdr_graph.answers import answer_kind, clusters
from pdr_graph.budget import Ledger, elapsed_s
from pdr_graph.page.render import render
from pdr_graph.run_history import RoundView, RunHistory
from pdr_graph.types import Draft, LedgerRow, Workspace

COLORS = 6
"""Different answers that have a colour of their own; rarer ones share one."""


@dataclass(frozen=True, slots=True)
class Share:
    """The drafts of one round that agree on an answer."""

    answer: str
    count: int
    rank: int
    """0 for the most common answer."""


@dataclass(frozen=True, slots=True)
class DraftCard:
    """One draft as it is shown."""

    draft: Draft
    rank: int | None
    """Of its answer; None where it has none."""
    admitted: bool
    """Whether it entered a workspace."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One round."""

    view: RoundView
    cards: list[DraftCard]
    shares: list[Share]
    num_silent: int
    """Finished drafts without an answer, failed ones included."""

    @property
    def owed(self) -> int:
        """Drafts that are not in yet."""
        return self.view.width - len(self.view.drafts)

    @property
    def kept(self) -> list[Workspace]:
        """Workspaces made of its drafts, and not of a solution that was rejected."""
        return [workspace for workspace in self.view.workspaces if workspace["sources"]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A node of the graph in one round, and what its calls cost."""

    node: str
    calls: int
    tokens: int
    seconds: float
    failed: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class Leg:
    """One row of the graph: the nodes of a round in their order, the last ones included."""

    round: int
    """0 where the run has no rounds."""
    stages: list[Stage]
    lane: Lane | None
    """The round's drafts; None where there are none."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What was spent of what."""

    name: str
    spent: int
    limit: int
    meaning: str

    @property
    def percent(self) -> float:
        """Share spent, at most 100."""
        return min(100.0, 100 * self.spent / self.limit) if self.limit else 0.0


async def run_page(past: RunHistory) -> str:
    """Return the page of a run, finished or not."""
    lanes = [await _lane(each, past.config.answer) for each in past.rounds]
    return render(
        "run",
        past=past,
        lanes=lanes,
        legs=_legs(past.ledger, lanes),
        budgets=_budgets(past),
        totals=past.ledger.to_json(),
    )


async def _lane(view: RoundView, kind: str) -> Lane:
    answers = [draft["answer"] if draft["error"] is None else None for draft in view.drafts]
    groups = await clusters(answer_kind(kind), answers)
    rank_of = {index: rank for rank, group in enumerate(groups) for index in group}
    admitted = {index for workspace in view.workspaces for index in workspace["sources"]}
    return Lane(
        view,
        [
            DraftCard(
                draft,
                min(rank_of[position], COLORS - 1) if position in rank_of else None,
                draft["index"] in admitted,
            )
            for position, draft in enumerate(view.drafts)
        ],
        [
            Share(str(answers[group[0]]), len(group), min(rank, COLORS - 1))
            for rank, group in enumerate(groups)
        ],
        len(view.drafts) - sum(map(len, groups)),
    )


def _legs(ledger: Ledger, lanes: list[Lane]) -> list[Leg]:
    lane_of = {lane.view.round: lane for lane in lanes}
    return [
        Leg(number, [_stage(row) for row in rows], lane_of.get(number))
        for number, rows in groupby(ledger.per_round_and_node(), key=itemgetter("round"))
    ]


def _stage(row: LedgerRow) -> Stage:
    return Stage(
        node=row["node"],
        calls=row["calls"],
        tokens=row["prompt_tokens"] + row["completion_tokens"],
        seconds=row["seconds"],
        failed=row["failed"] + row["aborted"],
        estimated=row["estimated"],
    )


def _budgets(past: RunHistory) -> list[Budget]:
    ledger: Ledger = past.ledger
    rows = ledger.rows
    completion = sum(row["completion_tokens"] for row in rows)
    budgets = [
        Budget(
            "completion tokens",
            completion,
            sum(row["nominal_tokens"] for row in rows),
            "allotted to the calls",
        )
    ]
    if past.config.max_total_tokens is not None:
        budgets.append(
            Budget(
                "B_total",
                ledger.b_total,
                past.config.max_total_tokens,
                "tokens allowed by max_total_tokens",
            )
        )
    if past.config.deadline_s is not None:
        seconds, limit = round(elapsed_s(rows)), round(past.config.deadline_s)
        budgets.append(Budget("time", seconds, limit, "seconds allowed by deadline_s"))
    largest = max(
        (workspace["tokens"] for view in past.rounds for workspace in view.workspaces), default=0
    )
    if largest:
        budgets.append(
            Budget("largest workspace", largest, past.config.kappa, "tokens allowed by κ")
        )
    return [each for each in budgets if each.limit]

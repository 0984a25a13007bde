"""Pages of runs and comparisons: one HTML file each, in which no script can run.

A page holds text that a model wrote, which may be hostile. Three things keep it text: every value
is escaped, the page's `Content-Security-Policy` allows no script from anywhere, and no value is
placed in an attribute that a browser follows.

Characters that a reader would not see, or that turn the rest of a line around, are shown as signs.

`run_page` has the page of one run: its graph, each round with drafts and workspaces, and what it
cost. The words of the method are explained where they stand, and in a list at the end.
`eval/comparison_page.py` has the page of a comparison.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pdr_graph.answers import answer_kind, clusters
from pdr_graph.budget import Ledger
from pdr_graph.errors import ConfigError
from pdr_graph.llm.tokens import wellformed
from pdr_graph.run_history import RoundView, RunHistory
from pdr_graph.types import Draft, LedgerRow, Workspace

__all__ = ["render", "run_page", "write_page"]


TERMS = {
    "b_seq": ("B_seq", "Tokens on the longest path: of calls made in parallel the longest counts."),
    "b_total": ("B_total", "Tokens of all calls together, prompts included."),
    "kappa": ("κ (kappa)", "The most tokens that a workspace may have."),
    "round": ("round", "Drafts made in parallel, and the workspace that is made of them."),
    "draft": ("draft", "One attempt at the problem, made without seeing the others of its round."),
    "workspace": (
        "workspace",
        "A short text made of a round's drafts. It is all that the next calls read of them.",
    ),
    "distiller": ("distiller", "What makes a workspace of drafts."),
    "finish": ("finish", "How the solution is made of the last round: a call, a vote or a choice."),
    "verdict": ("verdict", "What a verifier says of the solution: accepted, rejected, undecided."),
}
"""Words of the method: how each is written, and what it means."""

_SIGNS: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **{
        code: f"⟨U+{code:04X}⟩"
        for code in (
            *range(0x80, 0xA0),
            # Those that no reader sees, and those that turn a line around.
            *(0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0x2060, 0xFEFF),
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
        )
    },
}
"""Signs that are shown in place of characters without a visible form."""
_HIDDEN = re.compile("[" + "".join(map(re.escape, map(chr, _SIGNS))) + "]")


def _visible(value: object) -> object:
    """Show control characters of a text as signs; markup of the template itself stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if _HIDDEN.search(value) is None:
        return value
    return value.replace("\r\n", "\n").translate(_SIGNS)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("pdr_graph.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def render(template: str, **values: object) -> str:
    """Return a whole page.

    Args:
        template: Name of a file of `templates`, without its suffix.
        values: What the page shows; text is escaped.
    """
    page = _templates().get_template(f"{template}.html").render(values)
    return wellformed(page)


def write_page(file: Path, text: str) -> None:
    """Write a page; make its folder if there is none.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(file)!r} cannot be written ({error.strerror}); name another file"
        ) from None


COLORS = 6
"""Answers of a round that have a colour of their own; rarer ones share one."""


@dataclass(frozen=True, slots=True)
class Share:
    """The drafts of one round that agree on an answer."""

    answer: str
    count: int
    rank: int
    """0 for the most common answer."""


@dataclass(frozen=True, slots=True)
class DraftCard:
    """One draft of a round."""

    draft: Draft
    rank: int | None
    """Rank of its answer among the round's; None where it has no answer."""
    admitted: bool
    """Whether it entered a workspace."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One round, with its drafts grouped by answer."""

    view: RoundView
    cards: list[DraftCard]
    shares: list[Share]
    num_silent: int
    """Finished drafts without an answer, failed ones included."""

    @property
    def owed(self) -> int:
        """Drafts that have not ended yet."""
        return self.view.width - len(self.view.drafts)

    @property
    def kept(self) -> list[Workspace]:
        """Workspaces made of its drafts; one made of a rejected solution is left out."""
        return [workspace for workspace in self.view.workspaces if workspace["sources"]]


@dataclass(frozen=True, slots=True)
class Leg:
    """One row of the drawn graph: the nodes of a round in their order."""

    round: int
    """0 where the run has no rounds."""
    rows: list[LedgerRow]
    """What each node's calls cost."""
    lane: Lane | None
    """The round with its drafts; None where there are none."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a limit was spent."""

    name: str
    spent: int
    limit: int
    meaning: str
    """Unit and source of the limit, said behind the numbers."""

    @property
    def percent(self) -> float:
        """Percentage spent, at most 100."""
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
        terms=TERMS,
    )


async def _lane(view: RoundView, kind: str) -> Lane:
    answers = [draft["answer"] if draft["error"] is None else None for draft in view.drafts]
    groups = await clusters(answer_kind(kind), answers)
    rank_of = {index: min(rank, COLORS - 1) for rank, group in enumerate(groups) for index in group}
    admitted = {index for workspace in view.workspaces for index in workspace["sources"]}
    cards = [
        DraftCard(draft, rank_of.get(position), draft["index"] in admitted)
        for position, draft in enumerate(view.drafts)
    ]
    shares = [Share(str(answers[group[0]]), len(group), rank_of[group[0]]) for group in groups]
    return Lane(view, cards, shares, num_silent=len(cards) - len(rank_of))


def _legs(ledger: Ledger, lanes: list[Lane]) -> list[Leg]:
    lane_of = {lane.view.round: lane for lane in lanes}
    return [
        Leg(number, list(rows), lane_of.get(number))
        for number, rows in groupby(ledger.per_round_and_node(), key=itemgetter("round"))
    ]


def _budgets(past: RunHistory) -> list[Budget]:
    config, total = past.config, past.ledger.total()
    seconds = round(total["seconds"])
    largest = max((each["tokens"] for view in past.rounds for each in view.workspaces), default=0)
    budgets = [
        Budget(
            "completion tokens",
            total["completion_tokens"],
            total["nominal_tokens"],
            "allotted to the calls",
        ),
        Budget(
            "B_total",
            past.ledger.b_total,
            config.max_total_tokens or 0,
            "tokens allowed by max_total_tokens",
        ),
        Budget("time", seconds, round(config.deadline_s or 0), "seconds allowed by deadline_s"),
        Budget("largest workspace", largest, config.kappa if largest else 0, "tokens allowed by κ"),
    ]
    return [each for each in budgets if each.limit]

"""What the terminal shows of a run: its progress while it runs, its result and ledger after."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from pdr_graph.budget import Ledger
from pdr_graph.cli.live import Bar, LiveDisplay
from pdr_graph.cli.output import Output, Prose, joined, one_line, table_of, unbroken
from pdr_graph.errors import counted
from pdr_graph.events import DOING, DraftEvent, OnEvent, RunEvent, is_event
from pdr_graph.types import Draft, LedgerRow, Verdict

if TYPE_CHECKING:
    from pdr_graph.run import Result

ANSWERS_SHOWN = 4
ANSWER_CHARS = 24

STARTING, DRAFTING = "starting", "drafting"
"""The value of `doing` before the first round or call, and in a round of drafts."""


@dataclass(slots=True)
class RunProgress:
    """How far a run is, by its events."""

    num_rounds: int
    round: int = 0
    width: int | None = None
    """Drafts of this round; None before the first."""
    drafts: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)
    """Answer and error of each draft of this round that is in, by index."""
    tokens: int = 0
    """Prompt and completion tokens of the run so far, calls in flight left out."""
    doing: str = STARTING
    """What the run does now."""
    began: float = field(default_factory=perf_counter)
    round_began: float = field(default_factory=perf_counter)
    silence_s: float = 10.0

    @property
    def seconds(self) -> float:
        """Seconds since this process took up the run."""
        return perf_counter() - self.began

    def continue_from(self, round_number: int, width: int, drafts: Iterable[Draft]) -> None:
        """Take up a round that an earlier process has begun."""
        self.round, self.width = round_number, width
        # A draft without a solution may be asked for again.
        self.drafts = {
            each["index"]: (each["answer"], None) for each in drafts if not each["error"]
        }
        self.doing = DRAFTING if len(self.drafts) < width else "distilling"

    def take(self, event: RunEvent) -> str | None:
        """Keep an event; return a line on it where it is a milestone."""
        if not is_event(event):
            return None
        match event["event"]:
            case "round":
                self.round, self.width, self.drafts = event["round"], event["width"], {}
                self.doing, self.round_began = DRAFTING, perf_counter()
                self.num_rounds = max(self.num_rounds, self.round)
            case "draft":
                return self._draft(event)
            case "workspace":
                self.doing, self.tokens = "distilled", self.tokens + event["spent"]
                count = event["count"]
                if not event["tokens"]:
                    return None  # the next drafts start afresh
                which = f"{count} workspaces, the largest" if count > 1 else "workspace"
                size = counted(event["tokens"], "token")
                return f"round {event['round']}: {which} of {size}"
            case "finish":
                self.doing = DOING.get(event["finish"], event["finish"])
                self.width = None
            case "solution":
                self.doing, self.tokens = "verifying", self.tokens + event["spent"]
            case "verdict":
                self.doing = "done"
                if event["accepted"] is not None:
                    word = "accepted" if event["accepted"] else "rejected"
                    return joined([f"{word} by {event['verifier']}", event["reason"]])
            case "note":
                return f"note: {event['text']}"
        return None

    def _draft(self, event: DraftEvent) -> str | None:
        """Keep a draft; return a line on the round when all of its drafts are in."""
        self.tokens += event["tokens"]
        self.round = event["round"]
        self.drafts[event["index"]] = event["answer"], event["error"]
        if self.width is None or len(self.drafts) < self.width:
            return None
        self.doing = "distilling"
        found = self.answers()
        return f"round {self.round}: " + joined(
            [
                counted(self.width, "draft"),
                f"answers {joined(found)}" if found else "no answers",
                ", ".join(self.losses()),
                f"{perf_counter() - self.round_began:.1f} s",
            ]
        )

    def lines(self) -> list[str]:
        """Say in one line where the run is."""
        where = f"round {self.round} of {self.num_rounds}" if self.round else ""
        drafts = f"{len(self.drafts)} of {counted(self.width, 'draft')} in" if self.width else ""
        spent = counted(self.tokens, "token") if self.tokens else ""
        doing = self.doing if self.doing != DRAFTING else ""
        return [joined([where, drafts, doing, spent, f"{self.seconds:.0f} s"])]

    def bars(self) -> list[Bar]:
        """Return the round with a bar for its drafts."""
        where = f"round {self.round}/{self.num_rounds}" if self.round else ""
        done, width = len(self.drafts), self.width
        label = joined([where, f"{done}/{counted(width, 'draft')}" if width else ""])
        drafting = self.doing == DRAFTING
        return [Bar(label, done, width if drafting else None, "" if drafting else self.doing)]

    def details(self) -> list[list[str]]:
        """Return the answers of this round so far, then what the run has cost."""
        answers = [*self.answers(), *self.losses()] if self.width else []
        if answers:
            answers[0] = f"answers {answers[0]}"
        return [answers, [counted(self.tokens, "token"), f"{self.seconds:.1f} s"]]

    def answers(self) -> list[str]:
        """Return the answers of this round with their counts, the most frequent first."""
        answers = [answer for answer, _ in list(self.drafts.values()) if answer is not None]
        counts = Counter(map(one_line, answers))
        shown = [
            f"{_short(answer)} ×{count}" if count > 1 else _short(answer)
            for answer, count in counts.most_common(ANSWERS_SHOWN)
        ]
        rest = len(counts) - len(shown)
        return [*shown, f"{rest} more"] if rest > 0 else shown

    def losses(self) -> list[str]:
        """Count this round's drafts that have no solution, by reason."""
        counts = Counter(error for _, error in list(self.drafts.values()) if error is not None)
        return [f"{count} {reason}" for reason, count in sorted(counts.items())]


def _short(answer: str) -> str:
    return answer if len(answer) <= ANSWER_CHARS else answer[: ANSWER_CHARS - 1] + "…"


@contextmanager
def shown(output: Output, progress: RunProgress) -> Iterator[OnEvent]:
    """Show a run while the block lasts; yields a function that takes its events."""
    with LiveDisplay(output, progress) as display:

        def take(event: RunEvent) -> None:
            line = progress.take(event)
            if line is not None:
                display.say(line)

        yield take


WIDE = 96
"""Columns of a terminal that has room for every column of the table."""


class LedgerTable:
    """What each node of each round cost, and the sums."""

    def __init__(self, ledger: Ledger, *, seconds: float | None = None) -> None:
        self._ledger = ledger
        self._seconds = seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        columns = _WIDE_COLUMNS if wide else _NARROW_COLUMNS
        rows = self._ledger.per_round_and_node()
        yield table_of(
            columns,
            ((cell(row) for cell in columns.values()) for row in rows),
            text=("node",),
            gap=2 if wide else 1,
        )
        yield Text()
        for name, said in self._ledger.sums(self._seconds):
            yield Text(f"{name:<7}  {said}")
        yield from _by_model(self._ledger)
        if self._ledger.estimated:
            yield Text("~ includes an estimate", "dim")


def _by_model(ledger: Ledger) -> Iterator[Text]:
    """Yield a line on each model where there are several, or prices."""
    rows = ledger.by_model()
    if len(rows) < 2 and not ledger.prices:
        return
    for model, row in rows.items():
        cost = ledger.cost_of(model)
        tokens = f"{_about(row, row['prompt_tokens'])} + {row['completion_tokens']:,} tokens"
        price = "" if cost is None else f"cost {cost:.6f}"
        yield Text(joined([one_line(model), tokens, f"{row['calls']} calls", price]))
    if ledger.cost is not None and len(rows) > 1:
        yield Text(f"cost {ledger.cost:.6f} in all")


def _about(row: LedgerRow, tokens: int) -> str:
    return f"{'~' if row['estimated'] else ''}{tokens:,}"


_WIDE_COLUMNS: Mapping[str, Callable[[LedgerRow], str]] = {
    "round": lambda row: str(row["round"]),
    "node": lambda row: row["node"],
    "calls": lambda row: str(row["calls"]),
    "prompt": lambda row: _about(row, row["prompt_tokens"]),
    "cached": lambda row: f"{row['cached_tokens']:,}",
    "completion": lambda row: _about(row, row["completion_tokens"]),
    "thought": lambda row: f"{row['reasoning_tokens']:,}",
    "failed": lambda row: str(row["failed"]),
    "aborted": lambda row: str(row["aborted"]),
    "seconds": lambda row: f"{row['seconds']:.1f}",
}
_NARROW_COLUMNS: Mapping[str, Callable[[LedgerRow], str]] = {
    "r": lambda row: str(row["round"]),
    "node": lambda row: row["node"],
    "calls": lambda row: str(row["calls"]),
    "tokens": lambda row: _about(row, row["prompt_tokens"] + row["completion_tokens"]),
    "lost": lambda row: str(row["failed"] + row["aborted"]),
    "s": lambda row: f"{row['seconds']:.1f}",
}


def result_parts(result: "Result", look_closer: str | None) -> Iterator[RenderableType]:
    """Yield what to print of a result.

    Args:
        result: The run.
        look_closer: The command that shows more of it; None where the run is not kept.
    """
    is_text = result.config.answer == "text"
    if is_text:  # the solution is the answer, and states no other
        yield from (heading("solution"), Prose(result.solution), Text())
    else:
        yield labelled("answer", answer_text(result.answer))
    if (agreement := result.agreement) is not None:
        agree, drafts = agreement
        yield labelled("agreement", Text(f"{agree} of {counted(drafts, 'draft')}"))
    yield labelled("verdict", verdict_text(result.verdict))
    yield Text()
    if not is_text:
        yield from (heading("solution"), Prose(result.solution), Text())
    yield heading("cost")
    yield LedgerTable(result.ledger, seconds=result.seconds)
    yield Text()
    for note in result.notes:
        yield Text(f"note: {one_line(note)}", "yellow")
    yield unbroken(labelled("thread", Text(one_line(result.thread_id))))
    if look_closer is not None:
        yield unbroken(labelled("look closer", Text(look_closer)))


def heading(text: str) -> Text:
    """Return the heading of a part."""
    return Text(text, "bold")


def labelled(label: str, value: Text) -> Text:
    """Return a label and its value on one line."""
    return Text.assemble((label, "bold"), "  ", value)


def answer_text(answer: str | None) -> Text:
    """Return the answer; a solution without one is said to have none."""
    return Text("none stated", "dim") if answer is None else Text(one_line(answer), "bold green")


def verdict_text(verdict: Verdict) -> Text:
    """Return a verdict in words."""
    if verdict["verifier"] == "none":
        return Text("not judged", "dim")
    words = {True: ("accepted", "green"), False: ("rejected", "red"), None: ("undecided", "yellow")}
    by = f" by {one_line(verdict['verifier'])}"
    reason = one_line(verdict["reason"])
    return Text(*words[verdict["accepted"]]) + Text(f"{by}: {reason}" if reason else by)

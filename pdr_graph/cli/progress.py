"""How far a run is, kept from its events and told in lines and in a short status.

Shows progress on standard error: a live status on a terminal, plain lines elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from pdr_graph.cli.output import Output, joined, one_line
from pdr_graph.types import Draft

ANSWERS_SHOWN = 4
ANSWER_CHARS = 24

STARTING, DRAFTING = "starting", "drafting"
"""What a run does before its first round or call, and in a round of drafts."""

Event = Mapping[str, Any]  # Any: plain data, by the name in "event"


@dataclass(slots=True)
class Progress:
    """What is known of a run that goes on."""

    num_rounds: int
    round: int = 0
    width: int | None = None
    """Drafts of this round; None before the first."""
    drafts: dict[int, Event] = field(default_factory=dict)
    """Those of this round that are in, by index."""
    tokens: int = 0
    """Prompt and completion tokens of the run so far, calls in flight left out."""
    doing: str = STARTING
    """What the run does now."""
    began: float = field(default_factory=perf_counter)
    round_began: float = field(default_factory=perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since this process took up the run."""
        return perf_counter() - self.began

    def continue_from(self, round_number: int, width: int, drafts: Iterable[Draft]) -> None:
        """Take up a round that an earlier process has begun."""
        self.round, self.width = round_number, width
        # A draft without a solution may be asked for again.
        self.drafts = {each["index"]: dict(each) for each in drafts if each["error"] is None}
        self.doing = DRAFTING if len(self.drafts) < width else "distilling"

    def take(self, event: Event) -> str | None:
        """Keep an event; return a line on it where it is a milestone."""
        # A user's own step may write to the same stream, whatever it likes.
        handler = _HANDLERS.get(event.get("event")) if isinstance(event, dict) else None
        if handler is None:
            return None
        self.tokens += event.get("spent", 0)
        line: str | None = handler(self, event)
        return line

    def status(self) -> str:
        """Say in one line where the run is."""
        where = f"round {self.round} of {self.num_rounds}" if self.round else ""
        drafts = f"{len(self.drafts)} of {self.width} drafts in" if self.width else ""
        spent = f"{self.tokens:,} tokens" if self.tokens else ""
        doing = self.doing if self.doing != DRAFTING else ""
        return joined([where, drafts, doing, spent, f"{self.seconds:.0f} s"])

    def answers(self) -> str:
        """Say how often which answer came in this round, the most frequent first."""
        counts = Counter(
            one_line(each["answer"]) for each in self.drafts.values() if each["answer"] is not None
        )
        shown = [
            f"{_short(answer)} ×{count}" if count > 1 else _short(answer)
            for answer, count in counts.most_common(ANSWERS_SHOWN)
        ]
        rest = len(counts) - len(shown)
        return joined([*shown, f"{rest} more" if rest > 0 else ""])

    def losses(self) -> str:
        """Count this round's drafts that have no solution, by reason."""
        counts = Counter(each["error"] for each in self.drafts.values() if each["error"])
        return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))

    def _on_round(self, event: Event) -> None:
        self.round, self.width, self.drafts = event["round"], event["width"], {}
        self.doing, self.round_began = DRAFTING, perf_counter()
        self.num_rounds = max(self.num_rounds, self.round)

    def _on_draft(self, event: Event) -> str | None:
        self.tokens += event["tokens"]
        self.round = event["round"]
        self.drafts[event["index"]] = event
        if self.width is None or len(self.drafts) < self.width:
            return None
        self.doing = "distilling"
        seconds = f"{perf_counter() - self.round_began:.1f} s"
        found = self.answers()
        return f"round {self.round}: " + joined(
            [
                _count(self.width, "draft"),
                f"answers {found}" if found else "no answers",
                self.losses(),
                seconds,
            ]
        )

    def _on_workspace(self, event: Event) -> str:
        many = f"{event['count']} workspaces, the largest" if event["count"] > 1 else "workspace"
        self.doing = "distilled"
        return f"round {event['round']}: {many} of {event['tokens']:,} tokens"

    def _on_finish(self, event: Event) -> None:
        name = str(event["finish"])
        self.doing, self.width = _DOING.get(name, name), None

    def _on_solution(self, event: Event) -> None:
        self.doing = "verifying"

    def _on_verdict(self, event: Event) -> str | None:
        self.doing = "done"
        if event["accepted"] is None:
            return None
        word = "accepted" if event["accepted"] else "rejected"
        return joined([f"{word} by {event['verifier']}", event["reason"]])

    def _on_note(self, event: Event) -> str:
        return f"note: {event['text']}"


_HANDLERS: Mapping[object, Any] = {  # Any: methods that take an event
    "round": Progress._on_round,
    "draft": Progress._on_draft,
    "workspace": Progress._on_workspace,
    "finish": Progress._on_finish,
    "solution": Progress._on_solution,
    "verdict": Progress._on_verdict,
    "note": Progress._on_note,
}
_DOING = {"refine": "refining", "vote": "voting", "select": "selecting"}


def _short(answer: str) -> str:
    return answer if len(answer) <= ANSWER_CHARS else answer[: ANSWER_CHARS - 1] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


HEARTBEAT_S = 10.0
"""Longest silence where lines are all there is."""
REFRESH_PER_S = 8
BAR_CELLS = 24


@asynccontextmanager
async def shown(output: Output, progress: Progress) -> AsyncIterator[Callable[[Event], None]]:
    """Show a run's progress for as long as the block lasts; yields what to give its events to."""

    def take(event: Event) -> None:
        line = progress.take(event)
        if line is not None:
            output.say(line)
            beat.last = perf_counter()

    beat = _Heartbeat(output, progress)
    if output.quiet:
        yield take
    elif output.stderr.is_terminal and not output.stderr.is_dumb_terminal:
        with Live(
            _Status(progress),
            console=output.stderr,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield take
    else:
        task = asyncio.create_task(beat.go_on())
        try:
            yield take
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class _Heartbeat:
    """Says where the run is when nothing else was said for a while."""

    def __init__(self, output: Output, progress: Progress) -> None:
        self.last = perf_counter()
        self._output = output
        self._progress = progress

    async def go_on(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(max(0.1, self.last + HEARTBEAT_S - perf_counter()))
            if perf_counter() - self.last >= HEARTBEAT_S:
                self._output.say(self._progress.status())
                self.last = perf_counter()


class _Status:
    """Three short lines, drawn anew several times a second, so that the seconds tick."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines(options.max_width):
            # A line that wraps would make the status jump.
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line

    def _lines(self, width: int) -> list[Text]:
        progress = self._progress
        first = Text()
        if progress.round:
            first.append(f"round {progress.round}/{progress.num_rounds}", "bold")
        if progress.width:
            first.append(f"  {len(progress.drafts)}/{progress.width} drafts")
        first.append("  " * bool(first))
        if progress.doing == DRAFTING:
            done, of = len(progress.drafts), progress.width or 0
            first.append_text(_bar(done, of, width - first.cell_len))
        else:
            first.append(progress.doing, "cyan")
        lines = [first]
        found = joined([progress.answers(), progress.losses()]) if progress.width else ""
        if found:
            lines.append(Text(f"answers  {found}"))
        lines.append(Text(f"{progress.tokens:,} tokens · {progress.seconds:.1f} s", "dim"))
        return lines


def _bar(done: int, of: int, room: int) -> Text:
    cells = min(BAR_CELLS, of, room)
    if cells < 4:
        return Text()
    full = cells * done // of
    return Text("━" * full, "green") + Text("━" * (cells - full), "bright_black")

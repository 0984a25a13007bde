"""Shows progress on standard error: a live status on a terminal, plain lines elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import perf_counter

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from pdr_graph.cli.output import Output, joined
from pdr_graph.cli.progress import DRAFTING, Event, Progress

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

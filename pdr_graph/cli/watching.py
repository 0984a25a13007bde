"""`pdr-graph inspect --watch`: follow a run that another process carries out."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.text import Text

from checkpoints import RedisSaver
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, joined
from pdr_graph.cli.stores import Saver, open_saver
from pdr_graph.cli.text import one_line
from pdr_graph.run_history import RoundView, RunHistory, history
from pdr_graph.settings import load_settings
from pdr_graph.types import Draft

POLL_S = 0.5
"""Seconds between two looks at the store."""
STOPPED = 1
"""Exit code where the run that was followed stopped before its end."""

_JUDGED = {True: "accepted", False: "rejected", None: "nobody judged"}

Event = dict[str, Any]  # Any: plain JSON data, by the name in "event"


@dataclass(slots=True)
class News:
    """What of a run has been told."""

    told: set[tuple[object, ...]] = field(default_factory=set)

    def of(self, past: RunHistory) -> Iterator[tuple[Event, str]]:
        """Return what is new since the last look: each as data, and as a line."""
        for each in past.rounds:
            yield from self._of_round(each)
        if past.solution is not None and self._first("solution", past.solution["text"]):
            answer = past.solution["answer"]
            yield (
                {"event": "solution", **past.solution},
                joined([f"solution by {past.solution['finish']}", _answer(answer)]),
            )
        if past.verdict is not None and self._first("verdict", str(past.verdict)):
            told = _JUDGED[past.verdict["accepted"]]
            yield (
                {"event": "verdict", **past.verdict},
                joined([f"verdict: {told}", past.verdict["reason"]]),
            )
        for note in past.notes:
            if self._first("note", note):
                yield {"event": "note", "note": note}, f"note: {note}"

    def _of_round(self, each: RoundView) -> Iterator[tuple[Event, str]]:
        if self._first("round", each.round):
            yield (
                {"event": "round", "round": each.round, "width": each.width},
                f"round {each.round}, {each.width} wide",
            )
        for draft in each.drafts:
            # A draft that failed may be asked for again when the run is resumed.
            if self._first("draft", each.round, draft["index"], draft["error"]):
                yield {"event": "draft", **draft}, _draft_line(draft)
        for position, workspace in enumerate(each.workspaces):
            if self._first("workspace", each.round, position):
                name = "workspace" if len(each.workspaces) == 1 else f"workspace {position}"
                about = "~" if workspace["estimated"] else ""
                yield (
                    {"event": "workspace", "round": each.round, **workspace},
                    f"{name}: {about}{workspace['tokens']:,} tokens",
                )

    def _first(self, *key: object) -> bool:
        new = key not in self.told
        self.told.add(key)
        return new


def watch_command(thread_id: str, given: Given, output: Output) -> RunHistory:
    """Tell what a run does until it ends, and return it as it ended.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
        typer.Exit: the run stopped before its end.
    """
    past = asyncio.run(_watch(thread_id, given, output))
    if past.next:
        output.tell(
            f"stopped at {', '.join(past.next)}: no process runs thread {thread_id!r}; "
            "`pdr-graph resume` goes on with it",
            "yellow",
        )
        raise typer.Exit(STOPPED)
    return past


async def _watch(thread_id: str, given: Given, output: Output) -> RunHistory:
    news = News()
    async with open_saver(load_settings(**given), output.say) as saver:
        while True:
            # Asked before the run is read: whoever had left by then had written all that it wrote.
            left = await _nobody_runs(saver, thread_id)
            past = await history(thread_id, checkpointer=saver)
            for event, line in news.of(past):
                if output.json:
                    output.show_json_line(event)
                else:
                    output.show(Text(one_line(line)))
            if left or not past.next:
                _tell_end(past, output)
                return past
            await asyncio.sleep(POLL_S)


async def _nobody_runs(saver: Saver, thread_id: str) -> bool:
    if not isinstance(saver, RedisSaver):
        return True
    known = await saver.thread(thread_id)
    return known is None or known.holder is None


def _tell_end(past: RunHistory, output: Output) -> None:
    ledger = past.ledger
    if output.json:
        output.show_json_line({"event": "end", "next": list(past.next), "ledger": ledger.to_json()})
    elif not past.next:
        output.show(
            Text(f"finished, B_seq {ledger.b_seq:,}, B_total {ledger.b_total:,} tokens", "green")
        )


def _draft_line(draft: Draft) -> str:
    told = _answer(draft["answer"]) if draft["error"] is None else f"{draft['error']}"
    cost = f"{draft['tokens']:,} tokens"
    return joined([f"draft {draft['index']}", told, draft["detail"], cost])


def _answer(answer: str | None) -> str:
    return "no answer" if answer is None else f"answer {answer}"

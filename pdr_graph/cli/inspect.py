"""`pdr-graph inspect`: what happened in a run, round by round.

`pdr-graph inspect --watch`: follow a run that another process carries out.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from pdr_checkpoints import RedisSaver
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, Prose, joined, one_line, plain_table
from pdr_graph.cli.render import LedgerTable, answer_text, heading, labelled, verdict_text
from pdr_graph.cli.store import Saver, open_saver
from pdr_graph.run_history import RoundView, RunHistory, history
from pdr_graph.settings import Settings, load_settings
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


CLIPPED_LINES, INDENT = 6, 2


def inspect_command(
    thread_id: str, given: Given, *, full: bool, watch: bool, page: Path | None, output: Output
) -> None:
    """Show one run, write it as a page, or first follow it to its end.

    Raises:
        ConfigError: the page cannot be written.
        UnknownThreadError: nothing is recorded under this thread.
        typer.Exit: a run that was followed stopped before its end.
    """
    if watch:
        past = watch_command(thread_id, given, output)
    else:
        past = asyncio.run(_read(thread_id, load_settings(**given), output))
    if page is not None:
        from pdr_graph.page import run_page, write_page

        write_page(page, asyncio.run(run_page(past)))
        output.say(f"written: {page}")
    if watch:
        return
    if output.json:
        output.show_json(_plain(past))
    elif page is None:
        output.show(*_parts(past, None if full else CLIPPED_LINES))


async def _read(thread_id: str, settings: Settings, output: Output) -> RunHistory:
    async with open_saver(settings, output.say) as saver:
        return await history(thread_id, checkpointer=saver)


def _plain(past: RunHistory) -> dict[str, Any]:  # Any: plain JSON data
    return {
        "thread_id": past.thread_id,
        "namespace": past.namespace,
        "problem": past.problem,
        "config": past.config.model_dump(mode="json"),
        "record": past.record,
        "rounds": [asdict(each) for each in past.rounds],
        "solution": past.solution,
        "verdict": past.verdict,
        "notes": past.notes,
        "ledger": past.ledger.to_json(),
        "next": list(past.next),
        "updated_at": past.updated_at.isoformat(),
    }


def _parts(past: RunHistory, lines: int | None) -> Iterator[RenderableType]:
    yield labelled("thread", Text(one_line(past.thread_id)))
    if past.namespace:
        yield labelled("inside", Text(one_line(" / ".join(nodes_around(past.namespace)))))
    yield labelled("preset", Text(one_line(past.config.preset)))
    if past.record is not None:
        yield labelled("model", Text(one_line(past.record["model"])))
        yield labelled("tokens", Text(f"counted by {past.record['token_counts']}"))
    yield labelled("state", _state(past))
    yield Text()
    yield heading("problem")
    yield Prose(past.problem, lines, INDENT)
    for each in past.rounds:
        yield Text()
        yield from _round(each, lines)
    if past.solution is not None:
        yield Text()
        yield heading(f"solution by {one_line(past.solution['finish'])}")
        yield Prose(past.solution["text"], lines, INDENT)
        yield labelled("answer", answer_text(past.solution["answer"]))
    if past.verdict is not None:
        yield labelled("verdict", verdict_text(past.verdict))
    for note in past.notes:
        yield Text(f"note: {one_line(note)}", "yellow")
    if past.ledger.rows:
        yield Text()
        yield heading("ledger")
        yield LedgerTable(past.ledger)


def nodes_around(namespace: str) -> list[str]:
    """Return the nodes that a run is inside of, the outermost first."""
    return [part.partition(":")[0] for part in namespace.split("|")]


def _state(past: RunHistory) -> Text:
    if not past.next:
        return Text("finished", "green")
    return Text(f"stopped at {', '.join(past.next)}", "yellow")


def _round(each: RoundView, lines: int | None) -> Iterator[RenderableType]:
    missing = each.width - len(each.drafts)
    yield heading(
        joined([f"round {each.round}", f"{each.width} wide", f"{missing} owed" if missing else ""])
    )
    yield _drafts(each.drafts)
    if lines is None:
        for draft in each.drafts:
            if draft["solution"]:
                yield Text(f"draft {draft['index']}", "bold")
                yield Prose(draft["solution"], None, INDENT)
    for position, workspace in enumerate(each.workspaces):
        name = "workspace" if len(each.workspaces) == 1 else f"workspace {position}"
        about = "~" if workspace["estimated"] else ""
        sources = ",".join(map(str, workspace["sources"]))
        origin = f"from drafts {sources}" if sources else ""
        yield labelled(name, Text(joined([f"{about}{workspace['tokens']:,} tokens", origin])))
        yield Prose(workspace["text"], lines, INDENT)


def _drafts(drafts: list[Draft]) -> Table:
    table = plain_table()
    table.add_column("draft", justify="right", no_wrap=True)
    table.add_column("answer", overflow="fold")
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for draft in drafts:
        table.add_row(
            str(draft["index"]),
            Text("–" if draft["answer"] is None else one_line(draft["answer"])),
            f"{draft['tokens']:,}",
            f"{draft['seconds']:.1f}",
            _flaw(draft),
        )
    return table


def _flaw(draft: Draft) -> Text:
    if draft["error"] is not None:
        return Text(one_line(f"{draft['error']}: {draft['detail']}"), "red")
    return Text("cut by max_tokens", "yellow") if draft["truncated"] else Text()

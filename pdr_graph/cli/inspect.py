"""`pdr-graph inspect`: what happened in a run, round by round; with --watch, while it happens."""

import asyncio
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer
from pdr_checkpoints import RedisSaver
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.commands import InspectCommand
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.output import Output, Prose, joined, one_line, refuse_place, table_of
from pdr_graph.cli.run_display import LedgerTable, answer_text, heading, labelled, verdict_text
from pdr_graph.cli.store import Saver, check_named, named_thread, open_saver
from pdr_graph.run_history import RoundView, RunHistory, history
from pdr_graph.settings import Settings, load_settings
from pdr_graph.types import Draft

POLL_S = 0.5
"""Seconds between two looks at the store."""
CLIPPED_LINES, INDENT = 6, 2

Event = dict[str, Any]  # Any: plain JSON data, by the name in "event"


def inspect_command(command: InspectCommand, output: Output) -> None:
    """Show one run, write it as a page, or first follow it to its end.

    Raises:
        ConfigError: the page cannot be written.
        UnknownThreadError: nothing is recorded under this thread.
        typer.Exit: a run that was followed stopped before its end.
    """
    check_named(command.thread, last=command.last)
    settings = load_settings(**command.storage)
    if command.html is not None:
        refuse_place(command.html, "--html")
    if command.watch:
        past = _followed(command, settings, output)
    else:
        past = asyncio.run(_read(command.thread, settings, output))
    if command.html is not None:
        from pdr_graph.page import run_page, write_page

        write_page(command.html, asyncio.run(run_page(past)))
        output.say(f"written: {command.html}", to_copy=True)
    if command.watch:
        return
    if output.json:
        output.show_json(_plain(past))
    elif command.html is None:
        output.show(*run_parts(past, None if command.full else CLIPPED_LINES))


async def _read(thread: str | None, settings: Settings, output: Output) -> RunHistory:
    async with open_saver(settings, output.say) as saver:
        return await history(await named_thread(saver, thread), checkpointer=saver)


def _plain(past: RunHistory) -> dict[str, Any]:  # Any: plain JSON data
    return {
        "thread_id": past.thread_id,
        "namespace": past.namespace,
        "problem": past.problem,
        "strategy": past.config.strategy,
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


def run_parts(past: RunHistory, lines: int | None) -> Iterator[RenderableType]:
    """Yield what to print of a run.

    Args:
        past: The run.
        lines: Most lines of each text; None shows all.
    """
    yield labelled("thread", Text(one_line(past.thread_id)))
    if past.namespace:
        yield labelled("inside", Text(one_line(" / ".join(nodes_around(past.namespace)))))
    yield labelled("preset", Text(one_line(past.config.strategy)))
    if past.record is not None:
        yield labelled("model", Text(one_line(past.models)))
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
        if past.config.answer != "text":
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
        name, size = _name_and_size(each, position)
        sources = ",".join(map(str, workspace["sources"]))
        origin = f"from drafts {sources}" if sources else ""
        yield labelled(name, Text(joined([size, origin])))
        yield Prose(workspace["text"], lines, INDENT)


def _drafts(drafts: list[Draft]) -> Table:
    rows = [
        (
            str(draft["index"]),
            "–" if draft["answer"] is None else Text(one_line(draft["answer"])),
            f"{draft['tokens']:,}",
            f"{draft['seconds']:.1f}",
            _flaw(draft),
        )
        for draft in drafts
    ]
    return table_of(("draft", "answer", "tokens", "s", ""), rows, text=("answer", ""))


def _flaw(draft: Draft) -> Text:
    if draft["error"] is not None:
        return Text(one_line(f"{draft['error']}: {draft['detail']}"), "red")
    if draft.get("loop"):
        return Text("cut in a loop", "yellow")
    return Text("cut by max_tokens", "yellow") if draft["truncated"] else Text()


def _events_of(past: RunHistory) -> Iterator[tuple[object, Event, str]]:
    """Yield what a run has done so far: a key, the event as data, and a line on it."""
    for each in past.rounds:
        number = each.round
        event: Event = {"event": "round", "round": number, "width": each.width}
        yield ("round", number), event, f"round {number}, {each.width} wide"
        for draft in each.drafts:
            # A draft that failed may be asked for again when the run is resumed.
            key = ("draft", number, draft["index"], draft["error"])
            found = draft["error"] or _answer(draft["answer"])
            facts = [
                f"draft {draft['index']}",
                found,
                draft["detail"],
                f"{draft['tokens']:,} tokens",
            ]
            yield key, {"event": "draft", **draft}, joined(facts)
        for position, workspace in enumerate(each.workspaces):
            name, size = _name_and_size(each, position)
            event = {"event": "workspace", "round": number, **workspace}
            yield ("workspace", number, position), event, f"{name}: {size}"
    if past.solution is not None:
        line = joined([f"solution by {past.solution['finish']}", _answer(past.solution["answer"])])
        yield ("solution", past.solution["text"]), {"event": "solution", **past.solution}, line
    if past.verdict is not None:
        line = f"verdict: {verdict_text(past.verdict).plain}"
        yield ("verdict", str(past.verdict)), {"event": "verdict", **past.verdict}, line
    for note in past.notes:
        yield ("note", note), {"event": "note", "note": note}, f"note: {note}"


def _answer(answer: str | None) -> str:
    return "no answer" if answer is None else f"answer {answer}"


def _name_and_size(each: RoundView, position: int) -> tuple[str, str]:
    workspace = each.workspaces[position]
    name = "workspace" if len(each.workspaces) == 1 else f"workspace {position}"
    return name, f"{'~' if workspace['estimated'] else ''}{workspace['tokens']:,} tokens"


def _followed(command: InspectCommand, settings: Settings, output: Output) -> RunHistory:
    """Print what a run does until it ends, and return it as it ended.

    Raises:
        typer.Exit: the run stopped before its end.
    """
    past = asyncio.run(_watch(command.thread, settings, output))
    if past.next:
        output.tell(
            f"stopped at {', '.join(past.next)}: no process runs thread {past.thread_id!r}; "
            f"`pdr-graph resume {shlex.quote(past.thread_id)}` continues it",
            "yellow",
        )
        raise typer.Exit(FAILED)
    return past


async def _watch(thread: str | None, settings: Settings, output: Output) -> RunHistory:
    printed: set[object] = set()
    async with open_saver(settings, output.say) as saver:
        thread_id = await named_thread(saver, thread)
        while True:
            # Asked before the run is read: a process that had left by then had written everything.
            left = await _nobody_runs(saver, thread_id)
            past = await history(thread_id, checkpointer=saver)
            for key, event, line in _events_of(past):
                if key in printed:
                    continue
                printed.add(key)
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

"""Progress: what is kept of the events, and what is shown of it."""

import asyncio
import io
import re

import pytest
from rich.console import Console

from pdr_graph.cli import progress as display
from pdr_graph.cli.output import Output
from pdr_graph.cli.progress import Progress, shown


def draft(index: int, answer: str | None = "42", error: str | None = None) -> dict[str, object]:
    return {
        "event": "draft",
        "round": 1,
        "index": index,
        "answer": answer,
        "error": error,
        "detail": "",
        "tokens": 100,
        "seconds": 0.1,
    }


EVENTS = [
    {"event": "round", "round": 1, "width": 4},
    draft(0),
    draft(1),
    draft(2, "\x1b[31m7"),
    draft(3, None, "failed"),
    {"event": "workspace", "round": 1, "count": 1, "tokens": 64, "spent": 50, "seconds": 1.0},
    {"event": "finish", "finish": "refine"},
    {"event": "solution", "answer": "42", "spent": 30, "seconds": 1.0},
    {"event": "verdict", "verifier": "judge", "accepted": True, "reason": "sound"},
]


def test_milestones():
    """A round, its workspace and the verdict are lines; what is in between is not."""
    progress = Progress(num_rounds=1)
    lines = [line for line in map(progress.take, EVENTS) if line is not None]
    assert re.sub(r"\d+\.\d s", "1.0 s", lines[0]) == (
        "round 1: 4 drafts · answers 42 ×2 · 7 · 1 failed · 1.0 s"
    )
    assert lines[1:] == ["round 1: workspace of 64 tokens", "accepted by judge · sound"]
    assert progress.tokens == 480


def test_events_of_others_are_passed_over():
    """A user's own step may write to the same stream."""
    progress = Progress(num_rounds=1)
    assert [progress.take(event) for event in ({"mine": 1}, {"event": "mine"}, "text")] == [
        None
    ] * 3


def test_a_resumed_round_goes_on_from_its_drafts():
    """Drafts of the process before count; failed ones are asked for again."""
    progress = Progress(num_rounds=2, tokens=1_000)
    progress.continue_from(1, 4, [draft(0), draft(1, None, "failed")])
    assert progress.status().startswith("round 1 of 2 · 1 of 4 drafts in · 1,000 tokens · ")
    progress.continue_from(1, 2, [draft(0), draft(1)])
    assert "distilling" in progress.status()


@pytest.mark.parametrize("width", [40, 200])
async def test_a_terminal_gets_a_live_status(width):
    """The status fits its terminal, and is wiped at the end; milestones stay."""
    terminal = io.StringIO()
    console = Console(file=terminal, width=width, force_terminal=True, color_system=None)
    async with shown(Output(stderr=console), Progress(num_rounds=2)) as take:
        for event in EVENTS[:4]:
            take(event)
        async with asyncio.timeout(30):
            while "3/4 drafts" not in terminal.getvalue():  # noqa: ASYNC110  # a thread draws it
                await asyncio.sleep(0.02)
        for event in EVENTS[4:]:
            take(event)
    text = terminal.getvalue()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", text)]
    status = [line for line in lines if line.startswith("round 1/2")]
    assert "round 1/2  3/4 drafts" in "\n".join(status)
    assert max(len(line) for line in status) <= width
    assert any(re.match(r"300 tokens · \d+\.", line) for line in lines)
    assert "round 1: workspace of 64 tokens" in lines


async def test_silence_is_broken(monkeypatch, capsys):
    """Where there are only lines, one comes after a while even if nothing happens."""
    monkeypatch.setattr(display, "HEARTBEAT_S", 0.05)
    err = ""
    async with shown(Output(), Progress(num_rounds=2)) as take:
        take(EVENTS[0])
        async with asyncio.timeout(30):
            while len(re.findall(r"round 1 of 2 · 0 of 4 drafts in · \d+ s", err)) < 2:
                await asyncio.sleep(0.02)
                err += capsys.readouterr().err


async def test_quiet(capsys):
    """With --quiet nothing is said."""
    async with shown(Output(quiet=True), Progress(num_rounds=2)) as take:
        for event in EVENTS:
            take(event)
    assert capsys.readouterr().err == ""

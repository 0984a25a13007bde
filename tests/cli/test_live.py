"""The live display: what is kept of the events, and what is shown of it."""

import io
import re
import time

import pytest
from rich.console import Console

from pdr_graph.cli.eval_board import ArmCount
from pdr_graph.cli.live import Bar, LiveDisplay
from pdr_graph.cli.output import Output
from pdr_graph.cli.run_display import RunProgress, shown
from pdr_graph.cli.train import TrainBoard


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


def terminal(width: int) -> tuple[io.StringIO, Output]:
    """A terminal of that width, and an output that writes to it."""
    screen = io.StringIO()
    return screen, Output(
        stderr=Console(file=screen, width=width, force_terminal=True, color_system=None)
    )


def drawn(screen: io.StringIO) -> list[str]:
    """Every line that was ever on the screen, without what moves the cursor."""
    lines = re.split(r"[\r\n]+", screen.getvalue())
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]


def until(met, timeout_s: float = 30.0) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_milestones():
    """A round, its workspace and the verdict are lines; what is in between is not."""
    progress = RunProgress(num_rounds=1)
    lines = [line for line in map(progress.take, EVENTS) if line is not None]
    assert re.sub(r"\d+\.\d s", "1.0 s", lines[0]) == (
        "round 1: 4 drafts · answers 42 ×2 · 7 · 1 failed · 1.0 s"
    )
    assert lines[1:] == ["round 1: workspace of 64 tokens", "accepted by judge · sound"]
    assert progress.tokens == 480


def test_events_of_others_are_ignored():
    """A user's own step may write to the same stream."""
    progress = RunProgress(num_rounds=1)
    assert [progress.take(event) for event in ({"mine": 1}, {"event": "mine"}, "text")] == [
        None
    ] * 3


def test_a_resumed_round_continues_from_its_drafts():
    """Drafts of the process before count; failed ones are asked for again."""
    progress = RunProgress(num_rounds=2, tokens=1_000)
    progress.continue_from(1, 4, [draft(0), draft(1, None, "failed")])
    (line,) = progress.lines()
    assert line.startswith("round 1 of 2 · 1 of 4 drafts in · 1,000 tokens · ")
    progress.continue_from(1, 2, [draft(0), draft(1)])
    assert "distilling" in progress.lines()[0]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_terminal_gets_a_live_display(width):
    """It fits its terminal, and is wiped at the end; milestones stay."""
    screen, output = terminal(width)
    with shown(output, RunProgress(num_rounds=2)) as take:
        for event in EVENTS[:4]:
            take(event)
        until(lambda: "3/4 drafts" in screen.getvalue())
        for event in EVENTS[4:]:
            take(event)
    lines = drawn(screen)
    (status, *_) = [line for line in lines if line.startswith("round 1/2")]
    assert status.startswith("round 1/2 · 3/4 drafts")
    assert "━" in status
    assert max(map(len, lines)) <= width
    assert any("answers 42 ×2 · 7" in line for line in lines)
    assert any(re.match(r"300 tokens · \d+\.", line) for line in lines)
    assert "round 1: workspace of 64 tokens" in lines


class Arms:
    """A board of three arms."""

    silence_s = 0.05

    def __init__(self) -> None:
        self.arms = {
            "long_cot": ArmCount(2),
            "[red]{x}": ArmCount(4, {("a", 0): (True, False, 1_500)}, {}, 1),
            "an arm with a name that is longer than any label may be": ArmCount(2),
        }

    def bars(self) -> list[Bar]:
        return [
            Bar(name, arm.done, arm.total, " · ".join(filter(None, arm.facts(10.0))))
            for name, arm in self.arms.items()
        ]

    def details(self) -> list[list[str]]:
        return [["one fact", "another fact", "a third fact that is long", "a fourth"]]

    def lines(self) -> list[str]:
        return ["2 of 8"]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_bar_for_each_arm_and_facts_that_stay_whole(width):
    """Bars give way to text on a narrow terminal; names are no markup; facts break between."""
    screen, output = terminal(width)
    with LiveDisplay(output, Arms()):
        until(lambda: "a fourth" in screen.getvalue())
    lines = drawn(screen)
    assert max(map(len, lines)) <= width
    (second, *_) = [line for line in lines if line.startswith("[red")]
    assert ("━" in second) == (width == 100)
    if width > 40:
        assert second.split(maxsplit=1)[0] == "[red]{x}"
        assert second.rstrip().endswith("1/4 · 100.0% · 1.5k tokens · 30 s left")
    assert any(line.startswith("one fact · another fact") for line in lines)
    assert ("one fact · another fact · a third fact that is long · a fourth" in lines) == (
        width == 100
    )


def test_silence_is_broken(capsys):
    """Where there are only lines, one comes after a while even if nothing happens."""
    progress = RunProgress(num_rounds=2, silence_s=0.05)
    err = ""

    def said(times: int) -> bool:
        nonlocal err
        err += capsys.readouterr().err
        return len(re.findall(r"round 1 of 2 · 0 of 4 drafts in · \d+ s", err)) >= times

    with shown(Output(), progress) as take:
        take(EVENTS[0])
        until(lambda: said(2))


def test_the_same_lines_are_said_once(capsys):
    """What has not changed is no news."""
    with LiveDisplay(Output(), Arms()):
        time.sleep(0.5)
    assert capsys.readouterr().err == "2 of 8\n"


def test_training_says_its_first_and_last_update_at_once(capsys):
    """And what it does before."""
    board = TrainBoard(Output())
    board.phase("loading")
    board.begins("rl", 0, 4, 2)
    for update in (1, 2, 3, 4):
        line = {"stage": "rl", "update": update, "reward/run": 0.25, "seconds": 1.0}
        board.told(line)
    assert board.bars() == [Bar("training 2/2", 4, 4, "")]
    assert [
        re.sub(r" · \d+ s left", "", line) for line in capsys.readouterr().err.splitlines()
    ] == [
        "loading",
        "training: 0.5/2 · reward +0.25",
        "training: 2/2 · reward +0.25",
    ]


def test_the_last_update_is_said_once(capsys, monkeypatch):
    """Whatever comes after it takes its time, such as writing the model."""
    monkeypatch.setattr(TrainBoard, "silence_s", 0.05)
    board = TrainBoard(Output())
    with LiveDisplay(Output(), board):
        board.begins("rl", 0, 2, 1)
        for update in (1, 2):
            board.told({"stage": "rl", "update": update, "reward/run": 0.25, "seconds": 1.0})
        time.sleep(0.3)
    assert capsys.readouterr().err.count("training: 2/2") == 1


def test_quiet(capsys):
    """With --quiet nothing is said."""
    with shown(Output(quiet=True), RunProgress(num_rounds=2)) as take:
        for event in EVENTS:
            take(event)
    assert capsys.readouterr().err == ""

"""Signals: to real processes, and to what listens for them."""

import signal
import subprocess
import sys
import threading

import pytest

from pdr_graph.cli.signals import SIGNALS, TrainStopper
from tests.cli.conftest import CALLS, SMALL, wait_for

pytestmark = pytest.mark.redis


def test_the_first_signal_drains(spawn, stored, mock):
    """Calls in flight are waited for, the run ends at its super-step, and nothing is lost."""
    mock.configure(delay_s=1.0)
    process = spawn("solve", "x", *SMALL, "--thread", "drained")
    wait_for(mock, in_flight=3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "stopping: waiting for calls in flight; a second signal stops at once" in err
    assert err.splitlines()[-1] == "resume with: pdr-graph resume drained"
    assert mock.stats()["aborted"] == 0
    mock.configure(delay_s=0)
    assert stored("resume", "drained", "--json").json()["ledger"]["calls"] == CALLS
    assert mock.stats()["calls"] == CALLS


def test_the_second_signal_stops_at_once(spawn, stored, mock):
    """Requests are cancelled at the server, and the run can still be resumed."""
    mock.configure(delay_s=60)
    process = spawn("solve", "x", *SMALL, "--thread", "cut")
    wait_for(mock, in_flight=3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "a second signal stops at once" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "resume with: pdr-graph resume cut\n"
    assert mock.stats()["aborted"] == 3
    mock.configure(delay_s=0)
    assert stored("resume", "cut", "--json").code == 0


def test_memory_cannot_be_resumed(spawn, mock):
    """SIGTERM drains as well; a run that is kept nowhere says so."""
    mock.configure(delay_s=0.5)
    process = spawn("solve", "x", *SMALL, "--checkpoint", "memory")
    wait_for(mock, in_flight=3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "kept in memory and cannot be resumed" in err.splitlines()[-1]
    assert "resume with" not in err


def test_closed_streams(clean):
    """A process that was started without standard streams still ends with an exit code."""
    command = f"exec {sys.executable} -m pdr_graph.cli solve <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2


def test_a_signal_that_comes_twice_at_once_is_one():
    """A launcher passes on what the terminal has sent already; handlers are then as they were."""
    said: list[str] = []
    left: list[int] = []
    stop = TrainStopper(said.append, left.append, starting=lambda: False)
    before = signal.getsignal(signal.SIGINT)
    with stop.listening():
        assert not stop.asked()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
    assert stop.received == signal.SIGINT
    assert len(said) == 1
    assert not left
    assert signal.getsignal(signal.SIGINT) == before


def test_while_a_run_starts_a_signal_ends_it():
    """By a thread of its own, whatever the main one does, and without a word of updates."""
    said: list[str] = []
    left: list[int] = []
    gone = threading.Event()

    def leave(number: int) -> None:
        left.append(number)
        gone.set()

    stop = TrainStopper(said.append, leave)
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        assert gone.wait(60.0)
    assert (left, said) == ([signal.SIGTERM], [])


def test_what_ended_a_run_is_told_whatever_a_launcher_sends():
    """It ends all processes as soon as one has ended, while the main one still says why."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    stop = TrainStopper(lambda line: None, lambda number: None)
    try:
        with stop.listening():
            stop.deaf = True
        signal.raise_signal(signal.SIGTERM)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

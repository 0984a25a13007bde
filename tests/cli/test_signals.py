"""Signals, with real processes."""

import signal
import subprocess
import sys

import pytest

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
    assert "stopping: calls in flight are waited for; a second signal stops at once" in err
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

"""`inspect --watch`: a run of another process, followed from the terminal."""

import json
import signal

import pytest

from tests.cli.conftest import SMALL, wait_for

pytestmark = pytest.mark.redis


def test_it_follows_a_live_run_to_its_end(spawn, mock):
    """What the run does is told while it lives, in order, and the watch ends with it."""
    mock.configure(answers=["42"], delay_s=0.7)
    run = spawn("solve", "What is 6 x 7?", *SMALL, "--thread", "live")
    wait_for(mock, in_flight=3)
    watch = spawn("inspect", "live", "--watch", "--quiet")
    out, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "round 1, 3 wide"
    assert sum(line.startswith("draft ") for line in lines) >= 3
    assert any(line.startswith("workspace") for line in lines)
    assert "solution by refine · answer 42" in lines
    assert lines[-1].startswith("finished, B_seq ")
    assert run.wait(timeout=60) == 0


def test_programs_read_json_lines(stored, mock):
    """Each event is one JSON object, the last of which is the end with the ledger."""
    mock.configure(answers=["42"])
    ledger = stored("solve", "x", *SMALL, "--thread", "past", "--json").json()["ledger"]
    outcome = stored("inspect", "past", "--watch", "--json")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert events[-1]["event"] == "end"
    assert events[-1]["ledger"]["b_total"] == ledger["b_total"]


def test_a_run_that_stopped_is_said_to_have(stored, mock):
    """No process holds the run, so the watch ends, says how to go on, and fails."""
    mock.configure(status=[{"match": {"contains": "7 x 7"}, "status": 400, "times": 2}])
    stored("solve", "What is 7 x 7?", *SMALL, "--thread", "halted")
    outcome = stored("inspect", "halted", "--watch", "--quiet")
    assert outcome.code == 1
    assert "stopped at distiller: no process runs thread 'halted'" in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_leaves_quietly_and_the_run_goes_on(spawn, mock):
    """The watcher is only a reader."""
    mock.configure(delay_s=1.5)
    run = spawn("solve", "x", *SMALL, "--thread", "left")
    wait_for(mock, in_flight=3)
    watch = spawn("inspect", "left", "--watch", "--quiet")
    assert watch.stdout is not None
    watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (130, "")
    assert run.wait(timeout=60) == 0

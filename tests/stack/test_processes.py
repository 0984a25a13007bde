"""Processes are told apart by number and start."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from pdr_graph.servers.process import Process
from tests.local.processes import eventually

STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
started = subprocess.Popen([sys.executable, "-c", child + "; print()"])
time.sleep(0.5)
print(started.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_again(sleeper):
    """Looked up twice, it is the same, and alive until it ends."""
    known = Process.of(sleeper.pid)
    assert known == Process.of(sleeper.pid)
    assert known.is_alive()
    assert known.signal(signal.SIGKILL)
    # Dead, though nobody has asked for its status yet.
    eventually(lambda: not known.is_alive())
    assert Process.of(sleeper.pid) is None
    assert known.signal(signal.SIGKILL) is False


def test_a_number_in_use_again_is_left_alone(sleeper):
    """A process that started at another time is nobody we know."""
    former = Process(sleeper.pid, "before")
    assert not former.is_alive()
    assert former.signal(signal.SIGKILL) is False
    former.end_group(grace_s=0.1)
    assert sleeper.poll() is None


def test_no_such_process():
    """A number that nobody has is no process."""
    assert Process.of(2**22 + 1) is None


def test_the_group_ends_with_its_leader():
    """A child that ignores SIGTERM is killed after its parent has gone."""
    leader = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    child = psutil.Process(int(leader.stdout.readline()))
    Process.of(leader.pid).end_group(grace_s=5)
    leader.wait()
    leader.stdout.close()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)

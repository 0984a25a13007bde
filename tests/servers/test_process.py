"""Processes are known by number and start, and end with whoever started them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from pdr_graph.process import Process, guarded
from tests.servers.processes import eventually

SLEEP = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
WITH_A_STUBBORN_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}])
time.sleep(0.5)
print(child.pid, flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from pdr_graph.process import guarded
command = guarded([sys.executable, "-c", sys.argv[1]], float(sys.argv[2]))
subprocess.Popen(command, start_new_session=True).wait()
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], text=True)
    yield process
    process.kill()
    process.wait()


def run(code: str, grace_s: float = 0.0) -> subprocess.Popen[str]:
    """Run code under a guard."""
    return subprocess.Popen(
        guarded([sys.executable, "-c", code], grace_s),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended; an exit status that nobody has read may be left."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_process_is_known_again(sleeper) -> None:
    """Looked up twice, it is the same, and alive until it ends."""
    known = Process.of(sleeper.pid)
    assert known == Process.of(sleeper.pid)
    assert known.is_alive()
    assert not known.wait(0.1)
    assert known.signal(signal.SIGKILL)
    # Dead, though nobody has asked for its status yet.
    assert known.wait(10)
    assert Process.of(sleeper.pid) is None
    assert known.signal(signal.SIGKILL) is False


def test_a_number_in_use_again_is_left_alone(sleeper, tmp_path) -> None:
    """A process that started at another time is a stranger."""
    former = Process(sleeper.pid, 0.0)
    assert not former.is_alive()
    assert former.signal(signal.SIGKILL) is False
    former.end_group(grace_s=0.1, home=tmp_path)
    assert sleeper.poll() is None


def test_no_such_process() -> None:
    """A number that nobody has is no process."""
    assert Process.of(2**22 + 1) is None


def test_the_group_ends_with_its_leader(tmp_path) -> None:
    """A child that ignores SIGTERM is killed after its parent has gone."""
    with run(WITH_A_STUBBORN_CHILD) as guard:
        child = psutil.Process(int(guard.stdout.readline()))
        Process.of(guard.pid).end_group(grace_s=5, home=tmp_path)
    eventually(lambda: gone(child))


def test_a_group_whose_leader_is_gone_is_known_by_its_directory(tmp_path) -> None:
    """What is left of it is killed where the server was started, and nothing elsewhere."""
    leader = subprocess.Popen(
        [sys.executable, "-c", WITH_A_STUBBORN_CHILD],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    child = psutil.Process(int(leader.stdout.readline()))
    known = Process.of(leader.pid)
    with leader:
        leader.stdout.close()
        leader.kill()
    known.end_group(0, home=tmp_path / "elsewhere")
    assert child.is_running()
    known.end_group(0, home=tmp_path)
    eventually(lambda: gone(child))


@pytest.mark.parametrize(
    ("killed", "grace_s"),
    [("parent", 0), ("parent", 0.5), ("guard", 0), ("guard", 0.5), ("parent and guard", 0)],
)
def test_a_guarded_command_ends_with_its_parent(killed: str, grace_s: float) -> None:
    """And with its guard; what it started ends too as long as guard or parent live on."""
    if "guard" in killed and sys.platform != "linux":
        pytest.skip("Linux alone ends a command whose guard is killed")
    code = WITH_A_STUBBORN_CHILD.replace("import subprocess", "import os, subprocess").replace(
        "print(", "print(os.getpid(), os.getppid(), "
    )
    words = [sys.executable, "-c", PARENT, code, str(grace_s)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        numbers = map(int, parent.stdout.readline().split())
        command, guard, child = (psutil.Process(number) for number in numbers)
        if "parent" in killed:
            parent.kill()
        if "guard" in killed:
            guard.kill()
        eventually(lambda: gone(command) and gone(guard))
        if killed == "parent":
            eventually(lambda: gone(child))
        else:
            child.kill()


def test_a_parent_that_died_early_starts_nothing(tmp_path) -> None:
    """The guard finds that its parent is another one, and runs no command."""
    command = guarded([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"])
    command[command.index(str(os.getpid()))] = "1"
    subprocess.run(command, check=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", -signal.SIGUSR1),
    ],
)
def test_a_guard_ends_as_its_command_does(code: str, status: int) -> None:
    """With its status, or by its signal."""
    with run(code) as guard:
        assert guard.wait(30) == status


def test_sigterm_is_passed_on() -> None:
    """The command may end in an orderly way, and the guard waits for it."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with run(code) as guard:
        assert guard.stdout.readline() == "ready\n"
        guard.terminate()
        assert guard.wait(30) == 7


def test_a_command_that_is_not_there_is_named() -> None:
    """In a sentence on its standard error, with a status of its own."""
    done = subprocess.run(
        guarded(["/no/such/program"]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert done.stderr == "error: /no/such/program cannot be run: No such file or directory\n"

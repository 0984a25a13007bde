"""Locks that the kernel drops with their holder."""

import subprocess
import sys
from pathlib import Path

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock
from tests.local.processes import eventually

HOLD = """
import sys
from pathlib import Path
from pdr_graph.servers.data_dir import FileLock
with FileLock(Path(sys.argv[1])) as lock:
    print(lock.try_exclusive(), flush=True)
    sys.stdin.read()
"""


def test_one_holder_excludes_the_others_until_it_lets_go(tmp_path: Path) -> None:
    """Shared holders keep an exclusive one out, and the other way round."""
    path = tmp_path / "lock"
    with FileLock(path) as first, FileLock(path) as second, FileLock(path) as third:
        assert first.try_shared()
        assert second.try_shared()
        assert not third.try_exclusive()
        first.release()
        second.release()
        assert third.try_exclusive()
        assert not first.try_shared()
    with FileLock(path) as later:
        assert later.try_exclusive()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """SIGKILL gives it no chance to clean up, and it need not."""
    path = tmp_path / "lock"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with FileLock(path) as lock:
            assert not lock.try_exclusive()
            holder.kill()
            eventually(lock.try_exclusive)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """It names the file and the remedy."""
    with pytest.raises(LocalError, match=r"cannot be written: No such file.*; choose a data dir"):
        FileLock(tmp_path / "missing" / "lock")

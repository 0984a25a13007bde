"""The folder that keeps weights, store, logs and locks."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import LOG_LIMIT, FileLock, fresh_log, last_lines, own_folder
from tests.servers.processes import eventually


@pytest.mark.security
def test_a_new_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Problems and answers are private; so are the folders around it that were not there."""
    folder = own_folder(tmp_path / "a" / "b" / "c")
    made = [folder, *folder.parents[:2]]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700] * 3


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    """Its owner may have opened it to others."""
    tmp_path.chmod(0o755)
    own_folder(tmp_path / "a")
    own_folder(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """It names the folder, the reason and the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(
        LocalError, match=r"file/a' cannot be made: Not a directory; choose another"
    ):
        own_folder(tmp_path / "file" / "a")
    with pytest.raises(LocalError, match=r"file' cannot be made: File exists; choose another"):
        own_folder(tmp_path / "file")


def test_a_log_that_grew_is_set_aside(tmp_path: Path) -> None:
    """One earlier log is kept, so that two are all the space they take."""
    log = tmp_path / "some.log"
    assert fresh_log(log) == log
    log.write_bytes(b"x" * (LOG_LIMIT + 1))
    fresh_log(log)
    assert [file.name for file in tmp_path.iterdir()] == ["some.log.1"]


def test_the_last_lines_of_a_log_are_those_that_say_something(tmp_path: Path) -> None:
    """Blank lines say nothing, and neither does a log that is not there."""
    log = tmp_path / "some.log"
    assert last_lines(log) == []
    log.write_text("first\nsecond\nlast\n\n")
    assert last_lines(log) == ["last"]
    assert last_lines(log, 5) == ["first", "second", "last"]
    assert last_lines(log, 5, begin=len("first\n")) == ["second", "last"]


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
    with FileLock(path) as late:
        with FileLock(path) as first, FileLock(path) as second:
            assert first.try_shared()
            assert second.try_shared()
            assert not late.try_exclusive()
        assert late.try_exclusive()
        with FileLock(path) as shared:
            assert not shared.try_shared()
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
    with pytest.raises(LocalError, match=r"cannot be written: No such.*; choose another data dir"):
        FileLock(tmp_path / "missing" / "lock")

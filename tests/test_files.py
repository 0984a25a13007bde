"""Files that are appended to and replaced by processes that may die at any moment."""

import multiprocessing
import os
import signal
import stat
from pathlib import Path
from typing import IO

import pytest

from pdr_graph.files import append_lines, written_whole

OLD, NEW = b"old\n", b"new" * 100_000


@pytest.fixture
def file(tmp_path) -> Path:
    """A file that holds something."""
    made = tmp_path / "figures.json"
    made.write_bytes(OLD)
    return made


def test_a_file_is_replaced_at_the_end_of_the_block(file):
    with written_whole(file) as out:
        out.write(NEW)
        assert file.read_bytes() == OLD
    assert file.read_bytes() == NEW
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_changes_nothing(file, error):
    def half(out: IO[bytes]) -> None:
        out.write(NEW)
        raise error

    with pytest.raises(error), written_whole(file) as out:
        half(out)
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def test_a_private_file_is_readable_by_its_user_alone(file):
    file.chmod(0o644)
    with written_whole(file, private=True) as out:
        assert {stat.S_IMODE(each.stat().st_mode) for each in file.parent.glob(".*")} == {0o600}
        out.write(NEW)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "none" / "file"):
        pass


def _die_in_the_middle(file: Path) -> None:
    with written_whole(file) as out:
        out.write(NEW)
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_leaves_the_file_and_the_next_one_replaces_it(file):
    """What it leaves beside the file is in nobody's way."""
    killed = multiprocessing.get_context("spawn").Process(target=_die_in_the_middle, args=(file,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert file.read_bytes() == OLD
    with written_whole(file) as out:
        out.write(NEW)
    assert file.read_bytes() == NEW


def test_half_a_line_of_a_writer_that_died_is_removed(tmp_path):
    file = tmp_path / "samples.jsonl"
    append_lines(file, b"1\n")
    with file.open("ab") as opened:
        opened.write(b"2 but no mo")
    append_lines(file, b"3\n")
    assert file.read_bytes() == b"1\n3\n"

"""The folder that keeps weights, store and logs."""

import stat
from pathlib import Path

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import LOG_LIMIT, fresh_log, last_line, own_folder


def test_a_new_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Problems and answers are private."""
    folder = own_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """It names the folder, the reason and the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match=r"file/a cannot be made: Not a directory; choose another"):
        own_folder(tmp_path / "file" / "a")


def test_a_log_that_grew_is_set_aside(tmp_path: Path) -> None:
    """One earlier log is kept, so that two are all the space they take."""
    log = tmp_path / "some.log"
    assert fresh_log(log) == log
    log.write_bytes(b"x" * (LOG_LIMIT + 1))
    fresh_log(log)
    assert [file.name for file in tmp_path.iterdir()] == ["some.log.1"]


def test_the_last_line_of_a_log_is_the_last_that_says_something(tmp_path: Path) -> None:
    """Blank lines say nothing, and neither does a log that is not there."""
    log = tmp_path / "some.log"
    assert last_line(log) == ""
    log.write_text("first\nlast\n\n")
    assert last_line(log) == "last"

"""Standard output and standard error: what a broken one does to a command."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import typer

from pdr_graph.cli.output import BROKEN_PIPE, LogLines, Output


@contextmanager
def broken_pipe(monkeypatch, name: str) -> Iterator[TextIO]:
    """Make a standard stream a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        yield stream


@pytest.mark.parametrize("write", [Output.show, Output.show_json])
def test_a_reader_that_leaves_is_no_error(monkeypatch, write):
    """`pdr-graph … | head -1` ends quietly, and the interpreter can flush what is left."""
    with broken_pipe(monkeypatch, "stdout") as stream:
        with pytest.raises(typer.Exit) as ended:
            write(Output(), "x" * 100_000)
        stream.flush()
    assert ended.value.exit_code == BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_a_sentence(forgetful, monkeypatch):
    """A result that cannot be written is an error, once."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        outcome = forgetful("solve", "x", "--preset", "long_cot", "--quiet")
    assert outcome.code == 1
    assert outcome.err == "error: the disk is full; free some space and run again\n"


def test_standard_error_without_a_reader_lets_the_run_go_on(monkeypatch):
    """Progress that nobody reads is dropped."""
    with broken_pipe(monkeypatch, "stderr"):
        output = Output()
        output.say("round 1")
        output.tell("error: x")
    assert output.stderr.quiet


def test_json_in_any_locale(monkeypatch):
    """What a locale cannot encode is escaped, in JSON and for people."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Output().show_json({"text": "é\ud800"})
    assert json.loads(raw.getvalue()) == {"text": "é\ud800"}
    Output().show("é ×")


def test_log_records_become_lines(capsys):
    """A warning of a package below is one line, said once, and dropped by --quiet; errors stay."""
    logger = logging.Logger("below")
    logger.addHandler(LogLines(Output(quiet=True)))
    logger.warning("dropped")
    logger.error("lost\nlease")
    logger.addHandler(LogLines(Output()))
    logger.warning("twice")
    logger.warning("twice")
    assert capsys.readouterr().err == "error: lost lease\nwarning: twice\n"

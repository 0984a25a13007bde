"""Standard output and standard error: broken ones, and text of a model that is nothing but text."""

import io
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pdr_graph.cli.doctor import CheckTable
from pdr_graph.cli.doctor_checks import Check
from pdr_graph.cli.output import BROKEN_PIPE, LogLines, Output, Prose, one_line, safe, wrapped


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


@given(st.text())
@pytest.mark.security
def test_nothing_acts_on_a_terminal(text):
    """Whatever was written, no control character is left but line breaks and tabs."""
    left = [c for c in safe(text) if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t"]
    assert left == []
    safe(text).encode()


@given(st.text())
def test_safe_text_stays_as_it_is(text):
    """Doing it twice is doing it once."""
    assert safe(safe(text)) == safe(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://e\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "31mred"),
        ("a\x1b]never ends\nb", "a\nb"),
        ("\u202eabc", "abc"),
        ("a\rb\r\nc", "a\nb\nc"),
        ("ok\x08\x08", "ok"),
        ("שלום 🙂", "שלום 🙂"),
    ],
)
@pytest.mark.security
def test_examples(text, shown):
    """Sequences go whole; what is only foreign stays."""
    assert safe(text) == shown


def test_one_line():
    """White space is folded."""
    assert one_line(" a\n\tb \x1b[1m c ") == "a b c"


def test_prose_is_cut_to_its_lines():
    """A long text takes the lines it was given, and one that says how long it is."""
    console = Console(width=40, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(Prose("word " * 200_000, lines=3, indent=2))
    lines = shown.get().splitlines()
    assert len(lines) == 4
    assert lines[3] == "  … of 999,999 characters, see --full"


def test_prose_into_a_file_is_not_wrapped():
    """A pipe gets the lines that the model wrote."""
    console = Console(width=20, force_terminal=False)
    with console.capture() as shown:
        console.print(Prose("a long line that would not fit\n[b]next[/b]"), crop=False)
    assert shown.get() == "a long line that would not fit\n[b]next[/b]\n"


TO_COPY = [
    "pip install 'pdr-graph[local] @ git+https://github.com/pdr-graph/pdr-graph'",
    "`pdr-graph resume 'the run of Monday' --checkpoint redis://127.0.0.1:6379/0`",
    "'/home/user/.local/share/pdr graph/weights and logs/model.log'",
    "https://docs.example.com/pdr-graph/how-to/serve/behind-a-proxy",
]


@pytest.mark.parametrize("width", [20, 60, 80, 120])
@pytest.mark.parametrize("copied", TO_COPY)
def test_what_is_copied_holds_no_newline(copied, width):
    """A command, a path or an address in a message is one piece, also where it is longer."""
    sentence = f"the embedded model needs xllamacpp: {copied}; or name another"
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False
    )
    Output(stderr=console).tell(f"error: {sentence}", "red")
    console.print(CheckTable([Check("embedded model", sentence, copied)]), crop=False)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert sum(copied in line for line in lines) == 3
    assert all(len(line) <= max(width, 30) for line in lines if copied not in line)


@given(st.text(alphabet="ab '`→;漢"), st.integers(1, 30))
def test_wrapping_changes_nothing_but_spaces(text, width):
    """Lines join to what they were, and only a single piece is longer than a line."""
    text = one_line(text)
    lines = wrapped(text, width)
    assert " ".join(lines) == text
    for line in lines:
        assert cell_len(line) <= width or len(wrapped(line, 1)) == 1

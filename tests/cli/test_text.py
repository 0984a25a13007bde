"""Text of a model is text and nothing else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdr_graph.cli.output import Prose, one_line, safe


@given(st.text())
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

"""What the README tells people to type does what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pdr_graph.cli.app import app

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# Without what is around a command: `eval "$(…)"`, settings before it, a pipe behind it.
AROUND = re.compile(r'^eval "\$\(|\)"(?=\s)|^(?:[A-Z_]+=\S+ )+| \| .*')
COMMANDS = [
    shlex.split(AROUND.sub("", line), comments=True) for line in re.findall(r"^\$ (.*)", TEXT, re.M)
]


def test_the_first_example_runs(mock, tmp_path):
    """The ten lines print an answer and both budgets."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[0]],
        env={**os.environ, "PDR_BASE_URL": mock.url, "PDR_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ \d+ \d+\n", done.stdout)


async def test_the_example_of_an_own_distiller_runs(mock, connect):
    """The callable of the README is a distiller."""
    code = BLOCKS[1].replace('preset("pdr", ', 'preset("pdr", widths=(2,), ')
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    result = await names["answer"](connect())
    assert result.answer is not None
    assert mock.stats()["calls"] == 3


async def test_the_example_of_a_parent_graph_runs(mock, connect):
    """A message in, a message out."""
    names: dict[str, object] = {}
    exec(compile(BLOCKS[2].replace("(8, 4)", "(2,)"), "README.md", "exec"), names)
    state = await names["build"](connect()).ainvoke({"messages": [("user", "What is 6 x 7?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai"]
    assert mock.stats()["calls"] == 4


@pytest.mark.parametrize(
    "words", [each[1:] for each in COMMANDS if each[0] == "pdr-graph"], ids=str
)
def test_the_commands_of_the_readme_are_parsed(words):
    """Each is read as the program reads it, every option known; nothing is carried out."""
    name, *rest = words
    get_command(app).commands[name].make_context(name, rest)


@pytest.mark.parametrize("words", [each[1:] for each in COMMANDS if each[0] == "make"], ids=str)
def test_the_targets_of_the_readme_are_in_the_makefile(words):
    """Each has a line of help as well."""
    assert re.search(rf"^{words[0]}:.* ## ", (README.parent / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("path", re.findall(r"^  ([\w./]+\.py)\s", README.read_text("utf-8"), re.M))
def test_the_annotated_tree_is_true(path):
    """Every file that the README names is there."""
    assert (README.parent / "pdr_graph" / path).exists()

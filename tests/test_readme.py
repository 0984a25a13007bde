"""What the README tells people to type does what it says."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from graphs.tasks.__main__ import parser
from pdr_graph import build_graph
from pdr_graph.cli.app import make_app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FENCES = re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)
# Without what is around a command: `eval "$(…)"`, settings before it, a pipe behind it.
AROUND = re.compile(r'^eval "\$\(|\)"(?=\s)|^(?:[A-Z_]+=\S+ )+| \| .*')
COMMANDS = [
    shlex.split(AROUND.sub("", line), comments=True) for line in re.findall(r"^\$ (.*)", TEXT, re.M)
]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def test_no_block_is_left_out():
    """Every Python block is run below but for the client's, which `tests/serve` runs."""
    assert set(FENCES) == {"python", "console", "mermaid", "text"}
    assert len(BLOCKS) == FENCES.count("python") == 3 + 1
    assert "http://127.0.0.1:8100/v1" in BLOCKS[3]
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(COMMANDS) == len(lines), "each line is one command"
    assert {words[0] for words in COMMANDS} == {"make", "pdr-graph", "pip", "python"}


async def test_the_drawing_is_the_graph(connect):
    """Its arrows are those of the compiled graph."""
    drawing = TEXT.partition("```mermaid\n")[2].partition("```")[0]
    arrows = re.findall(r"^ *(\w+)\S* -->(?:\|[^|]*\|)? (\w+)", drawing, re.MULTILINE)
    names = {"START": "__start__", "END": "__end__"}
    drawn = {tuple(names.get(each, each) for each in arrow) for arrow in arrows}
    edges = build_graph(connect()).get_graph().edges
    assert drawn == {(edge.source, edge.target) for edge in edges}


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
    get_command(make_app()).commands[name].make_context(name, rest)


@pytest.mark.parametrize("words", [each[1:] for each in COMMANDS if each[0] == "make"], ids=str)
def test_the_targets_of_the_readme_are_in_the_makefile(words):
    """Each has a line of help as well."""
    assert re.search(rf"^{words[0]}:.* ## ", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("words", [each for each in COMMANDS if each[0] == "pip"], ids=str)
def test_what_is_to_be_installed_is_offered(words):
    """The extra has a line in pyproject.toml."""
    assert words[1] == "install"
    assert re.fullmatch(r"pdr-graph\[(\w+)\]", words[2])[1] in EXTRAS


def test_every_extra_that_is_named_is_offered():
    """In any sentence of any document."""
    for file in ("README.md", "docker/README.md", "checkpoints/README.md", "CHANGELOG.md"):
        named = re.findall(r"pdr-graph\[([\w,]+)\]", (ROOT / file).read_text("utf-8"))
        assert {each for names in named for each in names.split(",")} <= EXTRAS.keys()


@pytest.mark.parametrize("words", [each for each in COMMANDS if each[0] == "python"], ids=str)
def test_the_commands_of_the_tasks_are_parsed(words, tmp_path, monkeypatch):
    """With a file of tests at hand, each is what the tasks take."""
    (tmp_path / "tests.py").write_text("assert double(2) == 4\n")
    (tmp_path / "docker").symlink_to(ROOT / "docker")
    monkeypatch.chdir(tmp_path)
    assert words[1:3] == ["-m", "graphs.tasks"]
    asked = parser().parse_args(words[3:])
    assert callable(asked.write)
    # Nothing needs to be configured: what is summarised fits the embedded model's window.
    assert len(getattr(asked, "document", "").split()) < 500


def test_the_commands_of_the_containers_name_what_there_is():
    """Files, profiles and the port that is asked are those of the compose file."""
    folder = ROOT / "docker"
    text = (folder / "README.md").read_text("utf-8")
    compose = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^\$ (.*)", text, re.M)]
    assert [words[0] for words in lines] == ["cp", "docker", "curl", "docker"]
    assert (folder / lines[0][1]).is_file()
    port = re.search(r":(\d+)/", lines[2][-1])[1]
    assert any(f"{port}}}:8100" in each for each in compose["app"]["ports"])
    profiles = {each for service in compose.values() for each in service.get("profiles", [])}
    assert set(re.findall(r"--profile (\w+)", text)) == profiles
    assert set(re.findall(r"docker compose run --rm (\w+)", text)) <= compose.keys()
    built = re.search(r"--build-arg EXTRAS=([\w,]+) -f (\S+)", text)
    assert set(built[1].split(",")) <= EXTRAS.keys()
    assert (ROOT / built[2]).is_file()


def test_links_lead_somewhere():
    """Headings of this file, and files that are there."""
    headings = {
        re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", TEXT, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", re.findall(r"^  ([\w./]+\.py)\s", README.read_text("utf-8"), re.M))
def test_the_annotated_tree_is_true(path):
    """Every file that the README names is there."""
    assert (ROOT / "pdr_graph" / path).exists()

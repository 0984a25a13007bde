"""Commands and their options, made from models."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.main import get_command
from typer.testing import CliRunner

from pdr_graph.cli.app import make_app
from pdr_graph.cli.options import (
    Argument,
    Command,
    Flag,
    Given,
    Implied,
    OptionGroup,
    flag_of,
    takes,
)
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.settings import ROLE_KEYS, Settings


class Growing(BaseModel):
    """A model with a field of every kind."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    some_widths: tuple[int, ...] = (2,)
    """Some [bracketed] widths."""
    limit: float | None = 1.0
    """A limit."""
    careful: bool = False
    """Whether to be careful."""


class GrowCommand(Command):
    """Grow a thing."""

    first: ClassVar = ("limit", "sizes")

    name: Annotated[str, Argument()]
    """Its name."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Flag("--size", "SIZE")] = ()
    """Sizes [of it]."""
    file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Where to."""
    dry_run: bool = False
    """Only look."""
    quiet: Annotated[bool, Implied()] = True
    given: Annotated[Given, OptionGroup(Growing, tuple(Growing.model_fields), panel="Soil")]


def ask(*words: str) -> tuple[GrowCommand | None, str]:
    small, seen = typer.Typer(rich_markup_mode="rich"), []
    small.command()(takes(GrowCommand)(seen.append))
    result = CliRunner().invoke(small, words, env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return (seen[0] if seen else None), result.stdout


def given(*words: str) -> Given:
    command, _ = ask("x", *words)
    assert command is not None
    return command.given


def test_a_field_of_a_shared_model_becomes_an_option():
    """Lists, None and flags are read; what was not given is not there."""
    assert given() == {}
    assert given("--some-widths", "4, 2") == {"some_widths": ("4", "2")}
    assert given("--some-widths", "") == {"some_widths": ()}
    assert given("--limit", "none") == {"limit": None}
    assert given("--careful") == {"careful": True}
    assert given("--no-careful") == {"careful": False}


def test_a_field_of_a_command_becomes_an_option():
    """It is checked and has its type; what can be repeated is a tuple."""
    command, _ = ask("x", "--size", "3", "--size", "4", "--file", "a/b", "--dry-run", "--json")
    assert command == GrowCommand(
        name="x", sizes=(3, 4), file=Path("a/b"), dry_run=True, as_json=True, given={}
    )
    assert ask("x")[0] == GrowCommand(name="x", given={})
    with pytest.raises(ConfigError, match=r"^--size '0': input should be greater than or equal"):
        ask("x", "--size", "0")


def test_the_help_is_made_of_docstrings():
    """Nothing in them is read as markup; what comes first is shown first, in its order."""
    shown = ask("--help")[1]
    assert "Grow a thing." in shown
    assert "Some [bracketed] widths." in shown
    assert "Sizes [of it]." in shown
    assert "--quiet" not in shown
    panels = re.findall(r"─ (\w+) ─", shown)
    assert panels == ["Arguments", "Options", "Soil", "Output"]
    assert re.findall(r"--[\w-]+", shown.split("─ Soil ─")[0])[:2] == ["--limit", "--size"]


def test_every_field_is_an_option_of_solve_and_resume(cli):
    """No field of the config or the settings is out of reach, but encryption keys as text."""
    for command in ("solve", "resume"):
        shown = cli(command, "--help").out
        for name in [*PDRConfig.model_fields, *Settings.model_fields]:
            assert (f"{flag_of(name)} " in shown) is (name not in Settings.unspoken), name
        assert Settings.unspoken == {"encryption_keys", *ROLE_KEYS.values()}


FIRST = {
    "solve": "--preset --widths --max-tokens --base-url --model --file --thread --json --help",
    "eval": "--arm --samples --limit --out --base-url --model --checkpoint --json --help",
    "serve": "--host --port --key --max-runs --base-url --model --checkpoint --json --help",
    "train": "--config --model --data --out --steps --set --dry-run --json --help",
    "up": "--model --engine --port --store --env-file --dry-run --status --json --help",
}


@pytest.mark.parametrize("command", FIRST)
def test_the_first_panel_has_the_options_that_people_use(cli, command):
    """Eight of them and --help; the others follow in panels of their own."""
    shown = cli(command, "--help").out
    first = shown.split("\nOptions\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (?:-\w, )?(--[\w-]+)", first, re.M) == FIRST[command].split()


@pytest.mark.parametrize("columns", ["60", "80", "100"])
@pytest.mark.parametrize("command", list(get_command(make_app("")).commands))
def test_the_help_fits_its_terminal(cli, monkeypatch, command, columns):
    """No line is wider, and every option has a text."""
    monkeypatch.setenv("COLUMNS", columns)
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    for parameter in get_command(make_app(command)).commands[command].params:
        assert parameter.help, parameter.name


def modules_of(*words: str) -> frozenset[str]:
    """Return all modules that a command has imported by its end."""
    code = (
        "import sys\nfrom pdr_graph.cli import run\nrun(sys.argv[1:])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    return frozenset(ended.stderr.split())


def packages_of(modules: frozenset[str]) -> set[str]:
    """Return the distributions beside Python's own that modules come from."""
    known = packages_distributions()
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return {
        distribution.lower().replace("_", "-")
        for name in packages
        for distribution in known.get(name, ())
    }


OF_THE_LIST = frozenset(
    {
        *("pdr-graph", "typer", "rich", "pygments", "attrs"),
        *("markdown-it-py", "mdurl", "typing-extensions", "shellingham", "annotated-doc"),
        "setuptools",  # its start-up hook, where it is installed
    }
)
"""What the list of commands may import."""
OF_OPTIONS = OF_THE_LIST | {
    *("pydantic", "pydantic-core", "pydantic-settings", "annotated-types", "typing-inspection"),
    *("python-dotenv", "platformdirs"),
}
"""What the options of a command may import."""


def test_the_list_of_commands_does_not_wait_for_pydantic():
    """It loads what draws it and nothing else, whatever else is installed."""
    assert packages_of(modules_of("--help")) <= OF_THE_LIST


def test_help_does_not_wait_for_the_heavy_parts():
    """The help of a command also loads what checks its options: no LangGraph and no client."""
    assert packages_of(modules_of("solve", "--help")) <= OF_OPTIONS


@pytest.mark.redis
@pytest.mark.parametrize(
    "words", [["threads"], ["doctor"], ["solve", "x", "--base-url", "http://127.0.0.1:9/v1"]]
)
def test_commands_begin_before_langgraph_has_loaded(clean, data_dir, words):
    """An empty store is listed and checked, and a dead endpoint told, without graph and client."""
    folder = clean / "empty" if words == ["threads"] else data_dir
    loaded = modules_of(*words, "--data-dir", str(folder))
    assert "pdr_graph.cli.store" in loaded
    assert not {"langgraph.graph", "langsmith", "openai", "numpy", "sympy", "jinja2"} & loaded


@pytest.mark.redis
def test_finished_runs_are_listed_before_langgraph_has_loaded(stored, mock, clean):
    """Their last checkpoint says all; only a run that goes on is read by its graph."""
    folder = ["--data-dir", str(clean / "data")]
    mock.configure(answers=["42"])
    solved = stored("solve", "What is 6 x 7?", "--widths", "2,2", "--thread", "done", *folder)
    assert solved.code == 0
    loaded = modules_of("threads", *folder)
    assert "pdr_graph.state" in loaded
    assert not {"langgraph.graph", "langgraph.pregel", "openai", "numpy"} & loaded


def test_the_list_of_commands_says_what_each_one_says(cli):
    """The line of a command is the first paragraph of its own help."""
    commands = get_command(make_app()).commands
    listed = get_command(make_app("")).commands
    assert list(listed) == list(commands)
    for name, command in commands.items():
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert listed[name].help == first


def test_version_and_bare_call(cli):
    """`--version` says the version, a bare call what there is."""
    assert cli("--version").out.startswith("pdr-graph 0.")
    bare = cli()
    assert (bare.code, "solve" in bare.out) == (0, True)


def test_unknown_command(cli):
    """A command that there is not is named."""
    outcome = cli("slove")
    assert outcome.code == 2
    assert outcome.err.startswith("error: no such command 'slove'")
    assert outcome.err.endswith("Did you mean 'solve', 'serve'? Run `pdr-graph --help`\n")


MODULES_OF_THE_USER = ("checkpoints", "graphs", "utils")


@pytest.mark.parametrize("called", ["pdr-graph", "python -m pdr_graph.cli"])
@pytest.mark.security
def test_it_works_beside_modules_of_the_user(clean, mock, data_dir, called):
    """A folder may hold files with the names of ours: none of them is imported."""
    for name in MODULES_OF_THE_USER:
        (clean / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')\n")
    script = shutil.which("pdr-graph", path=str(Path(sys.executable).parent))
    assert script is not None, "the package is not installed beside this Python"
    words = [script] if called == "pdr-graph" else [sys.executable, "-m", "pdr_graph.cli"]
    environment = {**os.environ, "PDR_BASE_URL": mock.url, "PDR_DATA_DIR": str(data_dir)}
    (clean / "q.jsonl").write_text(json.dumps({"problem": "What is 6 x 7?", "answer": "42"}))
    solve = ["solve", "x", "--widths", "2", "--thread", called]
    others = {
        "pdr-graph": [["inspect", called]],
        "python -m pdr_graph.cli": [["eval", "q.jsonl", "--arm", "long_cot", "--out", "run"]],
    }
    for command in (solve, *others[called]):
        done = subprocess.run(
            [*words, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

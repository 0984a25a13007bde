"""Options made from models."""

import subprocess
import sys
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

from pdr_graph.cli.options import Given, OptionGroup, flag_of, takes
from pdr_graph.config import PDRConfig
from pdr_graph.settings import Settings


class Growing(BaseModel):
    """A model with a field of every kind."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    some_widths: tuple[int, ...] = (2,)
    """Some [bracketed] widths."""
    limit: float | None = 1.0
    """A limit."""
    careful: bool = False
    """Whether to be careful."""


def ask(*words: str) -> tuple[str, str]:
    app = typer.Typer()
    seen: list[tuple[str, Given]] = []

    @app.command()
    @takes(given=OptionGroup(Growing, tuple(Growing.model_fields)))
    def command(name: Annotated[str, typer.Argument()], given: Given) -> None:
        seen.append((name, given))

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return (str(seen[0]) if seen else ""), result.stdout


def test_a_field_becomes_an_option():
    """Lists, None and flags are read; what was not given is not there."""
    assert ask("x") == ("('x', {})", "")
    assert ask("x", "--some-widths", "4, 2")[0] == "('x', {'some_widths': ('4', '2')})"
    assert ask("x", "--some-widths", "")[0] == "('x', {'some_widths': ()})"
    assert ask("x", "--limit", "none")[0] == "('x', {'limit': None})"
    assert ask("x", "--careful")[0] == "('x', {'careful': True})"
    assert ask("x", "--no-careful")[0] == "('x', {'careful': False})"


def test_help_is_the_docstring():
    """Help text comes from the field's docstring, and is not read as markup."""
    assert "Some [bracketed] widths." in ask("--help")[1]


def test_every_field_is_an_option_of_solve_and_resume(cli):
    """No field of the config or the settings is out of reach."""
    for command in ("solve", "resume"):
        shown = cli(command, "--help").out
        for name in [*PDRConfig.model_fields, *Settings.model_fields]:
            assert f"{flag_of(name)} " in shown, name


def test_help_does_not_wait_for_the_heavy_parts():
    """The help of a command imports neither LangGraph nor a client."""
    code = (
        "import sys\nfrom pdr_graph.cli import run\nrun(['solve', '--help'])\n"
        "heavy = {'langgraph', 'langchain_core', 'openai', 'redis', 'httpx2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


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
    assert "`pdr-graph --help` shows what there is" in outcome.err

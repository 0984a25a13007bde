"""The notebook of the first tutorial, run from top to bottom in a real Jupyter kernel."""

import os
import re
import shlex
from pathlib import Path

import nbformat
import pytest
import pytest_asyncio
from nbclient import NotebookClient
from typer.main import get_command

from pdr_graph.cli.app import make_app
from pdr_graph.servers import default_data_dir, find_weights
from tests.servers.processes import eventually, servers

NOTEBOOK = Path(__file__).parent.parent / "docs/tutorials/first_run.ipynb"
WIDTHS = (3, 2)
KAPPA = 96
CALLS = 3 + 1 + 2 + 1 + 1

pytestmark = [pytest.mark.local, pytest.mark.redis]


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what each code cell printed."""
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory) -> list[str]:
    """What the cells print on the embedded model, with nothing configured."""
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    folder = tmp_path_factory.mktemp("notebook")
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    (data_dir / "weights").mkdir(parents=True)
    (data_dir / "weights" / weights.name).symlink_to(weights)
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PDR_"}
    notebook = read()
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    await client.async_execute(cwd=str(folder), env={**environment, "PDR_DATA_DIR": str(data_dir)})
    eventually(lambda: not servers(data_dir))
    return printed(notebook)


def numbers(line: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", line)]


def test_a_model_is_opened_and_answers(run):
    """It is named, and whatever it answers is shown."""
    assert run[0] == "model: SmolLM2-135M-Instruct\n"
    assert re.match(r"answer: .+\nsolution: ", run[1])


def test_the_ledger_adds_up(run):
    """A row for each round and node; their tokens are B_total, and less of them B_seq."""
    head, *rows, last = run[2].splitlines()
    assert head.split() == ["round", "node", "calls", "tokens"]
    found = [(int(r), node, int(calls)) for r, node, calls, _ in map(str.split, rows)]
    assert found == [
        (1, "drafter", 3),
        (1, "distiller", 1),
        (2, "drafter", 2),
        (2, "distiller", 1),
        (2, "refiner", 1),
    ]
    b_total, b_seq = numbers(last)
    assert sum(int(row.split()[-1]) for row in rows) == b_total
    assert 0 < b_seq < b_total


def test_the_run_is_read_back(run):
    """Every draft of every round, and workspaces that hold kappa."""
    lines = run[3].splitlines()
    assert [numbers(line)[0] for line in lines if "draft" in line] == [0, 1, 2, 0, 1]
    workspaces = [numbers(line) for line in lines if "workspace" in line]
    assert len(workspaces) == len(WIDTHS)
    assert all(tokens <= kappa == KAPPA for tokens, kappa in workspaces)
    assert run[4].strip()


def test_a_killed_run_goes_on(run):
    """The first draft is kept, and only what is missing is asked for again."""
    kept = numbers(run[5])[0]
    assert 1 <= kept <= WIDTHS[0]
    asked = re.findall(r"\((\d), (\d)\)", run[6])
    assert sum(number == "1" for number, _ in asked) == WIDTHS[0] - kept
    assert sum(number == "2" for number, _ in asked) == WIDTHS[1]
    assert run[6].endswith(f"calls that were answered: {CALLS}\n")


def test_two_strategies_stand_side_by_side(run):
    """A vote has no calls after its drafts, so its critical path is shorter."""
    head, pdr, majority = run[7].splitlines()
    assert head.split() == ["strategy", "answer", "B_total", "B_seq", "seconds"]
    assert (pdr.split()[0], majority.split()[0]) == ("pdr", "majority")
    assert int(majority.split()[-2]) < int(pdr.split()[-2])


def test_what_the_committed_notebook_shows_was_printed_by_such_a_run(run):
    """The same cells print, as many lines, up to what the model says."""
    committed = printed(read())
    assert [bool(text) for text in committed] == [bool(text) for text in run]
    for index in (2, 3, 5, 6, 7):
        assert len(committed[index].splitlines()) == len(run[index].splitlines())


def test_the_committed_notebook_is_small_and_has_no_traces_of_a_machine():
    """No paths, no times, no errors, nothing but text."""
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 20_000
    assert "/home/" not in text
    assert "/root/" not in text
    outputs = [output for cell in read().cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} == {"stream"}
    assert {output.name for output in outputs} == {"stdout"}


def test_its_commands_are_parsed():
    """Each is read as the program reads it, every option known."""
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    commands = [shlex.split(line) for line in re.findall(r"^\$ (.*)", text, re.M)]
    assert len(commands) == 4
    for program, name, *words in commands:
        assert program == "pdr-graph"
        get_command(make_app()).commands[name].make_context(name, words)

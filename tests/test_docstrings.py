"""The code in docstrings is run, so that a copy of it works."""

import ast
import doctest
import importlib
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pdr_graph import as_tool, pdr_node, preset, solve, solve_sync, stream
from pdr_graph.errors import ConfigError
from pdr_graph.servers import embedded_valkey
from pdr_graph.telemetry import observed

ROOT = Path(__file__).parent.parent
PACKAGES = ("pdr_graph", "checkpoints/pdr_checkpoints", "graphs")
OF_TORCH = ("pdr_graph.train", "pdr_graph.policy")
"""Run by `make test-train`, where their library is."""
SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:")


def paragraphs() -> Iterator[tuple[str, str]]:
    """Yield every paragraph of every docstring, with its module."""
    for package in PACKAGES:
        folder = ROOT / package
        for file in sorted(folder.rglob("*.py")):
            path = file.relative_to(folder.parent).with_suffix("")
            name = ".".join(path.parts).removesuffix(".__init__")
            for docstring in docstrings(ast.parse(file.read_text("utf-8"))):
                for paragraph in docstring.split("\n\n"):
                    if paragraph.strip():
                        yield name, textwrap.dedent(paragraph.strip("\n"))


def docstrings(node: ast.AST) -> Iterator[str]:
    """Yield the docstrings of a module, and of all classes and functions in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.stmt):
            yield from docstrings(each)


def blocks() -> dict[str, list[str]]:
    """Return the code in docstrings, by module: what parses as statements and calls something."""
    found: dict[str, list[str]] = {}
    for name, paragraph in PARAGRAPHS:
        if not paragraph.startswith((*SECTIONS, ">>>")) and is_code(paragraph):
            found.setdefault(name, []).append(paragraph)
    return found


def is_code(text: str) -> bool:
    if "(" not in text and "import " not in text:
        return False
    try:
        tree = ast.parse(in_a_function(text))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def in_a_function(code: str) -> str:
    """Return code that may wait, as a function."""
    return f"async def example():\n{textwrap.indent(code, '    ')}"


async def outcome_of(code: str, **names: Any) -> dict[str, Any]:
    """Run code with some names known, and return the names that it made."""
    exec(compile(f"{in_a_function(code)}\n    return locals()", "docstring", "exec"), names)
    made: dict[str, Any] = await names["example"]()
    return made


PARAGRAPHS = list(paragraphs())
BLOCKS = blocks()
TESTED = {
    "pdr_checkpoints",
    "pdr_graph",
    "pdr_graph.connect",
    "pdr_graph.embed",
    "pdr_graph.judge",
    "pdr_graph.llm.models",
    "pdr_graph.sync",
    "pdr_graph.telemetry",
}
"""Modules whose code a test below runs."""


def test_no_code_in_a_docstring_is_left_out():
    """A new example needs a test here."""
    others = {name for name in BLOCKS if not name.startswith(OF_TORCH)}
    assert others == TESTED


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith(OF_TORCH)])
def test_what_needs_torch_names_what_there_is(name):
    """Every name that such an example calls is the module's."""
    pytest.importorskip("torch", reason="needs torch: make test-train")
    try:
        home = vars(importlib.import_module(name))
    except ConfigError as error:  # it needs more than torch
        pytest.skip(str(error))
    for code in BLOCKS[name]:
        tree = ast.parse(in_a_function(code))
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called <= home.keys()


@pytest.mark.parametrize(
    ("name", "row"), [(name, text) for name, text in PARAGRAPHS if text.startswith('{"')]
)
def test_a_row_of_data_is_json(name, row):
    """What a file or a process is said to hold can be read as such."""
    while row:
        value, end = json.JSONDecoder().raw_decode(row)
        assert isinstance(value, dict), name
        row = row[end:].lstrip()


@pytest.mark.parametrize("name", {name: None for name, text in PARAGRAPHS if ">>> " in text})
def test_what_is_shown_at_a_prompt_is_what_comes(name):
    """Each `>>>` line prints what stands below it."""
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0


async def test_the_package(mock):
    """A problem, a preset, a model."""
    (code,) = BLOCKS["pdr_graph"]
    code = code.replace("ChatVLLM(...)", "(model := ChatVLLM(base_url=url, model='mock-model'))")
    code = code.replace('preset("pdr")', 'preset("pdr", widths=(2,))')
    made = await outcome_of(code, url=mock.url)
    await made["model"].aclose()
    assert mock.stats()["calls"] == made["result"].ledger.to_json()["calls"] == 2 + 1 + 1


async def test_connect(mock, monkeypatch):
    """The settings name the endpoint."""
    from pdr_graph.connect import open_models

    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    (code,) = BLOCKS["pdr_graph.connect"]
    made = await outcome_of(code, open_models=open_models, solve=solve)
    assert made["result"].ledger.to_json()["calls"] == mock.stats()["calls"] > 0


async def test_judge(connect, tmp_path):
    """A judge is loaded, is asked whose drafts it knows, and weighs one."""
    from pdr_graph.judge import Evidence, JudgePlaces, SignalsJudge, load_judge
    from pdr_graph.llm.usage import Spent
    from tests.fakes import make_draft

    file = tmp_path / "judge.json"
    SignalsJudge(
        model="mock-model", features=("logprob",), means=(0.0,), scales=(1.0,), weights=(1.0,),
        bias=0.0,
    ).save(file)  # fmt: skip
    draft = {**make_draft(0, "7"), "signals": {"logprob": 0.0}}
    known = {"file": file, "places": JudgePlaces(), "model": "mock-model", "draft": draft}
    known["evidence"] = Evidence("6 x 7?", "Solve 6 x 7?", connect(), Spent())
    (code,) = BLOCKS["pdr_graph.judge"]
    assert (await outcome_of(code, load_judge=load_judge, **known))["weight"] == 0.5


async def test_models(connect):
    """A model for all roles but one."""
    from pdr_graph.llm.models import Models

    (code,) = BLOCKS["pdr_graph.llm.models"]
    await outcome_of(code, Models=Models, small=connect(), large=connect())


async def test_embed(connect):
    """A node of a graph, and a tool of an agent; the graph answers."""
    from langchain.agents import create_agent

    builder = StateGraph(MessagesState)
    known = {"builder": builder, "create_agent": create_agent, "model": connect()}
    known |= {"pdr_node": pdr_node, "as_tool": as_tool, "preset": lambda name: preset("long_cot")}
    (code,) = BLOCKS["pdr_graph.embed"]
    made = await outcome_of(code, **known)
    assert "tools" in made["agent"].get_graph().nodes
    builder.add_edge(START, "reason")
    state = await builder.compile().ainvoke({"messages": [("user", "What is 6 x 7?")]})
    assert state["messages"][-1].type == "ai"


async def test_sync(connect, mock, capsys):
    """Both doors, in a function that a loop runs."""
    (code,) = BLOCKS["pdr_graph.sync"]
    names = {"model": connect(), "solve_sync": solve_sync, "stream": stream}
    made = await outcome_of(code.replace('"pdr"', '"long_cot"'), **names)
    assert made["result"].solution
    assert "solution" in capsys.readouterr().out.split()
    assert mock.stats()["calls"] == 2


async def test_telemetry(connect):
    """The block's run leaves spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    (code,) = BLOCKS["pdr_graph.telemetry"]
    names = {"observed": lambda: observed(provider), "solve": solve, "model": connect()}
    await outcome_of(code, **names)
    assert "pdr run" in {span.name for span in exporter.get_finished_spans()}


@pytest.mark.redis
@pytest.mark.parametrize("where", ["docstring", "checkpoints/README.md"])
async def test_checkpoints(connect, tmp_path, where):
    """A graph kept in a real store, run under a lease."""
    from pdr_checkpoints import open_checkpointer

    if where == "docstring":
        (code,) = BLOCKS["pdr_checkpoints"]
    else:
        code = (ROOT / where).read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    builder = StateGraph(MessagesState)
    builder.add_node("reason", pdr_node(preset("long_cot"), model=connect()))
    builder.add_edge(START, "reason")
    async with embedded_valkey(tmp_path) as url:
        known = {"builder": builder, "inputs": {"messages": [("user", "What is 6 x 7?")]}}
        code = code.replace("redis://localhost:6379/0", url)
        await outcome_of(code, open_checkpointer=open_checkpointer, **known)
        async with open_checkpointer(url) as saver:
            place = {"configurable": {"thread_id": "my-thread"}}
            state = await builder.compile(checkpointer=saver).aget_state(place)
    assert [message.type for message in state.values["messages"]] == ["human", "ai"]

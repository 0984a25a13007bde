"""A name of code that was stored, or that a request holds, is compared and never imported.

The attacks are modules that leave a file behind when they are imported, and functions of Python
itself.
"""

import os
import sys

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from pdr_graph import (
    Extensions,
    Parts,
    PDRConfig,
    build_graph,
    history,
    pdr_node,
    preset,
    resume,
    solve,
)
from pdr_graph.errors import ConfigError, DamagedRunError
from pdr_graph.types import Verdict

pytestmark = pytest.mark.security

SMALL = {"widths": (2,), "max_tokens": 200, "solution_tokens": 64, "kappa": 64, "seed": 7}
FIELDS = ("distiller", "finish", "verifier")
CODE = "sys:exit", "os:system", "builtins:exec", "subprocess:run", "{trap}:step", "{trap}:absent"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path that says when it is imported; `step` judges as a verifier does."""
    name = f"trap_{os.getpid()}_{tmp_path.name}".replace("-", "_")
    proof = tmp_path / "imported"
    (tmp_path / f"{name}.py").write_text(
        f"import pathlib\npathlib.Path({str(proof)!r}).touch()\n"
        "async def step(step):\n"
        "    return {'verifier': 'own', 'accepted': True, 'reason': 'own'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, proof
    sys.modules.pop(name, None)


async def stopped_run(saver, model, **fields):
    """Leave a run behind that names code: what a store of somebody else holds."""
    graph = build_graph(model, checkpointer=saver)
    place = {"configurable": {"thread_id": "t"}}
    config = preset("pdr", **SMALL)
    await graph.ainvoke({"problem": "x"}, place, context=config, interrupt_after=["plan"])
    state = (await graph.aget_state(place)).values
    await graph.aupdate_state(place, {"config": {**state["config"], **fields}}, as_node="plan")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("code", CODE)
async def test_a_resumed_run_imports_nothing(connect, mock, trap, field, code):
    """And is refused with the option that gives the name again, before any call."""
    name, proof = trap
    saver = InMemorySaver()
    await stopped_run(saver, connect(), **{field: code.format(trap=name)})
    calls = mock.stats()["calls"]
    with pytest.raises(ConfigError, match=f"^{field} .* give it again by --{field} "):
        await resume("t", model=connect(), checkpointer=saver)
    assert (await history("t", checkpointer=saver)).next
    assert not proof.exists()
    assert name not in sys.modules
    assert mock.stats()["calls"] == calls


@pytest.mark.parametrize("code", [["sys:exit"], {"sys": "exit"}, {"name": ["os:system"]}, None, 1])
async def test_a_name_that_is_no_text_is_refused(connect, code):
    """Lists and tables are no names."""
    saver = InMemorySaver()
    await stopped_run(saver, connect())
    found = await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    checkpoint, version = found.checkpoint, saver.get_next_version("9", None)
    checkpoint["channel_values"]["config"]["distiller"] = code
    checkpoint["channel_versions"]["config"] = version
    checkpoint["id"] = checkpoint["id"][:-4] + "ffff"
    await saver.aput(found.config, checkpoint, found.metadata, {"config": version})
    with pytest.raises(DamagedRunError, match="distiller"):
        await resume("t", model=connect(), checkpointer=saver)


async def test_a_name_that_is_given_again_goes_on(connect, trap):
    """By the changes of `resume`, or by a registry; the run has the user's own step."""
    name, proof = trap
    for given in (
        {"changes": {"verifier": f"{name}:step"}},
        {"parts": Parts(extensions=Extensions().with_code({"verifier": f"{name}:step"}))},
    ):
        saver = InMemorySaver()
        await stopped_run(saver, connect(), verifier=f"{name}:step")
        result = await resume("t", model=connect(), checkpointer=saver, **given)
        assert result.verdict["reason"] == "own"
    assert proof.exists()


async def test_another_name_than_the_stored_one_is_refused(connect, trap):
    """What is given is compared with what was stored."""
    name, _ = trap
    saver = InMemorySaver()
    await stopped_run(saver, connect(), verifier="os:system")
    with pytest.raises(ConfigError, match="verifier"):
        await resume("t", model=connect(), checkpointer=saver, changes={"verifier": f"{name}:step"})


async def test_a_name_in_the_input_or_in_a_mapping_is_only_looked_up(connect, mock, trap):
    """A server hands over what a request holds in these two forms."""
    name, proof = trap
    graph = build_graph(connect())
    asked = {**preset("pdr", **SMALL).model_dump(), "verifier": f"{name}:step"}
    for input_, context in (
        ({"problem": "x", "config": asked}, None),
        ({"problem": "x", "pdr_config": asked}, None),
        ({"problem": "x"}, asked),
    ):
        with pytest.raises(ConfigError, match=r"verifier .* names"):
            await graph.ainvoke(input_, context=context)
    assert not proof.exists()
    assert mock.stats()["calls"] == 0


async def test_a_config_in_python_names_code(connect, trap):
    """As the context of a graph, as its default, and as the argument of `solve`."""
    name, _ = trap
    config = preset("pdr", verifier=f"{name}:step", **SMALL)
    by_context = await build_graph(connect()).ainvoke({"problem": "x"}, context=config)
    by_default = await build_graph(connect(), default=config).ainvoke({"problem": "x"})
    by_solve = await solve("x", config, model=connect())
    verdicts = [by_context["verdict"], by_default["verdict"], by_solve.verdict]
    assert [verdict["reason"] for verdict in verdicts] == ["own"] * 3


class Outer(TypedDict, total=False):
    problem: str
    pdr_config: dict[str, object]
    verdict: Verdict
    solution: object


@pytest.mark.parametrize("server", [{}, {"langgraph_request_id": "r"}, {"assistant_id": "a"}])
async def test_a_node_takes_names_of_its_parent_in_python_alone(connect, trap, server):
    """The context of a parent on a server is what its client has sent, or what was stored."""
    name, proof = trap
    config = preset("pdr", verifier=f"{name}:step", **SMALL)

    def read(state):
        return state["problem"]

    def write(result):
        return {"verdict": result.verdict}

    for node in (
        pdr_node(model=connect(), input=read, output=write),
        build_graph(connect()),
    ):
        builder = StateGraph(Outer, context_schema=PDRConfig)
        builder.add_node("reason", node)
        builder.add_edge(START, "reason")
        builder.add_edge("reason", END)
        graph = builder.compile()
        call = graph.ainvoke({"problem": "x"}, {"configurable": server}, context=config)
        if server:
            with pytest.raises(ConfigError, match="names"):
                await call
        else:
            assert (await call)["verdict"]["reason"] == "own"
    assert proof.exists() == (not server)


async def test_a_node_continues_with_the_stored_name_only_if_it_has_it(connect, trap):
    """What a parent's checkpoint holds is only compared with the node's own config."""
    name, proof = trap
    builder = StateGraph(Outer)
    builder.add_node("reason", build_graph(connect()))
    builder.add_edge(START, "reason")
    graph = builder.compile(checkpointer=InMemorySaver())
    stored = {**PDRConfig(**SMALL).model_dump(), "finish": f"{name}:step"}
    place = {"configurable": {"thread_id": "t"}}
    await graph.aupdate_state(place, {"problem": "x", "pdr_config": stored}, as_node=START)
    with pytest.raises(ConfigError, match="finish"):
        await graph.ainvoke(None, place)
    assert not proof.exists()

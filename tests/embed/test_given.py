"""What is handed in to embed a run, and what comes of it where it does not fit."""

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from pdr_graph import as_tool, pdr_node, preset
from pdr_graph.errors import ConfigError
from tests.fakes import ScriptedChat

MODEL = ScriptedChat(replies=["It is 4."])


@pytest.mark.parametrize("make", [pdr_node, as_tool])
@pytest.mark.parametrize(
    ("config", "model", "sentence"),
    [
        ("pdr", MODEL, r"config must be a PDRConfig, such as preset\('pdr'\) returns, not 'pdr'"),
        ({"widths": [2]}, MODEL, "config must be a PDRConfig"),
        (preset("pdr"), "gpt-5", "model must be a LangChain chat model, .* not 'gpt-5'"),
        (None, None, "model must be a LangChain chat model"),
        (preset("pdr", verifier="nope"), MODEL, "unknown verifier 'nope'"),
    ],
)
def test_what_cannot_make_a_run_is_refused_where_it_is_handed_in(make, config, model, sentence):
    """Not in the middle of the parent's first run."""
    with pytest.raises(ConfigError, match=sentence):
        make(config, model=model)


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"input": lambda state: None}, "input must return the problem as text, not NoneType"),
        ({"input": lambda state: " "}, "the problem is empty"),
        ({"output": lambda result: result.solution}, "update as a dict, .* not str"),
    ],
)
async def test_a_mapping_that_does_not_fit_is_named(mapping, sentence):
    """Which of the two functions it is, and what it must return."""
    builder = StateGraph(MessagesState)
    builder.add_node("reason", pdr_node(preset("long_cot"), model=MODEL, **mapping))
    builder.add_edge(START, "reason")
    with pytest.raises(ConfigError, match=sentence):
        await builder.compile().ainvoke({"messages": [("user", "2 + 2?")]})


async def test_a_tool_is_called_by_hand():
    """Its answer is the solution; a call that does not wait is told how to."""
    tool = as_tool(preset("long_cot"), model=MODEL)
    assert await tool.ainvoke({"question": "2 + 2?"}) == "It is 4."
    assert await tool.ainvoke({"question": " "}) == "the question is empty; state it in full"
    with pytest.raises(ConfigError, match="think_hard is asynchronous; call it, or its agent, by"):
        tool.invoke({"question": "2 + 2?"})

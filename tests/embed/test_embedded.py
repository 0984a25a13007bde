"""PDR inside a parent graph: what it takes, what the parent sees of it, and what it pays."""

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from pdr_graph import as_tool, pdr_node, preset, resume, solve
from pdr_graph.errors import ConfigError, OtherGraphError, QuorumError
from pdr_graph.run_history import history
from tests.embed.parent import CALLS, CONFIG, QUESTION, node_parent, tool_parent
from tests.fakes import ScriptedChat

ASKED = {"messages": [("user", QUESTION)]}
RUN = {"configurable": {"thread_id": "t"}}


@pytest.mark.parametrize("parent", [node_parent, tool_parent])
async def test_a_round_below_its_quorum_asks_for_the_missing_drafts_alone(mock, connect, parent):
    """The parent run again with no input repeats three refused drafts, and not the good one."""
    mock.configure(status=[{"match": {"call": call}, "status": 400} for call in (1, 2, 3)])
    graph = parent(connect()).compile(checkpointer=InMemorySaver())
    with pytest.raises(QuorumError):
        await graph.ainvoke(ASKED, RUN, durability="sync")
    mock.configure(status=[])
    state = await graph.ainvoke(None, RUN, durability="sync")
    assert mock.stats()["calls"] == CALLS + 3
    assert (state["ledger"][0]["calls"], state["ledger"][0]["failed"]) == (CALLS + 3, 3)


async def test_tools_called_side_by_side_are_charged_as_such(mock, connect):
    """Two runs in one super-step: their tokens add up, their critical path is the longer one."""
    graph = tool_parent(connect(), ["What is 1 + 1?", "What is 2 + 2?"]).compile()
    state = await graph.ainvoke(ASKED)
    (row,) = state["ledger"]
    stats = mock.stats()
    assert row["calls"] == 2 * CALLS
    assert row["prompt_tokens"] == stats["prompt_tokens"]
    assert row["completion_tokens"] == stats["completion_tokens"]
    assert row["critical_tokens"] == max(
        message.artifact["ledger"]["b_seq"] for message in state["messages"][-2:]
    )


@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("parent", [node_parent, tool_parent])
async def test_progress_reaches_the_parents_stream_once(connect, parent, subgraphs):
    """Every draft is reported once; under the subgraph's namespace where subgraphs are shown."""
    graph = parent(connect()).compile()
    parts = [
        part
        async for part in graph.astream(
            ASKED, stream_mode=["custom"], subgraphs=subgraphs, version="v2"
        )
    ]
    drafts = [part for part in parts if part["data"]["event"] == "draft"]
    assert len(drafts) == sum(CONFIG.widths)
    assert all(bool(part["ns"]) == subgraphs for part in drafts)


async def test_the_drawing_shows_the_steps_within_the_node(connect):
    """Studio's xray finds the subgraph."""
    drawn = node_parent(connect()).compile().get_graph(xray=True)
    assert {"reason:plan", "reason:drafter", "reason:refiner"} <= set(drawn.nodes)


async def test_a_conversation_without_a_users_text_is_refused(connect):
    """One sentence, before any call."""
    with pytest.raises(ConfigError, match="no user message has any text"):
        await node_parent(connect()).compile().ainvoke({"messages": [("ai", "Hello.")]})


@pytest.mark.parametrize(("parent", "node"), [(node_parent, "reason"), (tool_parent, "tools")])
async def test_the_run_inside_is_read_back_from_the_parents_thread(mock, connect, parent, node):
    """Its rounds and drafts, as of a run of its own; `resume` leaves the parent alone."""
    saver = InMemorySaver()
    model = connect()
    await parent(model).compile(checkpointer=saver).ainvoke(ASKED, RUN)
    past = await history("t", checkpointer=saver)
    assert past.namespace.startswith(f"{node}:")
    assert past.problem == QUESTION
    assert [len(each.drafts) for each in past.rounds] == list(CONFIG.widths)
    assert sum(row["calls"] for row in past.ledger.rows) == CALLS
    assert past.solution is not None
    assert past.next == ()
    with pytest.raises(OtherGraphError, match="run that graph again"):
        await resume("t", model=model, checkpointer=saver)


async def test_of_several_runs_inside_the_last_is_read(connect):
    """A conversation whose every question was thought about."""
    saver = InMemorySaver()
    graph = node_parent(connect()).compile(checkpointer=saver)
    await graph.ainvoke(ASKED, RUN)
    await graph.ainvoke({"messages": [("user", "What is 8 x 9?")]}, RUN)
    assert "What is 8 x 9?" in (await history("t", checkpointer=saver)).problem


async def test_a_run_inside_is_read_while_it_goes_on(mock, connect):
    """A round below its quorum shows the drafts that it has."""
    mock.configure(status=[{"match": {"call": call}, "status": 400} for call in (1, 2, 3)])
    saver = InMemorySaver()
    with pytest.raises(QuorumError):
        await node_parent(connect()).compile(checkpointer=saver).ainvoke(ASKED, RUN)
    past = await history("t", checkpointer=saver)
    assert past.next == ("distiller",)
    assert [draft["error"] for draft in past.rounds[0].drafts].count("failed") == 3


async def test_a_thread_without_a_run_of_ours_is_refused():
    """A thread of another graph is recognised, and not read as a run."""
    saver = InMemorySaver()
    builder = StateGraph(MessagesState)
    builder.add_node("echo", lambda state: {"messages": [("ai", "Yes.")]})
    builder.add_edge(START, "echo")
    await builder.compile(checkpointer=saver).ainvoke(ASKED, RUN)
    with pytest.raises(OtherGraphError, match="'t' holds a run of another graph"):
        await history("t", checkpointer=saver)


class DyingSaver(InMemorySaver):
    """Stores a run's input, and dies before anything that comes of it."""

    dies = True
    stored = False

    async def aput(self, *arguments):
        if self.dies and self.stored:
            raise ConnectionError("killed")
        self.stored = True
        return await super().aput(*arguments)

    async def aput_writes(self, *arguments):
        if not self.dies:
            await super().aput_writes(*arguments)


async def test_a_run_that_died_before_its_first_step_is_no_other_graphs(mock, connect):
    """Its thread holds the input alone; it goes on, and asks for all of its calls."""
    saver, model = DyingSaver(), connect()
    with pytest.raises(ConnectionError):
        await solve(QUESTION, CONFIG, model=model, checkpointer=saver, thread_id="t")
    saver.dies = False
    mock.reset()
    assert (await history("t", checkpointer=saver)).namespace == ""
    result = await resume("t", model=model, checkpointer=saver)
    assert result.ledger.to_json()["calls"] == CALLS == mock.stats()["calls"]


MODEL = ScriptedChat(replies=["It is 4."])


@pytest.mark.parametrize("make", [pdr_node, as_tool])
@pytest.mark.parametrize(
    ("config", "model", "sentence"),
    [
        (5, MODEL, r"config must be a PDRConfig, such as preset\('pdr'\) returns, .*, not 5"),
        ({"width": [2]}, MODEL, "unknown setting 'width'"),
        (preset("pdr"), "gpt-5", "model 'gpt-5' is a name, and no model; open one"),
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
    """Its answer is the solution; a synchronous call is refused with the remedy."""
    tool = as_tool(preset("long_cot"), model=MODEL)
    assert await tool.ainvoke({"question": "2 + 2?"}) == "It is 4."
    assert await tool.ainvoke({"question": " "}) == "the question is empty; state it in full"
    with pytest.raises(ConfigError, match="think_hard is asynchronous; call it, or its agent, by"):
        tool.invoke({"question": "2 + 2?"})

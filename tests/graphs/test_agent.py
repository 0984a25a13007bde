"""`graphs/agent.py`: which questions it thinks about, and what they cost."""

import pytest

pytest.importorskip("langchain", reason="needs LangChain's agents: pip install 'pdr-graph[agent]'")

from graphs.agent import TRIAGE, build_agent
from pdr_graph import preset
from pdr_graph.types import LedgerRow

CONFIG = preset(
    "pdr", answer="text", widths=(3, 2), kappa=256, max_tokens=256, solution_tokens=192, seed=7
)
SORTING = TRIAGE.text[:30]


async def ask(client, question: str) -> dict:
    return await build_agent(client, CONFIG).ainvoke({"messages": [("user", question)]})


@pytest.mark.parametrize("said", ["EASY", "easy.", "This is EASY, not HARD."])
async def test_what_is_easy_is_answered_at_once(mock, connect, said):
    """One call sorts, one answers."""
    mock.configure(
        replies=[
            {"contains": SORTING, "content": said},
            {"contains": "Hello!", "content": "Hello to you."},
        ]
    )
    state = await ask(connect(), "Hello!")
    assert state["messages"][-1].text == "Hello to you."
    assert mock.stats()["calls"] == 2
    assert state["ledger"] == []


@pytest.mark.parametrize("said", ["HARD", "It is HARD, though it looks EASY", "No idea.", ""])
async def test_what_is_hard_or_in_doubt_is_thought_about(mock, connect, said):
    """PDR's every call is charged to the agent; its answer is the agent's message."""
    mock.configure(replies=[{"contains": SORTING, "content": said}])
    state = await ask(connect(), "Plan the test of a bridge.")
    (row,) = state["ledger"]
    assert isinstance(row, dict)
    assert set(row) == set(LedgerRow.__annotations__) - {"model"}  # all are of one
    assert row["calls"] == 3 + 1 + 2 + 1 + 1 == mock.stats()["calls"] - 1
    assert state["messages"][-1].response_metadata["pdr"]["preset"] == "pdr@widths=3,2"


async def test_it_thinks_about_the_last_question_with_what_came_before(mock, connect):
    """Triage reads the last message; PDR reads the conversation."""
    mock.configure(replies=[{"contains": SORTING, "content": "HARD"}])
    agent = build_agent(connect(), CONFIG)
    turns = [("user", "My name is Ada."), ("ai", "Hello Ada."), ("user", "Prove it is short.")]
    await agent.ainvoke({"messages": turns})
    sorting, *drafts = [request["body"]["messages"] for request in mock.requests()]
    assert "Ada" not in str(sorting)
    assert all("My name is Ada." in str(draft) for draft in drafts[:3])

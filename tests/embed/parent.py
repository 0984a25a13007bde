"""A parent agent in a process of its own, kept in Redis, to be killed.

python -m tests.embed.parent MODEL_URL REDIS_URL THREAD node|tool start|resume
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pdr_checkpoints import open_checkpointer

from pdr_graph import ChatVLLM, ModelClient, as_tool, pdr_node, preset
from pdr_graph.budget import merge_rows
from pdr_graph.types import LedgerRow

CONFIG = preset("pdr", widths=(4, 2), kappa=256, max_tokens=256, solution_tokens=192, seed=7)
CALLS = 4 + 1 + 2 + 1 + 1
QUESTION = "What is 6 x 7?"


class Charged(MessagesState):
    """A conversation and what it cost."""

    ledger: Annotated[list[LedgerRow], merge_rows]


def node_parent(model: ModelClient | ChatVLLM) -> StateGraph:
    """Return a parent that holds PDR as a node."""
    builder = StateGraph(Charged)
    builder.add_node("reason", pdr_node(CONFIG, model=model))
    builder.add_edge(START, "reason")
    return builder


def tool_parent(
    model: ModelClient | ChatVLLM, questions: Sequence[str] = (QUESTION,)
) -> StateGraph:
    """Return a parent that calls PDR as a tool, as a model would that asks it these questions."""

    def caller(state: Charged) -> dict[str, Any]:
        calls = [
            {"name": "think_hard", "args": {"question": each}, "id": f"call-{index}"}
            for index, each in enumerate(questions)
        ]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    builder = StateGraph(Charged)
    builder.add_node("caller", caller)
    builder.add_node("tools", ToolNode([as_tool(CONFIG, model=model)]))
    builder.add_edge(START, "caller")
    builder.add_edge("caller", "tools")
    return builder


async def main(url: str, redis_url: str, thread: str, form: str, way: str) -> None:
    """Run the parent, or go on with it, and print how it ended."""
    model = ChatVLLM(base_url=url, model="mock-model")
    builder = node_parent(model) if form == "node" else tool_parent(model)
    async with open_checkpointer(redis_url) as saver:
        graph = builder.compile(checkpointer=saver)
        entry = {"messages": [("user", QUESTION)]} if way == "start" else None
        run = {"configurable": {"thread_id": thread}}
        state = await graph.ainvoke(entry, run, durability="sync")
    print(  # noqa: T201  # what the test reads
        json.dumps({"text": state["messages"][-1].text, "calls": state["ledger"][0]["calls"]})
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

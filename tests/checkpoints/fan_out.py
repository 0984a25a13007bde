"""The graph of these tests: a plan, parallel drafts, a collection, as in PDR but without a model.

Run as a program it is the client that a test kills: `fan_out.py URL PREFIX THREAD FOLDER nested`.
"""

import asyncio
import operator
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send
from pdr_checkpoints import open_checkpointer


class Draft(TypedDict):
    index: int
    text: str


class State(TypedDict, total=False):
    problem: str
    width: int
    rounds: int
    """Rounds still to do."""
    drafts: Annotated[list[Draft], operator.add]
    workspace: str


@dataclass
class Drafter:
    """Writes a draft, and a line into a file when it has: a draft made twice has two lines."""

    folder: Path
    held: frozenset[int] = frozenset()
    """Drafts that wait until the file `go` exists."""
    size: int = 2000

    async def __call__(self, argument: dict[str, Any]) -> dict[str, Any]:
        index = argument["index"]
        # Another process makes the file, so no event can announce it.
        while index in self.held and not (self.folder / "go").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with (self.folder / "finished").open("a") as log:
            log.write(f"{argument['round']}.{index}\n")
        text = f"draft {argument['round']}.{index} " + "x" * self.size
        return {"drafts": [Draft(index=index, text=text)]}


def build(drafter: Any, *, nested: bool = False, checkpointer: Any = None) -> CompiledStateGraph:
    """Compile the graph; nested, it is a node of another one."""

    async def plan(state: State) -> dict[str, Any]:
        return {"rounds": state["rounds"] - 1}

    def fan_out(state: State) -> list[Send]:
        return [
            Send("drafter", {"index": index, "round": state["rounds"]})
            for index in range(state["width"])
        ]

    async def collect(state: State) -> dict[str, Any]:
        return {"workspace": ",".join(str(draft["index"]) for draft in state["drafts"])}

    def another(state: State) -> str:
        return "plan" if state["rounds"] > 0 else END

    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("drafter", drafter)
    builder.add_node("collect", collect)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", fan_out, ["drafter"])
    builder.add_edge("drafter", "collect")
    builder.add_conditional_edges("collect", another, ["plan", END])
    if not nested:
        return builder.compile(checkpointer=checkpointer)
    outer = StateGraph(State)
    outer.add_node("pdr", builder.compile())
    outer.add_edge(START, "pdr")
    outer.add_edge("pdr", END)
    return outer.compile(checkpointer=checkpointer)


def config(thread_id: str, **more: Any) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread_id, **more}, "recursion_limit": 100}


def start(width: int = 8, rounds: int = 1) -> State:
    return {"problem": "1 + 1", "width": width, "rounds": rounds}


async def num_finished(saver: BaseCheckpointSaver, thread_id: str) -> int:
    """Count drafts that the server holds as pending writes."""
    count = 0
    async for found in saver.alist({"configurable": {"thread_id": thread_id}}):
        count += sum(channel == "drafts" for _, channel, _ in found.pending_writes or ())
    return count


async def main(url: str, prefix: str, thread_id: str, folder: str, kind: str) -> None:
    drafter = Drafter(Path(folder), held=frozenset({5, 6, 7}))
    async with open_checkpointer(url, prefix=prefix) as saver:
        graph = build(drafter, nested=kind == "nested", checkpointer=saver)
        async with saver.lease(thread_id, ttl_s=1.5):
            await graph.ainvoke(start(), config(thread_id))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""The workload: a graph of rounds of drafts whose nodes take no time, and real prose for them."""

from __future__ import annotations

import inspect
import pydoc_data.topics
import random
import re
import sysconfig
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.channels import Topic
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

ROUNDS, WIDTH = 3, 16
DRAFT, WORKSPACE = 32_000, 4_000
"""Characters."""


class State(TypedDict, total=False):
    """What PDR keeps: the drafts of one round, and a bounded workspace."""

    seed: int
    round: int
    drafts: Annotated[list[dict[str, Any]], Topic(dict, False)]
    workspace: str


_DOCSTRING = re.compile(r'^[ \t]*r?"""(.*?)"""', re.DOTALL | re.MULTILINE)


def prose() -> str:
    """Collect the documentation that comes with Python: about 2 MB, no passage twice."""
    texts = dict.fromkeys(pydoc_data.topics.topics.values())
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "pydoc_data"} & set(path.parts):
            continue
        # Parsing the library takes ten seconds, in each process that is measured.
        source = path.read_text(encoding="utf-8", errors="ignore")
        texts.update(dict.fromkeys(map(inspect.cleandoc, _DOCSTRING.findall(source))))
    return "\n\n".join(text for text in texts if len(text) > 80)


class Drafter:
    """Returns prose: the drafts of a run are different passages, in random order."""

    def __init__(self, text: str) -> None:
        last = len(text) - DRAFT
        self.starts = [n * last // (ROUNDS * WIDTH - 1) for n in range(ROUNDS * WIDTH)]
        self.text = text
        self.orders: dict[int, list[int]] = {}

    async def __call__(self, argument: dict[str, Any]) -> dict[str, Any]:
        """Return one draft at once."""
        seed = argument["seed"]
        if seed not in self.orders:
            self.orders[seed] = random.Random(seed).sample(self.starts, len(self.starts))
        start = self.orders[seed][(argument["round"] - 1) * WIDTH + argument["index"]]
        # Shifted by a few characters, so that no two runs cut alike.
        start = max(0, start - seed % 97)
        return {"drafts": [{"index": argument["index"], "text": self.text[start : start + DRAFT]}]}


def build(drafter: Drafter, checkpointer: BaseCheckpointSaver[Any] | None) -> CompiledStateGraph:
    """Compile the graph, whose nodes take no time of their own."""

    async def plan(state: State) -> dict[str, Any]:
        return {"round": state.get("round", 0) + 1}

    def fan_out(state: State) -> list[Send]:
        argument = {"seed": state["seed"], "round": state["round"]}
        return [Send("drafter", {**argument, "index": n}) for n in range(WIDTH)]

    async def distiller(state: State) -> dict[str, Any]:
        return {"workspace": "".join(d["text"][: WORKSPACE // WIDTH] for d in state["drafts"])}

    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("drafter", drafter)
    builder.add_node("distiller", distiller)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", fan_out, ["drafter"])
    builder.add_edge("drafter", "distiller")
    builder.add_conditional_edges(
        "distiller", lambda state: "plan" if state["round"] < ROUNDS else END, ["plan", END]
    )
    return builder.compile(checkpointer=checkpointer)

"""What all nodes of a graph share: their dependencies, and where in a run they are called."""

import random
from dataclasses import dataclass

from langgraph.config import get_config

from pdr_graph.answers import answer_kind
from pdr_graph.budget import finish_cost, round_cost, why_not_another_round
from pdr_graph.config import PDRConfig
from pdr_graph.distill import MaxCalls
from pdr_graph.extensions import Extensions
from pdr_graph.llm.asker import Asker, derived_seed
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.usage import Meter
from pdr_graph.prompts import Prompts
from pdr_graph.state import PDRState, config_of, next_width, succeeded
from pdr_graph.step import Step
from pdr_graph.strategies import width_of
from pdr_graph.trace import Trace


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The dependencies of one graph: what this process owns."""

    client: ModelClient
    extensions: Extensions
    prompts: Prompts
    trace: Trace | None
    stream_answer: bool
    """Whether the refinement is streamed, as `chunk` events, while it is written."""

    def asker(self, node: str, round_number: int, config: PDRConfig) -> Asker:
        """Return what a node asks the model with; its meter is at zero."""
        return Asker(
            client=self.client,
            prompts=self.prompts.of_run(config),
            trace=self.trace,
            config=config,
            meter=Meter(node, round_number, superstep()),
            node=node,
            round_number=round_number,
            thread_id=thread_id(),
        )

    def step(self, node: str, state: PDRState) -> Step:
        """Return what a pluggable step is handed."""
        config = config_of(state)
        return Step(
            problem=state["problem"],
            problem_tokens=state["problem_tokens"],
            config=config,
            drafts=succeeded(state),
            workspaces=state.get("workspaces", []),
            next_width=next_width(state),
            answers=answer_kind(config.answer),
            ask=self.asker(node, state["round"], config),
            rng=random.Random(derived_seed(config.seed or 0, node, state["round"])),
            tally=state.get("tally"),
            solution=state.get("solution"),
        )


def superstep() -> int:
    """Return the number of the super-step that the calling node runs in."""
    return int(get_config().get("metadata", {}).get("langgraph_step", 0))


def thread_id() -> str:
    """Return the name of the calling node's thread; empty in a run without one."""
    return str(get_config().get("configurable", {}).get("thread_id", ""))


def run_key() -> tuple[str, str, int]:
    """Return a key of the calling super-step: its thread, the subgraph in it, and its number."""
    namespace = str(get_config().get("configurable", {}).get("checkpoint_ns", ""))
    return thread_id(), namespace.rpartition("|")[0], superstep()


def why_not_round(state: PDRState, max_calls: MaxCalls) -> str | None:
    """Say why the next parallel round cannot be paid for, None if it can."""
    config, next_round = config_of(state), state["round"] + 1
    width, after = width_of(config, next_round), width_of(config, next_round + 1)
    return why_not_another_round(
        config,
        state.get("ledger", []),
        cost=round_cost(
            config,
            width=width,
            problem_tokens=state["problem_tokens"],
            distiller_calls=max_calls(width, after, config.k),
        ),
        reserve=finish_cost(config, problem_tokens=state["problem_tokens"]),
    )

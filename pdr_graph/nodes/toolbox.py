"""What all nodes of a graph share: their dependencies, and where in a run they are called."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_TASK_ID,
)
from langgraph.config import get_config
from langgraph.types import StreamWriter

from pdr_graph.answers import answer_kind, one_vote
from pdr_graph.budget import finish_cost, reading_cost, round_cost, why_not_another_round
from pdr_graph.config import PDRConfig, width_of
from pdr_graph.distill import MaxCalls
from pdr_graph.events import NoteEvent, RunEvent, log_event
from pdr_graph.extensions import Extensions
from pdr_graph.invocation import Invocation
from pdr_graph.llm.asker import Asker, derived_seed
from pdr_graph.llm.models import Models, verifying
from pdr_graph.llm.usage import Meter
from pdr_graph.prompts import Prompts
from pdr_graph.state import PDRState, config_of, next_width, succeeded
from pdr_graph.step import Step
from pdr_graph.trace import Trace
from pdr_graph.types import LedgerRow

_WEIGHED: Mapping[str, Callable[[PDRConfig], bool]] = {
    "drafter": lambda config: config.weighs,
    # The only finish whose call is a voice among the drafts.
    "refiner": lambda config: config.finish == "guarded",
}
"""Nodes whose replies may be weighed, each with the condition on the config."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The dependencies of one graph: what this process owns."""

    models: Models
    extensions: Extensions
    """The steps of the graph; nodes take `operators`."""
    prompts: Prompts
    trace: Trace | None
    stream_answer: bool
    """Whether the refinement is streamed, as `chunk` events, while it is written."""

    @property
    def operators(self) -> Extensions:
        """The steps of this call: those of the graph, and those that the caller names."""
        handed = Invocation.current().handed
        return self.extensions if handed is None else self.extensions.with_code(handed)

    def asker(
        self,
        node: str,
        round_number: int,
        config: PDRConfig,
        *,
        run: str = "",
        part: str = "",
        role: str | None = None,
    ) -> Asker:
        """Return the asker of a node; its meter holds the cost of earlier attempts at the task.

        Args:
            node: The node.
            round_number: The round that it works on.
            config: What the run is asked for.
            run: The run.
            part: Tells tasks of one super-step apart.
            role: Whose model is asked; None is the role of the node.
        """
        role = role or (verifying(config) if node == "verifier" else node)
        models = self.models.for_run(config)
        client, several = models.client(role), bool(models.names)
        model = client.name if several else ""
        meter = Meter(node, round_number, superstep(), run=run, part=part, model=model)
        return Asker(
            client=client,
            told_apart=several,
            prompts=self.prompts.of_run(config),
            trace=self.trace,
            config=config,
            meter=Invocation.current().charges.meter(task_id(), meter),
            node=node,
            round_number=round_number,
            thread_id=thread_id(),
            logprobs=node in _WEIGHED and _WEIGHED[node](config),
        )

    def step(self, node: str, state: PDRState) -> Step:
        """Return the argument of a pluggable step."""
        config = config_of(state)
        ask = self.asker(node, state["round"], config, run=state.get("run", ""))
        return Step(
            problem=state["problem"],
            problem_tokens=state["problem_tokens"],
            config=config,
            drafts=succeeded(state),
            workspaces=state.get("workspaces", []),
            next_width=next_width(state),
            answers=answer_kind(config.answer),
            ask=ask,
            readers=self.models.for_run(config).readers,
            rng=random.Random(derived_seed(config.seed or 0, node, state["round"])),
            tally=state.get("tally"),
            solution=state.get("solution"),
            context=Invocation.current().context,
            judge=self.extensions.of(config).judge,
        )


def superstep() -> int:
    """Return the number of the super-step that the calling node runs in."""
    return int(get_config().get("metadata", {}).get("langgraph_step", 0))


def thread_id() -> str:
    """Return the name of the calling node's thread; empty in a run without one."""
    return str(get_config().get("configurable", {}).get("thread_id", ""))


def namespace() -> str:
    """Return the place of the calling node's graph in its thread; empty at the root."""
    own = str(get_config().get("configurable", {}).get("checkpoint_ns", ""))
    return own.rpartition("|")[0]


def task_id() -> str:
    """Return the id of the calling task: one node in one super-step, its further attempts too."""
    return str(get_config().get("configurable", {}).get(CONFIG_KEY_TASK_ID, ""))


def run_name() -> str:
    """Return a name for the run that the calling step opens; no other of its thread has it."""
    kept = get_config().get("configurable", {}).get(CONFIG_KEY_CHECKPOINTER) is not None
    # Named by its place, so that a repeated run has the same name. Without a store, runs at one
    # place may go on side by side, so each is named by the id of its task.
    place = (thread_id(), namespace(), superstep()) if kept else task_id()
    return sha256(repr(place).encode()).hexdigest()[:12]


def is_continued() -> bool:
    """Tell whether the run stopped before the calling super-step, which is its first since then."""
    return bool(get_config().get("configurable", {}).get(CONFIG_KEY_RESUMING))


def run_key(run: str) -> tuple[str, str, str, int]:
    """Return a key of the calling super-step: thread, subgraph in it, run, and number."""
    return thread_id(), namespace(), run, superstep()


def tell(write: StreamWriter, event: RunEvent) -> None:
    """Report an event: on the graph's stream `custom`, and in the log."""
    write(event)
    log_event(thread_id(), event)


@contextmanager
def voting(step: Step, write: StreamWriter, told: Sequence[str]) -> Iterator[None]:
    """Compare the answers of a step as one vote, and note what could not be compared or weighed.

    Args:
        step: Its notes are added to.
        write: Receives events.
        told: Notes of the run so far; that drafts could not be weighed is noted once in a run.
    """
    with one_vote() as vote:
        yield
    notes = list(vote.notes())
    why = next((each["unweighed"] for each in step.drafts if "unweighed" in each), None)
    lead = "not every draft could be weighed, so all count alike: "
    if why is not None and not any(each.startswith(lead) for each in told):
        notes.insert(0, lead + why)
    for note in notes:
        step.notes.append(note)
        tell(write, NoteEvent(event="note", text=note))


def charged(meter: Meter, *, estimated: bool = False) -> LedgerRow:
    """Return what the calling task has spent, to be written to the ledger.

    The run then forgets the meter. The meter of a task that returns nothing is charged at the end.
    """
    row = meter.row(estimated=estimated)
    Invocation.current().charges.settle(task_id(), row)
    return row


def why_not_round(state: PDRState, max_calls: MaxCalls, steps: Extensions) -> str | None:
    """Say why the next parallel round cannot be paid for, None if it can."""
    config, next_round = config_of(state), state["round"] + 1
    problem_tokens, judge = state["problem_tokens"], steps.of(config).judge
    reads = judge is not None and judge.reads
    reading = reading_cost(config, problem_tokens=problem_tokens) if reads else 0
    width, after = width_of(config, next_round), width_of(config, next_round + 1)
    return why_not_another_round(
        config,
        state.get("ledger", []),
        cost=round_cost(
            config,
            width=width,
            problem_tokens=problem_tokens,
            distiller_calls=max_calls(width, after, config.k),
        )
        + width * reading,
        reserve=finish_cost(config, problem_tokens=problem_tokens)
        + (reading if config.finish == "guarded" else 0),
    )

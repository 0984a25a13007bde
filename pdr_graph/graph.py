"""The state machine: one graph for every strategy.

    START → plan ─→ drafter × M_r (Send) ─→ distiller ─→ plan │ refiner ─→ verifier ─→ END │ plan
               └──→ refiner

Routers read the state alone and take no runtime: LangGraph evaluates them again when a state is
edited (`update_state`, a fork in Studio), where there is no runtime.
"""

from typing import Literal

from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

from pdr_graph.config import PDRConfig, form_of
from pdr_graph.extensions import Extensions
from pdr_graph.llm.client import ModelClient
from pdr_graph.nodes.distiller import DistillerNode
from pdr_graph.nodes.drafter import Drafter
from pdr_graph.nodes.plan import Planner
from pdr_graph.nodes.refiner import Refiner
from pdr_graph.nodes.toolbox import Toolbox
from pdr_graph.nodes.verifier import Verifier
from pdr_graph.prompts import Prompts
from pdr_graph.state import DraftTask, PDRState, ProblemInput, missing_drafts, rounds_left
from pdr_graph.trace import Trace


def after_plan(state: PDRState) -> list[Send] | Literal["refiner"]:
    """Send a drafter for every draft that the round still owes, or finish."""
    if state["phase"] != "draft":
        return "refiner"
    return [Send("drafter", task) for task in missing_drafts(state)]


def after_distiller(state: PDRState) -> Literal["plan", "refiner"]:
    """Plan the next round if one is left and the drafts have not agreed."""
    if state.get("consensus") is None and rounds_left(state) > 0:
        return "plan"
    return "refiner"


def after_verifier(state: PDRState) -> Literal["plan", "__end__"]:
    """Go back for another round if the verifier granted one."""
    return "plan" if state["phase"] == "draft" else "__end__"


PDRGraph = CompiledStateGraph[PDRState, PDRConfig, ProblemInput, PDRState]


def build_graph(
    model: BaseChatModel | ModelClient,
    *,
    default: PDRConfig | None = None,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    extensions: Extensions | None = None,
    prompts: Prompts | None = None,
    trace: Trace | None = None,
    stream_answer: bool = False,
) -> PDRGraph:
    """Compile the graph; its input is `{"problem": ...}`, its context a `PDRConfig`.

    Args:
        model: Any chat model, or a `ModelClient` with limits and a token counter of its own.
        default: The config of a run whose caller gives none; None is `PDRConfig()`.
        checkpointer: Where runs are kept; None if a parent graph or a server provides one.
        extensions: Distillers, finishes and verifiers of your own.
        prompts: None is the built-in ones.
        trace: Receives every model call in full; None keeps nothing.
        stream_answer: Whether the refinement is streamed while the model writes it, as `chunk`
            events on the stream `custom`.
    """
    toolbox = Toolbox(
        client=ModelClient.of(model),
        extensions=extensions or Extensions(),
        prompts=prompts or Prompts.load(),
        trace=trace,
        stream_answer=stream_answer,
    )
    default = default or PDRConfig()
    builder = StateGraph(PDRState, context_schema=form_of(default), input_schema=ProblemInput)
    builder.add_node("plan", Planner(toolbox, default), input_schema=PDRState)
    builder.add_node("drafter", Drafter(toolbox), input_schema=DraftTask)
    builder.add_node("distiller", DistillerNode(toolbox), input_schema=PDRState)
    builder.add_node("refiner", Refiner(toolbox), input_schema=PDRState)
    builder.add_node("verifier", Verifier(toolbox), input_schema=PDRState)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", after_plan, ["drafter", "refiner"])
    builder.add_edge("drafter", "distiller")
    builder.add_conditional_edges("distiller", after_distiller)
    builder.add_edge("refiner", "verifier")
    builder.add_conditional_edges("verifier", after_verifier)
    return builder.compile(checkpointer=checkpointer, name="pdr")


def max_supersteps(config: PDRConfig) -> int:
    """Return a recursion limit that no run of this config reaches."""
    rounds = len(config.widths) + config.max_extra_rounds + 1
    return 3 * rounds + 10  # a round is three: plan, drafters, distiller

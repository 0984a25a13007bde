"""A summary: a document and a length in, a text out; functions map the state to the problem."""

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from pdr_graph import ModelClient, Models, PDRConfig, Result, pdr_node

FIELDS = {"answer": "text"}


class SummaryState(TypedDict, total=False):
    """What is asked, and the answer."""

    document: str
    words: int
    """Words that the summary should have, about."""
    summary: str
    tokens: int
    """B_total of the run."""


def problem_of(state: SummaryState) -> str:
    """Return the task as the model reads it."""
    return (
        f"Summarise the document in about {state['words']} words, for a reader who will not see "
        "it. Keep its figures and names; add nothing.\n\n"
        f"<document>\n{state['document'].strip()}\n</document>"
    )


def update_of(result: Result) -> SummaryState:
    """Return the update of the parent's state."""
    return {"summary": result.solution, "tokens": result.ledger.b_total}


def build(
    models: ModelClient | Models, config: PDRConfig
) -> CompiledStateGraph[SummaryState, None, SummaryState, SummaryState]:
    """Compile the graph; its input is `{"document": …, "words": …}`."""
    builder = StateGraph(SummaryState)
    builder.add_node(
        "summarise", pdr_node(config, model=models, input=problem_of, output=update_of)
    )
    builder.add_edge(START, "summarise")
    return builder.compile(name="summary")

"""A summary: a document and a length in, a text out, by functions of the state's own."""

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from pdr_graph import ModelClient, PDRConfig, Result, pdr_node

FIELDS = {"answer": "text"}


class SummaryState(TypedDict, total=False):
    """What is asked, and what came of it."""

    document: str
    words: int
    """About how long the summary is to be."""
    summary: str
    tokens: int
    """What it cost, B_total."""


def problem_of(state: SummaryState) -> str:
    """Return the task as the model reads it."""
    return (
        f"Summarise the document in about {state['words']} words, for a reader who will not see "
        "it. Keep its figures and names; add nothing.\n\n"
        f"<document>\n{state['document'].strip()}\n</document>"
    )


def update_of(result: Result) -> SummaryState:
    """Return what the parent's state learns."""
    return {"summary": result.solution, "tokens": result.ledger.b_total}


def build(
    client: ModelClient, config: PDRConfig
) -> CompiledStateGraph[SummaryState, None, SummaryState, SummaryState]:
    """Compile the graph; its input is `{"document": …, "words": …}`."""
    builder = StateGraph(SummaryState)
    builder.add_node(
        "summarise", pdr_node(config, model=client, input=problem_of, output=update_of)
    )
    builder.add_edge(START, "summarise")
    return builder.compile(name="summary")

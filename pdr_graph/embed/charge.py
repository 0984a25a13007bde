"""What a whole run costs the graph that holds it, as one row of the parent's ledger.

The parent's channel is `ledger: Annotated[list[LedgerRow], merge_rows]`.
"""

from langgraph.config import get_config

from pdr_graph.nodes.toolbox import superstep
from pdr_graph.result import Result
from pdr_graph.types import LedgerRow


def charge(result: Result) -> LedgerRow:
    """Return a run as one row of the calling node and super-step.

    Runs side by side in one super-step of the parent merge into the longest of them, as calls of
    one step do; what each node of the run cost is in the run's own ledger.
    """
    rows = result.ledger.rows
    return LedgerRow(
        round=0,
        node=str(get_config().get("metadata", {}).get("langgraph_node", "")),
        step=superstep(),
        calls=sum(row["calls"] for row in rows),
        prompt_tokens=sum(row["prompt_tokens"] for row in rows),
        cached_tokens=sum(row["cached_tokens"] for row in rows),
        completion_tokens=sum(row["completion_tokens"] for row in rows),
        reasoning_tokens=sum(row["reasoning_tokens"] for row in rows),
        failed=sum(row["failed"] for row in rows),
        aborted=sum(row["aborted"] for row in rows),
        seconds=sum(row["seconds"] for row in rows),
        estimated=result.ledger.estimated,
        critical_tokens=result.ledger.b_seq,
        nominal_tokens=sum(row["nominal_tokens"] for row in rows),
        critical_nominal=sum(row["critical_nominal"] for row in rows),
    )

"""The end of a run: the refiner makes the solution, the verifier judges it.

The refiner ends the rounds by the final call, or by the vote or selection in its place. The
verifier grants further rounds to a rejected solution while any are left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime
from langgraph.types import StreamWriter

from pdr_graph.budget import Ledger, b_total
from pdr_graph.config import DRAFT_FINISHES, PDRConfig
from pdr_graph.distill.workspace import Entry, pack
from pdr_graph.errors import counted
from pdr_graph.events import ChunkEvent, FinishEvent, SolutionEvent, VerdictEvent
from pdr_graph.finish import FINISHES
from pdr_graph.invocation import Invocation
from pdr_graph.llm.client import OnChunk
from pdr_graph.nodes.toolbox import Toolbox, charged, tell, voting, why_not_round
from pdr_graph.state import PDRState, state_of
from pdr_graph.step import Step, closing_line
from pdr_graph.types import LedgerRow, Verdict, Workspace


@dataclass(frozen=True, slots=True)
class Refiner:
    """Turns the last workspace, or the last drafts, into the solution."""

    toolbox: Toolbox

    async def __call__(self, state: PDRState, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the solution and what it cost."""
        step = self.toolbox.step("refiner", state)
        name = step.config.finish
        if state.get("consensus") is not None:
            name = "weighted_vote" if step.config.weighs else "vote"
        elif name in DRAFT_FINISHES and not step.drafts:
            name = "refine"  # the budget ended the rounds after the drafts had been distilled
        tell(runtime.stream_writer, FinishEvent(event="finish", finish=name))
        if name == "refine" and self.toolbox.stream_answer:
            step = replace(step, ask=replace(step.ask, on_chunk=_teller(runtime.stream_writer)))
        finish = FINISHES["refine"] if name == "refine" else self.toolbox.operators.finish(name)
        with voting(step, runtime.stream_writer, state["notes"]):
            solution = await finish(step)
        row = charged(step.ask.meter)
        step.notes.extend(_budget_note(step.config, [*state["ledger"], row], state["notes"]))
        tell(
            runtime.stream_writer,
            SolutionEvent(
                event="solution",
                answer=solution["answer"],
                spent=b_total([row]),
                seconds=round(row["seconds"], 3),
            ),
        )
        return {
            "solution": solution,
            "ledger": [row],
            "notes": [*state["notes"], *step.notes],
        }


def _budget_note(
    config: PDRConfig, rows: Sequence[LedgerRow], notes: Sequence[str]
) -> Iterator[str]:
    """Yield a note on thoughts longer than their budget, once in a run."""
    budget, over = config.thinking_token_budget, Ledger(tuple(rows)).over_budget
    lead = f"the server does not keep thinking_token_budget {budget}"
    if over and not any(note.startswith(lead) for note in notes):
        calls = counted(over, "call")
        yield f"{lead}: {calls} thought longer; vLLM needs --reasoning-parser for it"


def _teller(write: StreamWriter) -> OnChunk:
    def tell_chunk(attempt: int, chunk: AIMessage) -> None:
        thought = chunk.additional_kwargs.get("reasoning_content") or ""
        if thought or chunk.text:
            write(ChunkEvent(event="chunk", attempt=attempt, thought=thought, text=chunk.text))

    return tell_chunk


@dataclass(frozen=True, slots=True)
class Verifier:
    """Records a verdict and decides whether the run is done."""

    toolbox: Toolbox

    async def __call__(self, state: PDRState, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the verdict; a granted round reads the rejected solution and the reasons."""
        step = self.toolbox.step("verifier", state)
        with voting(step, runtime.stream_writer, state["notes"]):
            verdict = await self.toolbox.operators.verifier(step.config.verifier)(step)
        tell(runtime.stream_writer, VerdictEvent(event="verdict", **verdict))
        notes = [*state["notes"], *step.notes]
        row = charged(step.ask.meter)
        update: dict[str, object] = {"verdict": verdict, "phase": "done", "notes": notes}
        if row["calls"]:
            update["ledger"] = [row]
        spent = b_total([*state.get("ledger", []), row])
        granted = state.get("extra_rounds", 0)
        if verdict["accepted"] is not False or granted >= step.config.max_extra_rounds:
            Invocation.current().b_total = spent
            return update
        distiller = self.toolbox.operators.distiller(step.config.distiller)
        wider = state_of({**state, "extra_rounds": granted + 1})
        why_not = why_not_round(wider, distiller.max_calls, self.toolbox.extensions)
        if why_not is not None:
            Invocation.current().b_total = spent
            return update | {"notes": [*notes, f"the rejected solution stands: {why_not}"]}
        return update | {
            "phase": "draft",
            "extra_rounds": granted + 1,
            "consensus": None,
            "workspaces": [await _feedback(step, verdict)],
        }


async def _feedback(step: Step, verdict: Verdict) -> Workspace:
    solution = step.solution
    assert solution is not None  # the refiner has just written it
    return await pack(
        [
            Entry(
                solution["text"],
                closing_line(solution["answer"]),
                title="A solution that was rejected:",
            ),
            Entry(verdict["reason"], title="Why it was rejected:"),
        ],
        step.config.kappa,
        step.counter,
    )

"""Judges the solution, and grants further rounds to a rejected one while any are left."""

from dataclasses import dataclass

from langgraph.runtime import Runtime

from pdr_graph.budget import b_total
from pdr_graph.config import PDRConfig
from pdr_graph.distill.workspace import Entry, pack
from pdr_graph.events import VerdictEvent
from pdr_graph.invocation import Invocation
from pdr_graph.nodes.toolbox import Toolbox, charged, tell, voting, why_not_round
from pdr_graph.state import PDRState, state_of
from pdr_graph.step import Step, closing_line
from pdr_graph.types import Verdict, Workspace


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
        why_not = why_not_round(wider, distiller.max_calls, self.toolbox.extensions.judge)
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

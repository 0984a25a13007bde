"""What a run answered and what it cost."""

from dataclasses import dataclass
from typing import Any

from pdr_graph.budget import Ledger
from pdr_graph.config import PDRConfig
from pdr_graph.state import PDRState, config_of
from pdr_graph.types import Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run."""

    thread_id: str
    config: PDRConfig
    answer: str | None
    """The final answer as extracted; None if the solution states none."""
    solution: str
    verdict: Verdict
    ledger: Ledger
    notes: tuple[str, ...]
    """Sentences on what the run did otherwise than planned, and why."""
    seconds: float
    """Wall-clock time; for a resumed run the work before the interruption is added."""
    state: PDRState
    """The final state, whole."""

    @classmethod
    def of_state(cls, thread_id: str, state: PDRState, seconds: float) -> "Result":
        """Read a finished run's state."""
        solution, verdict = state["solution"], state["verdict"]
        assert solution is not None  # set before the graph can end
        assert verdict is not None
        return cls(
            thread_id=thread_id,
            config=config_of(state),
            answer=solution["answer"],
            solution=solution["text"],
            verdict=verdict,
            ledger=Ledger(tuple(state.get("ledger", []))),
            notes=tuple(state.get("notes", [])),
            seconds=seconds,
            state=state,
        )

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the object that `pdr-graph solve --json` prints."""
        return {
            "thread_id": self.thread_id,
            "preset": self.config.preset,
            "answer": self.answer,
            "solution": self.solution,
            "verdict": dict(self.verdict),
            "ledger": self.ledger.to_json(),
            "seconds": round(self.seconds, 3),
        }

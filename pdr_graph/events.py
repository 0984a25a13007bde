"""The events of a run: what it reports while it runs.

An event is a dict of plain data, with its name under `event`. The graph's stream `custom` carries
it, `Parts.on_event` receives it, `log_event` logs it without the texts of the run, and `Narration`
puts it in a line. A step of the user's own may write anything to the same stream: `is_event` tells
the two apart.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, get_args

from typing_extensions import TypedDict

from pdr_graph.errors import counted
from pdr_graph.types import DraftError, Verdict

logger = logging.getLogger("pdr_graph.run")


class RoundEvent(TypedDict):
    """A parallel round begins."""

    event: Literal["round"]
    round: int
    """1 for the first."""
    width: int
    """Drafts of the round."""


class DraftEvent(TypedDict):
    """A draft has ended, with a solution or without."""

    event: Literal["draft"]
    round: int
    index: int
    """Position in its round, from 0; drafts end in any order."""
    answer: str | None
    """The final answer as extracted; None if the solution states none, or there is none."""
    error: DraftError | None
    """Why there is no solution; None where there is one."""
    detail: str
    """A sentence on the error; empty without one."""
    tokens: int
    """Prompt and completion tokens of the draft's call, its attempts together."""
    seconds: float


class WorkspaceEvent(TypedDict):
    """A round's drafts are distilled."""

    event: Literal["workspace"]
    round: int
    count: int
    """Workspaces: one that all next calls share, or one for each of them."""
    tokens: int
    """Length of the largest, in model tokens."""
    spent: int
    """Prompt and completion tokens that the distiller spent."""
    seconds: float


class FinishEvent(TypedDict):
    """The rounds are over, and the finish begins."""

    event: Literal["finish"]
    finish: str
    """`refine`, `vote`, `select` or a user's own."""


class ChunkEvent(TypedDict):
    """The model has written a piece of the refinement; only where `Parts.stream_answer` is set."""

    event: Literal["chunk"]
    attempt: int
    """From 1; a further attempt begins the reply anew."""
    thought: str
    """A piece of the thought; empty where the piece is text."""
    text: str


class SolutionEvent(TypedDict):
    """There is a solution."""

    event: Literal["solution"]
    answer: str | None
    """The final answer as extracted; None if the solution states none."""
    spent: int
    """Prompt and completion tokens that the finish spent."""
    seconds: float


class VerdictEvent(Verdict):
    """The solution was judged; the fields are those of `Verdict`."""

    event: Literal["verdict"]


class NoteEvent(TypedDict):
    """The run did something otherwise than planned."""

    event: Literal["note"]
    text: str
    """A sentence that says what, and why."""


class BeginEvent(TypedDict):
    """A process takes up a run; logged only."""

    event: Literal["begin"]
    preset: str
    resumed: bool


class StoppedEvent(TypedDict):
    """An error stopped the run, which can be resumed; logged only."""

    event: Literal["stopped"]
    error: str
    """Name of the error's class."""


class EndEvent(TypedDict):
    """The run has ended; logged only."""

    event: Literal["end"]
    seconds: float
    """Wall-clock time, as in `Result.seconds`."""
    b_total: int


RunEvent = (
    RoundEvent
    | DraftEvent
    | WorkspaceEvent
    | FinishEvent
    | ChunkEvent
    | SolutionEvent
    | VerdictEvent
    | NoteEvent
)
"""What a run reports; `match event["event"]` tells the kinds apart."""

LogEvent = RunEvent | BeginEvent | StoppedEvent | EndEvent

OnEvent = Callable[[RunEvent], None]
"""Receives the events of a run, and whatever a step of the user's own writes to the stream."""

_NAMES = frozenset(
    name for kind in get_args(RunEvent) for name in get_args(kind.__annotations__["event"])
)

_NAMED = frozenset({"error", "finish", "preset"})
"""Fields whose text is a name; any other text may quote the problem or the model."""


def is_event(data: Any) -> TypeGuard[RunEvent]:  # Any: a user's own step may write anything
    """Tell an event of the run from what a user's own step has written to the stream."""
    return isinstance(data, dict) and data.get("event") in _NAMES


def log_event(thread_id: str, event: LogEvent) -> None:
    """Log an event at level INFO, without the texts of the run; chunks are left out.

    The message is `run.draft thread=… round=1 …`. The record's attribute `fields` holds the same
    fields, for formatters that write JSON.
    """
    if event["event"] == "chunk" or not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {"thread": thread_id}
    for name, value in event.items():
        if isinstance(value, (bool, int, float)) or (name in _NAMED and value is not None):
            fields[name] = value
    shown = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.info("run.%s %s", event["event"], shown, extra={"fields": fields})


DOING = {
    "refine": "refining",
    "vote": "voting",
    "weighted_vote": "voting",
    "pairwise_vote": "comparing",
    "guarded": "refining",
    "select": "selecting",
}
"""What a run does, by the finish that ends it."""


class Narration:
    """Puts the events of a run in lines, from the first round to the verdict."""

    def __init__(self, num_rounds: int) -> None:
        """Begin before the first event of a run of `num_rounds` planned rounds."""
        self._num_rounds = num_rounds
        self._width = 0
        self._done = 0

    def line(self, event: RunEvent) -> str:
        """Return the line for an event; empty where there is nothing to say."""
        match event["event"]:
            case "round":
                self._width, self._done = event["width"], 0
                self._num_rounds = max(self._num_rounds, event["round"])
                drafts = counted(self._width, "draft")
                return f"Round {event['round']} of {self._num_rounds}: {drafts}."
            case "draft":
                return self._draft(event)
            case "workspace":
                many = f"{event['count']} workspaces, the largest" if event["count"] > 1 else ""
                return f"Distilled into {many or 'a workspace'} of {event['tokens']} tokens."
            case "finish":
                return f"{DOING.get(event['finish'], event['finish']).capitalize()}."
            case "solution":
                answer = event["answer"]
                return f"Refined: the answer is {answer}." if answer else "Refined."
            case "verdict" if event["accepted"] is not None:
                word = "accepted" if event["accepted"] else "rejected"
                return f"The solution was {word} by {event['verifier']}: {event['reason']}"
            case "note":
                return f"Note: {event['text']}."
            case _:
                return ""

    def _draft(self, event: DraftEvent) -> str:
        self._done += 1
        # A resumed round reports only the drafts that were still owed.
        place = f"Draft {self._done} of {self._width}" if self._width else "Draft"
        if event["error"]:
            return f"{place}: {event['error']}."
        answer = event["answer"]
        return f"{place} done{f', answer {answer}' if answer else ''}."

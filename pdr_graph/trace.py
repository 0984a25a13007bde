"""An optional full record of every model call, reasoning included.

The state keeps solutions only. To keep the thoughts too, for debugging or training, pass a trace.
"""

import asyncio
import json
import logging
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

logger = logging.getLogger(__name__)


class TraceRecord(TypedDict):
    """One model call, whole.

    Example:
        `{"thread_id": "4f1c", "round": 1, "node": "drafter", "index": 0, "template": "draft",
        "prompt": "...", "thought": "...", "solution": "...", "finish_reason": "stop",
        "prompt_tokens": 81, "completion_tokens": 412, "seed": 7, "seconds": 3.2, "error": ""}`
    """

    thread_id: str
    round: int
    node: str
    index: int
    template: str
    prompt: str
    thought: str
    solution: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int
    seconds: float
    error: str
    model: NotRequired[str]
    """The model that was asked; absent in a run with only one model."""
    prompt_ids: NotRequired[list[int]]
    """Set, as the next two, if the model was asked for token ids and log-probabilities."""
    token_ids: NotRequired[list[int]]
    logprobs: NotRequired[list[float]]
    """Log-probability of each of `token_ids` when it was drawn."""


class Trace(Protocol):
    """Receives every call when it ends."""

    async def record(self, call: TraceRecord) -> None:
        """Keep one call; must not raise."""


class JsonLinesTrace:
    """Appends one JSON object a line to a file; the folder must exist."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def record(self, call: TraceRecord) -> None:
        """Append the call, off the event loop."""
        line = json.dumps(call, ensure_ascii=False) + "\n"
        try:
            await asyncio.to_thread(self._append, line)
        except OSError as error:
            # A full disk must not stop the run.
            logger.warning("trace.lost file=%s error=%s", self.file, error)

    def _append(self, line: str) -> None:
        # One write of a whole line in append mode, so that parallel drafts do not mix lines.
        with self.file.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.write(line)

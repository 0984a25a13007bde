"""Each step of a run as a structured log record, without the texts of the run.

Logger `pdr_graph.run`, level INFO. The message is `run.draft thread=… round=1 …`; the same fields
are in the record's attribute `fields`, for formatters that write JSON.
"""

import logging
from typing import Any

logger = logging.getLogger("pdr_graph.run")

_NAMES = frozenset({"error", "finish", "preset", "model", "method"})
"""Fields whose text is a name; any other text may quote the problem or the model."""


def log_event(thread_id: str, event: dict[str, Any]) -> None:
    """Log one event of a run as `Parts.on_event` receives it; pieces of text are passed over."""
    if event["event"] == "chunk" or not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {"thread": thread_id}
    for name, value in event.items():
        if isinstance(value, (bool, int, float)) or (name in _NAMES and value is not None):
            fields[name] = value
    shown = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.info("run.%s %s", event["event"], shown, extra={"fields": fields})

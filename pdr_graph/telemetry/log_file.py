"""Writes what the package logs to a file, one JSON object a line."""

import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path

from pdr_graph.errors import ConfigError


class JSONLines(logging.Formatter):
    """Formats a record as `{"time", "level", "logger", "event", …its fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; without fields it has its text under `message`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage().partition(" ")[0],
        }
        fields = getattr(record, "fields", None)
        line.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Append to a file what the package logs at level INFO and above while the block runs.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"log file {str(file)!r} cannot be written: {error.strerror or error}"
        ) from None
    to_file.setFormatter(JSONLines())
    # A thread writes: whoever logs, an event loop perhaps, never waits for the disk.
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler, writer = _Queued(records), QueueListener(records, to_file)
    package = logging.getLogger("pdr_graph")
    level = package.level
    package.addHandler(handler)
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    writer.start()
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        writer.stop()  # once all is written
        to_file.close()


class _Queued(QueueHandler):
    """Hands records on as they are; the stock class turns them to text, for other processes."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

"""Observes many runs: spans by OpenTelemetry, and a log of JSON lines.

Both are off by default, and OpenTelemetry is imported only when it is needed:

    with observed():
        await solve("What is 6 x 7?", model=model)

The handler of spans reaches every run through LangChain's configure hook, as LangSmith's tracer
does. So no step of the method knows of it. When it is off, it costs a run one look at a context
variable.
"""

import json
import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from pdr_graph.errors import ConfigError, install_command, redacted

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["exported", "logged_to", "observed"]

_handler: ContextVar[BaseCallbackHandler | None] = ContextVar("pdr_graph_spans", default=None)


@cache
def _hook() -> None:
    """Tell LangChain of the variable, once: a hook cannot be removed."""
    register_configure_hook(_handler, inheritable=True)


@contextmanager
def observed(provider: "TracerProvider | None" = None, *, content: bool = False) -> Iterator[None]:
    """Make spans of all runs that the block starts.

    Args:
        provider: Receives the spans; None is the provider of this process.
        content: Whether the spans of calls hold prompts and replies.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace

        from pdr_graph.telemetry.spans import SpanHandler
    except ImportError:
        raise _missing() from None
    _hook()
    tracer = trace.get_tracer("pdr_graph", tracer_provider=provider)
    before = _handler.get()
    _handler.set(SpanHandler(tracer, content=content))
    try:
        yield
    finally:
        # Not reset by its token: an asynchronous generator may be closed in another context.
        _handler.set(before)


@contextmanager
def exported(*, content: bool = False) -> Iterator[None]:
    """Make spans as `observed` does, and send them by OTLP as the `OTEL_…` variables say.

    If this process already has a provider, that one is used instead.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _missing() from None
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        with observed(content=content):
            yield
        return
    # OTEL_SERVICE_NAME wins over the name here.
    own = Resource({"service.name": "pdr-graph"})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        with observed(provider, content=content):
            yield
    finally:
        provider.shutdown()


def _missing() -> ConfigError:
    return ConfigError(f"spans need OpenTelemetry: {install_command('otel')}")


# -------------------------------------------------------------------------------- the log file


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
        said = fields if isinstance(fields, dict) else {"message": record.getMessage()}
        line |= {name: redacted(v) if isinstance(v, str) else v for name, v in said.items()}
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Append to a file what the package logs at level INFO and above while the block runs.

    Blocks on the same file may overlap, as the runs of a server do: each record is written once.

    Raises:
        ConfigError: the file cannot be written.
    """
    file = file.absolute()
    with _LOCK:
        begun = _begun()
        handler = next((each for each in begun if each.file == file), None)
        if handler is None:
            level = begun[0].level_before if begun else _PACKAGE.level
            handler = _Queued(file, level)
            _PACKAGE.addHandler(handler)
            if _PACKAGE.getEffectiveLevel() > logging.INFO:
                _PACKAGE.setLevel(logging.INFO)
        handler.num_blocks += 1
    try:
        yield
    finally:
        with _LOCK:
            handler.num_blocks -= 1
            if not handler.num_blocks:
                _PACKAGE.removeHandler(handler)
                if not _begun():
                    _PACKAGE.setLevel(handler.level_before)
                handler.end()


class _Queued(QueueHandler):
    """Hands records to a thread that writes them to a file.

    So the logging code, which may be an event loop, never waits for the disk.
    """

    def __init__(self, file: Path, level_before: int) -> None:
        """Open the file; the package's logger had this level before."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._to_file = logging.FileHandler(file, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"log file {str(file)!r} cannot be written: {error.strerror or error}"
            ) from None
        self._to_file.setFormatter(JSONLines())
        super().__init__(queue.SimpleQueue[logging.LogRecord]())
        self.file, self.level_before, self.num_blocks = file, level_before, 0
        self._writer = QueueListener(self.queue, self._to_file)
        self._writer.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record as it is; the stock class turns it to text, for other processes."""
        return record

    def end(self) -> None:
        """Close the file, once all is written."""
        self._writer.stop()
        self._to_file.close()


_PACKAGE = logging.getLogger("pdr_graph")
_LOCK = threading.Lock()
"""Held while files are opened and closed, which a server does in several threads."""


def _begun() -> list[_Queued]:
    """Return the open writers of log files."""
    return [each for each in _PACKAGE.handlers if isinstance(each, _Queued)]

"""What an observer of many runs sees: spans by OpenTelemetry, and a log of JSON lines.

Off by default; nothing of OpenTelemetry is imported until it is asked for:

    with observed():
        await solve("What is 6 x 7?", model=model)

Turns spans on for a block of code.

The handler reaches every run through LangChain's configure hook, as LangSmith's tracer does, so no
step of the method knows of it; when it is off, a run looks up one context variable and no more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from pdr_graph.errors import ConfigError
from pdr_graph.telemetry.log_file import logged_to

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import TracerProvider

__all__ = ["exported", "logged_to", "observed"]

_handler: ContextVar[BaseCallbackHandler | None] = ContextVar("pdr_graph_spans", default=None)
_hooked: list[bool] = []
"""Not empty once LangChain knows the variable; a hook cannot be taken back."""


@contextmanager
def observed(provider: "TracerProvider | None" = None, *, content: bool = False) -> Iterator[None]:
    """Make spans of all runs that this block starts.

    Args:
        provider: Where spans go; None is the provider of this process.
        content: Whether call spans hold prompts and replies.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace

        from pdr_graph.telemetry.spans import SpanHandler
    except ImportError:
        raise _missing() from None
    if not _hooked:
        register_configure_hook(_handler, inheritable=True)
        _hooked.append(True)
    tracer = trace.get_tracer("pdr_graph", tracer_provider=provider)
    before = _handler.get()
    _handler.set(SpanHandler(tracer, content=content))
    try:
        yield
    finally:
        # Not by a token: an asynchronous generator may be closed in another context.
        _handler.set(before)


@contextmanager
def exported(*, content: bool = False) -> Iterator[None]:
    """Make spans as `observed` does and send them by OTLP, as the `OTEL_…` variables say.

    A provider that this process has set up already is used instead.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _missing() from None
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        with observed(content=content):
            yield
        return
    # What OTEL_SERVICE_NAME says wins over the name here.
    own = Resource({"service.name": "pdr-graph"})
    provider = TracerProvider(resource=own.merge(_named_by_environment()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        with observed(provider, content=content):
            yield
    finally:
        provider.shutdown()


def _named_by_environment() -> "Resource":
    from opentelemetry.sdk.resources import OTELResourceDetector

    return OTELResourceDetector().detect()


def _missing() -> ConfigError:
    return ConfigError("spans need OpenTelemetry: pip install 'pdr-graph[otel]'")

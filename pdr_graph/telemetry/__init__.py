"""Observes many runs: spans by OpenTelemetry, and a log of JSON lines.

Both are off by default, and OpenTelemetry is imported only when it is needed:

    with observed():
        await solve("What is 6 x 7?", model=model)

The handler of spans reaches every run through LangChain's configure hook, as LangSmith's tracer
does, so that no step of the method knows of it. When it is off, a run reads one context variable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from pdr_graph.errors import ConfigError
from pdr_graph.telemetry.log_file import logged_to

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
    return ConfigError("spans need OpenTelemetry: pip install 'pdr-graph[otel]'")

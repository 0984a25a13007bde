"""What Prometheus reads: requests, runs, calls and tokens of one server.

Tokens are counted as calls end, those of failed and resumed runs included, so that their sum is
what this process has asked of the endpoint.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pdr_graph.trace import TraceRecord

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_TOKENS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


class Metrics:
    """The figures of one server; a `Trace`, so that runs report their calls to it."""

    def __init__(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Begin at zero; `running` and `waiting` tell how many requests run and wait now."""
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "pdr_requests",
            "Chat requests answered, by model and HTTP status; 499 is a client that left",
            ["model", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "pdr_request_seconds",
            "From request to answer, waiting included",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.b_seq = Histogram(
            "pdr_run_sequential_tokens",
            "Tokens on the critical path of finished runs",
            ["model"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._calls = Counter(
            "pdr_model_calls",
            "Calls to the model, by node and outcome",
            ["node", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "pdr_model_tokens",
            "Tokens of those calls",
            ["node", "kind"],
            registry=registry,
        )
        Gauge("pdr_runs_in_progress", "Runs in progress", registry=registry).set_function(running)
        Gauge(
            "pdr_requests_waiting", "Requests that wait for a run", registry=registry
        ).set_function(waiting)
        self.thinks: bool | None = None
        """Whether any reply so far held a thought; None before the first reply."""

    async def record(self, call: TraceRecord) -> None:
        """Count one call."""
        node = call["node"]
        self._calls.labels(node, "failed" if call["error"] else "done").inc()
        self._tokens.labels(node, "prompt").inc(call["prompt_tokens"])
        self._tokens.labels(node, "completion").inc(call["completion_tokens"])
        if not call["error"]:
            self.thinks = bool(self.thinks or call["thought"])

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)

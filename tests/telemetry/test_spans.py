"""Spans of runs, rounds, nodes and calls, as an exporter in memory gets them."""

import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pdr_graph import PDRError, build_graph, preset, solve
from pdr_graph.telemetry import exported, observed

pytest.importorskip("opentelemetry.sdk", reason="spans need the extra otel")

SECRET = "the marmalade question"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def paths(spans):
    """Each span as the names from its root down to it, counted."""
    by_id = {span.context.span_id: span for span in spans}

    def path(span):
        above = () if span.parent is None else path(by_id[span.parent.span_id])
        return (*above, span.name.split()[0] if span.name.startswith("chat") else span.name)

    return Counter(path(span) for span in spans)


async def test_the_spans_are_a_tree_of_run_round_node_and_call(mock, connect, provider, exporter):
    """Every node hangs under its round or run, and every call under the node that made it."""
    with observed(provider):
        await solve(SECRET, preset("pdr", widths=(2, 1)), model=connect())
    run = ("pdr run",)
    assert paths(exporter.get_finished_spans()) == {
        run: 1,
        (*run, "plan"): 2,
        (*run, "round 1"): 1,
        (*run, "round 1", "drafter"): 2,
        (*run, "round 1", "drafter", "chat"): 2,
        (*run, "round 1", "distiller"): 1,
        (*run, "round 1", "distiller", "chat"): 1,
        (*run, "round 2"): 1,
        (*run, "round 2", "drafter"): 1,
        (*run, "round 2", "drafter", "chat"): 1,
        (*run, "round 2", "distiller"): 1,
        (*run, "round 2", "distiller", "chat"): 1,
        (*run, "refiner"): 1,
        (*run, "refiner", "chat"): 1,
        (*run, "verifier"): 1,
    }


async def test_the_tokens_of_the_calls_are_those_of_the_ledger(mock, connect, provider, exporter):
    """Summed over the calls, input and output tokens are the run's; no text is in any span."""
    with observed(provider):
        result = await solve(SECRET, preset("pdr", widths=(2,)), model=connect())
    spans = exporter.get_finished_spans()
    calls = [span.attributes for span in spans if span.name.startswith("chat")]
    spent = sum(
        each["gen_ai.usage.input_tokens"] + each["gen_ai.usage.output_tokens"] for each in calls
    )
    assert spent == result.ledger.b_total
    assert {each["gen_ai.operation.name"] for each in calls} == {"chat"}
    assert all(each["gen_ai.request.model"] for each in calls)
    assert not any("marmalade" in span.to_json() for span in spans)


async def test_text_is_there_where_it_is_asked_for(mock, connect, provider, exporter):
    """With content, calls hold the prompt."""
    with observed(provider, content=True):
        await solve(SECRET, preset("long_cot"), model=connect())
    (call,) = [span for span in exporter.get_finished_spans() if span.name.startswith("chat")]
    assert "marmalade" in call.attributes["gen_ai.input.messages"]


async def test_a_run_that_fails_leaves_no_span_open(mock, connect, provider, exporter):
    """Calls, round and run carry the error's kind, and never its text."""
    mock.configure(status=[{"match": {"contains": "marmalade"}, "status": 400, "times": 99}])
    with observed(provider), pytest.raises(PDRError):
        await solve(SECRET, preset("pdr", widths=(2,)), model=connect())
    spans = exporter.get_finished_spans()
    failed = {span.name.split()[0] for span in spans if span.status.status_code is StatusCode.ERROR}
    assert {"chat", "pdr"} <= failed
    assert {"round 1", "pdr run"} <= {span.name for span in spans}
    assert not any("marmalade" in span.to_json() for span in spans)


async def test_outside_the_block_there_are_no_spans(mock, connect, provider, exporter):
    """What was turned on is turned off."""
    with observed(provider):
        pass
    await solve(SECRET, preset("long_cot"), model=connect())
    assert exporter.get_finished_spans() == ()


def test_without_the_switch_nothing_of_it_is_imported():
    """Without observation there is no cost: no exporter, no handler."""
    code = (
        "import sys, pdr_graph.connect, pdr_graph.telemetry; "
        "sys.exit('opentelemetry.exporter.otlp' in sys.modules"
        " or 'pdr_graph.telemetry.spans' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_a_langchain_tracer_sees_the_whole_run(mock, connect):
    """What LangSmith's tracer gets: the run with its thread, its nodes, and their model calls."""
    kept = RunCollectorCallbackHandler()
    entry = {"problem": "x", "config": preset("pdr", widths=(2,)).model_dump(mode="json")}
    config = {"callbacks": [kept], "configurable": {"thread_id": "traced"}}
    await build_graph(connect()).ainvoke(entry, config)
    (root,) = kept.traced_runs
    assert (root.name, root.metadata["thread_id"]) == ("pdr", "traced")
    drafters = [run for run in root.child_runs if run.name == "drafter"]
    assert [call.run_type for run in drafters for call in run.child_runs] == ["llm", "llm"]


@pytest.fixture
def collector(monkeypatch):
    """Keeps what an OTLP exporter posts to it."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield received
        server.shutdown()


async def test_a_run_reaches_a_collector(mock, connect, collector, monkeypatch):
    """All spans are sent before the block ends, under the service's name."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    with exported():
        await solve("x", preset("pdr", widths=(2,)), model=connect())
    resources = [each for request in collector for each in request.resource_spans]
    about = {a.key: a.value.string_value for each in resources for a in each.resource.attributes}
    assert about["service.name"] == "pdr-graph"
    assert about["deployment.environment"] == "test"
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert sum(span.name.startswith("chat") for span in spans) == 4
    assert len({span.trace_id for span in spans}) == 1

"""Spans that leave the process, received by a collector's own protocol."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pdr_graph import preset, solve
from pdr_graph.telemetry import exported

pytest.importorskip("opentelemetry.sdk", reason="spans need the extra otel")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


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

"""LangSmith sees a run as it sees any LangChain model's: its own client, and a server of ours."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

SOLVE = """
import asyncio
from langchain_core.tracers.langchain import wait_for_all_tracers
from pdr_graph import preset, solve
from pdr_graph.connect import open_client

async def main():
    async with open_client() as model:
        result = await solve("What is 6 x 7?", preset("pdr", widths=(2,)), model=model)
        print(result.ledger.b_total)

asyncio.run(main())
wait_for_all_tracers()
"""

BATCHES = {
    "use_multipart_endpoint": False,
    "size_limit": 100,
    "size_limit_bytes": 20_000_000,
    "scale_up_nthreads_limit": 1,
    "scale_up_qsize_trigger": 1000,
}
"""How runs are to be handed over: as JSON."""


class Collector(BaseHTTPRequestHandler):
    """As much of LangSmith's API as its client needs to hand runs over in plain batches."""

    runs: dict[str, dict[str, Any]]

    def do_GET(self) -> None:
        self._reply(200, {"batch_ingest_config": BATCHES})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/runs/batch"):
            batch = json.loads(body)
            for run in [*batch.get("post", []), *batch.get("patch", [])]:
                known = self.runs.setdefault(run["id"], {})
                known.update({name: value for name, value in run.items() if value is not None})
        self._reply(202, {})

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _reply(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def langsmith() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """A server's address, and the runs that were sent to it, by their ids."""
    handler = type("OwnCollector", (Collector,), {"runs": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.runs
        server.shutdown()
        thread.join()


def test_its_switch_is_all_that_it_needs(langsmith, mock, tmp_path):
    """By environment alone: the run, its nodes and every call with its tokens, as one tree."""
    url, runs = langsmith
    done = subprocess.run(
        [sys.executable, "-c", SOLVE],
        env={
            **os.environ,
            "PDR_BASE_URL": mock.url,
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_ENDPOINT": url,
            "LANGSMITH_API_KEY": "none",
            "HOME": str(tmp_path),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (root,) = [run for run in runs.values() if run.get("parent_run_id") is None]
    assert root["name"] == "pdr"
    assert {run["trace_id"] for run in runs.values()} == {root["id"]}
    calls = [run for run in runs.values() if run["run_type"] == "llm"]
    above = sorted(runs[run["parent_run_id"]]["name"] for run in calls)
    assert above == ["distiller", "drafter", "drafter", "refiner"]
    assert mock.stats()["calls"] == len(calls)
    spent = sum(tokens_of(run) for run in calls)
    assert spent == int(done.stdout)


def tokens_of(run: dict[str, Any]) -> int:
    """Return what LangSmith bills a call with."""
    message = run["outputs"]["generations"][0][0]["message"]
    return int(message["kwargs"]["usage_metadata"]["total_tokens"])

"""A server on the loopback interface that remembers what it was asked, and answers as told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pdr_graph.train.push import VLLMAdmin


@dataclass
class WeightServer:
    """What stands in for vLLM where only the requests matter."""

    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By path, in order; the last one stays."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    root: str = ""

    @property
    def server(self) -> VLLMAdmin:
        return VLLMAdmin(f"{self.root}/v1", api_key="secret")

    def answer(self, path: str) -> tuple[int, str]:
        answers = self.answers.get(path, [(200, "done")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def weight_server(**answers: list[tuple[int, str]]) -> Iterator[WeightServer]:
    """Serve while the block lasts; names of paths are given with `__` for a slash."""
    state = WeightServer({name.replace("__", "/"): each for name, each in answers.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Authorization"] == "Bearer secret"
            state.asked.append((self.path, json.loads(body)))
            status, text = state.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        state.root = f"http://127.0.0.1:{served.server_port}"
        try:
            yield state
        finally:
            served.shutdown()
            thread.join()

"""A server is trained on by the model it was started with, whatever adapters were left there."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.engine import base_model, forget_adapters
from pdr_graph.train.push import VLLMAdmin

LEFT = ("policy-2-f4ddc1b4", "policy-14-00c0ffee")


@contextmanager
def serving(*models: str) -> Iterator[tuple[VLLMAdmin, list[str]]]:
    """Serve models while the block lasts; yields what they are, less what was unloaded."""
    there = list(models)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.tell({"data": [{"id": name} for name in there]} if "models" in self.path else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/unload_lora_adapter"
            there.remove(body["lora_name"])
            self.tell({})

        def tell(self, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield VLLMAdmin(f"http://127.0.0.1:{served.server_port}/v1"), there
        finally:
            served.shutdown()
            thread.join()


async def test_adapters_of_a_killed_run_are_not_the_model():
    """They are told apart by their names, and taken from the server; others stay."""
    with serving("tiny", *LEFT, "mine") as (server, there):
        await forget_adapters(server)
        assert there == ["tiny", "mine"]
    with serving("tiny", *LEFT) as (server, _):
        assert await base_model(server) == "tiny"


async def test_several_models_are_to_be_told_apart_by_the_settings():
    """The sentence names the setting."""
    with (
        serving("tiny", "mine") as (server, _),
        pytest.raises(
            ConfigError, match=r"serves 2 models \(tiny, mine\); name the one .*served_m"
        ),
    ):
        await base_model(server)

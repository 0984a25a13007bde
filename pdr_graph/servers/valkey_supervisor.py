"""The process that runs the embedded Valkey, and ends it when its last client is gone.

`valkey` starts it, and passes on the lock of the store, which it has taken: see there. The
last line that a supervisor writes to its log says why it has failed.
"""

import os
import sys
import time
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock
from pdr_graph.servers.server import CommandServer
from pdr_graph.servers.valkey import note_address, socket_of, store_server

POLL_S = 0.25
"""About how long the server outlives its last client."""


def main(binary: str, home: Path, lock: int) -> int:
    """Run the server until no client is left, or until it ends by itself."""
    os.umask(0o077)
    try:
        # Opened first: a user may remove the folder while we run.
        with FileLock(home / "clients.lock") as clients:
            address = socket_of(home)
            note_address(home, address)
            plan = store_server("embedded valkey", binary, home, address)
            server = CommandServer(plan, home / "valkey.log")
            try:
                # The server holds the lock too, so that it is free only when both are gone.
                server.start(keep_open=[lock])
                while not clients.try_exclusive():
                    server.check()
                    time.sleep(POLL_S)
            finally:
                server.end()
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))

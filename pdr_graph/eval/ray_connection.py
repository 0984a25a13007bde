"""The way to a Ray cluster, and away from it."""

import os
import socket

from pdr_graph.errors import ConfigError

MOST_WORKERS = 16
"""Where their number is not given, however many processors the cluster has."""
_CONNECT_S = 5.0


def connect(address: str) -> int:
    """Connect to a cluster, `local` for one of this machine's own; returns its processors.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'pdr-graph[ray]'") from None
    if address not in {"auto", "local"}:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a user's evaluations are the user's
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    # Errors of several libraries, by the form of the address.
    except Exception as error:  # noqa: BLE001
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({why}); start one by `ray start --head`, or "
            "use --ray local"
        ) from None
    return int(ray.cluster_resources().get("CPU", 1))


def _check_reachable(address: str) -> None:
    """Tell at once what Ray itself would take minutes to say."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal()) or "/" in address:
        raise ConfigError(
            f"--ray {address!r} is no HOST:PORT of a cluster's head; `auto` finds the cluster of "
            "this machine, `local` starts one"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({error}); start one by `ray start --head`, "
            "or use --ray local"
        ) from None


def disconnect() -> None:
    """Leave the cluster, and end it if it was ours."""
    import ray

    ray.shutdown()

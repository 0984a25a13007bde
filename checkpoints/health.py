"""What a server is, and whether it keeps what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from checkpoints.store import Store

UNKNOWN: Final = "unknown"
"""Said where a managed server forbids CONFIG."""


@dataclass(frozen=True, slots=True)
class Health:
    """Facts about a server that bear on keeping checkpoints."""

    where: str
    """URL without its password."""
    server: str
    """`redis 7.0.15` or `valkey 9.1.2`."""
    mode: str
    """`standalone`, `sentinel` or `cluster`, as the server says."""
    appendonly: str
    """`yes`, `no` or `unknown`."""
    appendfsync: str
    """`always`, `everysec`, `no` or `unknown`."""
    maxmemory_policy: str
    persistent: bool | None
    """Whether a restart of the server keeps threads; None when it does not say."""
    warnings: tuple[str, ...]
    """One sentence for each way to lose a run."""


async def examine(store: Store) -> Health:
    """Ask the server what it is."""
    info = await _info(store)
    config = {
        name: await _config(store, name)
        for name in ("appendonly", "appendfsync", "maxmemory-policy")
    }
    appendonly, policy = config["appendonly"], config["maxmemory-policy"]
    warnings = []
    if appendonly == "no":
        warnings.append(
            f"Redis at {store.where} has appendonly no: a crash of the server loses every "
            "checkpoint since its last snapshot; set appendonly yes"
        )
    if policy.startswith("allkeys-"):
        warnings.append(
            f"Redis at {store.where} has maxmemory-policy {policy}: when memory is full it "
            "deletes checkpoints of live runs; set noeviction"
        )
    if policy.startswith("volatile-"):
        warnings.append(
            f"Redis at {store.where} has maxmemory-policy {policy}: when memory is full it "
            "deletes threads that have a ttl, and leases; set noeviction"
        )
    name = str(info.get("server_name", "redis"))
    version = info.get(f"{name}_version", info.get("redis_version", UNKNOWN))
    return Health(
        where=store.where,
        server=f"{name} {version}",
        mode=str(info.get("redis_mode", info.get("server_mode", UNKNOWN))),
        appendonly=appendonly,
        appendfsync=config["appendfsync"],
        maxmemory_policy=policy,
        persistent=None if appendonly == UNKNOWN else appendonly == "yes",
        warnings=tuple(warnings),
    )


async def _info(store: Store) -> Mapping[str, Any]:  # Any: INFO mixes text and numbers
    try:
        info = await store.one("INFO", "server")
    except ResponseError:
        return {}
    # A cluster client answers per node when asked without a target.
    first = next(iter(info.values()), None) if store.is_cluster else None
    found: Mapping[str, Any] = first if isinstance(first, dict) else info
    return found


async def _config(store: Store, name: str) -> str:
    try:
        found = await store.one("CONFIG GET", name)
    except ResponseError:
        return UNKNOWN
    if store.is_cluster and isinstance(next(iter(found.values()), None), dict):
        found = next(iter(found.values()))
    value = found.get(name, found.get(name.encode(), UNKNOWN)) if found else UNKNOWN
    return value.decode() if isinstance(value, bytes) else str(value)

"""Checks of the store: reachable, persistent, and not evicting runs."""

from checkpoints import Health, RedisSaver, StoreUnreachableError
from pdr_graph.cli.doctor.check import Check
from pdr_graph.cli.stores import MEMORY, open_saver
from pdr_graph.settings import Settings


async def store_checks(settings: Settings) -> list[Check]:
    """Check where runs are kept."""
    if settings.redis_url == MEMORY:
        return [
            Check("store", "warn", "memory: no run can be resumed", "set PDR_REDIS_URL to a server")
        ]
    try:
        async with open_saver(settings, lambda line: None) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` is done with
            health = await saver.health()
    except StoreUnreachableError as error:
        what = f"nothing answers at {error.where}"
        return [Check("store", "fail", what, "start the server or correct --checkpoint")]
    kind = "embedded " if settings.redis_url is None else ""
    where = f"{kind}{health.server} at {health.where}"
    return [Check("store", "ok", where), _persistence(health), _eviction(health)]


def _persistence(health: Health) -> Check:
    if health.persistent is None:
        return Check(
            "persistence", "warn", "the server does not tell", "ask its keeper for appendonly yes"
        )
    if not health.persistent:
        return Check(
            "persistence",
            "warn",
            "appendonly no: a crash of the server loses runs since its last snapshot",
            "set appendonly yes",
        )
    detail = f"appendonly yes, appendfsync {health.appendfsync}"
    if health.appendfsync == "no":
        return Check("persistence", "warn", detail, "set appendfsync everysec")
    return Check("persistence", "ok", detail)


def _eviction(health: Health) -> Check:
    policy = health.maxmemory_policy
    if policy == "noeviction":
        return Check("eviction", "ok", policy)
    return Check(
        "eviction",
        "warn",
        f"maxmemory-policy {policy}: runs may be deleted when memory is full",
        "set maxmemory-policy noeviction",
    )

"""What is done to whole threads: leases, listing, pruning, copying, export and import.

What a server is, and whether it keeps what it is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from redis.exceptions import ResponseError

from pdr_checkpoints.lease import Lease
from pdr_checkpoints.retention import Pruner, all_but, checkpoints_of_run, choose
from pdr_checkpoints.session import LoopSession, Options
from pdr_checkpoints.store import Store
from pdr_checkpoints.threads import (
    ThreadInfo,
    delete_thread,
    describe_thread,
    list_threads,
    thread_ids,
)
from pdr_checkpoints.transfer import Transfer

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


class Upkeep(BaseCheckpointSaver[str]):
    """The part of a saver that LangGraph's engine does not call."""

    options: Options
    _session: LoopSession

    def lease(
        self,
        thread_id: str,
        *,
        ttl_s: float | None = None,
        wait_s: float = 0.0,
        owner: str | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Run a thread alone, for as long as the block runs.

        Writes of this saver to the thread are refused once another process has taken it over.

        Args:
            thread_id: The thread.
            ttl_s: Seconds after which a dead holder's lease runs out; None takes the option.
            wait_s: How long to wait for another holder.
            owner: What others are told; None is host:pid.

        Raises:
            ThreadBusyError: Another holder runs the thread.
        """
        ttl_s = self.options.lease_ttl_s if ttl_s is None else ttl_s
        return self._session.leases.hold(str(thread_id), ttl_s=ttl_s, wait_s=wait_s, owner=owner)

    async def health(self) -> Health:
        """Say what the server is, and in which ways it may lose a run."""
        return await examine(self._session.store)

    async def threads(self, limit: int | None = None) -> list[ThreadInfo]:
        """Describe threads, the last written first; no key is scanned for."""
        return await list_threads(self._session.store, self._session.keyspace, limit)

    async def thread(self, thread_id: str) -> ThreadInfo | None:
        """Describe one thread; None when it has no checkpoints."""
        return await describe_thread(self._session.store, self._session.keyspace, str(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all that is stored of a thread."""
        # A change that is under way, its caller cancelled perhaps, would bring a part of it back.
        await self._session.writer.batcher.settle(str(thread_id))
        await delete_thread(self._session.store, self._session.keyspace, str(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove what the given runs stored, in whatever thread."""
        session = self._session
        if not run_ids:
            return
        # Before any removal: that would shift the pages of the registry.
        every = [thread_id async for thread_id in thread_ids(session.store, session.keyspace)]
        for thread_id in every:
            found = await checkpoints_of_run(session.store, session.keyspace, thread_id, run_ids)
            if found:
                await self._pruner().prune(thread_id, all_but(found), session.fence(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes of a thread into another.

        Raises:
            UnknownThreadError: The source has no checkpoints.
        """
        await self._transfer().copy(str(source_thread_id), str(target_thread_id))

    async def aprune(
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", keep: int = 1
    ) -> None:
        """Remove old checkpoints.

        Args:
            thread_ids: Threads to prune; those without checkpoints are passed over.
            strategy: `keep_latest` keeps the last `keep` of every namespace, `inspection` what a
                finished run needs to be looked at and forked, `delete` nothing.
            keep: Checkpoints per namespace that `keep_latest` keeps.

        Raises:
            ThreadContendedError: A run kept writing to the thread.
        """
        rule = choose(strategy, keep, self.serde)
        for thread_id in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread_id)
            else:
                await self._pruner().prune(thread_id, rule, self._session.fence(thread_id))

    def export_thread(self, thread_id: str) -> AsyncIterator[bytes]:
        """Yield a thread as the bytes of a file, which `import_thread` reads.

        Raises:
            UnknownThreadError: The thread has no checkpoints.
        """
        return self._transfer().export_thread(str(thread_id))

    async def import_thread(
        self, chunks: AsyncIterable[bytes], *, thread_id: str | None = None
    ) -> str:
        """Store an exported thread exactly, and return its id.

        Args:
            chunks: The exported bytes, cut anywhere.
            thread_id: Another id for it; None keeps the one that it had.

        Raises:
            CorruptCheckpointError: The file is cut, altered or something else; nothing is kept.
            ThreadExistsError: The thread is there already.
        """
        return await self._transfer().import_thread(chunks, thread_id)

    def _pruner(self) -> Pruner:
        session = self._session
        return Pruner(session.store, session.keyspace, session.envelope, self.serde)

    def _transfer(self) -> Transfer:
        return Transfer(self._session.store, self._session.keyspace, self.options.ttl_s)

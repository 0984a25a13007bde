"""What is done to whole threads: leases, listing, pruning, copying, export and import."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from langgraph.checkpoint.base import BaseCheckpointSaver

from checkpoints.health import Health, examine
from checkpoints.lease import Lease
from checkpoints.options import Options
from checkpoints.retention import Pruner, all_but, checkpoints_of_run, choose
from checkpoints.session import Session
from checkpoints.threads import (
    ThreadInfo,
    delete_thread,
    describe_thread,
    list_threads,
    thread_ids,
)
from checkpoints.transfer import Transfer


class Upkeep(BaseCheckpointSaver[str]):
    """The part of a saver that LangGraph's engine does not call."""

    options: Options
    _session: Session

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

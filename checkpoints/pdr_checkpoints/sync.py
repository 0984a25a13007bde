"""LangGraph's sync methods: each is the async one of the same name, run in another event loop.

Connections belong to the loop that opened them, so the sync methods use a session of their own,
whose loop runs in a thread. It starts at the first sync call and ends with `close`. A sync call
from inside a running loop blocks that loop, but does not deadlock.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)

from pdr_checkpoints.session import LoopSession

T = TypeVar("T")
# Any: the send and yield types of a coroutine, which nobody uses.
Call = Coroutine[Any, Any, T]


class LoopThread:
    """An event loop in a thread, to which sync code hands coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="checkpoints", daemon=True
        )
        self._thread.start()

    def run(self, call: Call[T]) -> T:
        """Run a coroutine to its end; a Ctrl-C while waiting cancels it."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread; a call that is under way is cancelled."""

        async def cancel_others() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class SyncSession:
    """The loop and session behind the sync methods; none until the first of them is called."""

    loop: LoopThread | None = None
    session: LoopSession | None = None
    inherited: list[LoopSession] = field(default_factory=list)
    """Sessions of the processes that this one was forked from; closing them would close theirs."""
    pid: int = field(default_factory=os.getpid)
    """Process of the loop: a fork has no threads but the one that forked."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, make: Callable[[], LoopSession]) -> tuple[LoopThread, LoopSession]:
        """Start them if they do not run yet."""
        with self.lock:
            self._leave_to_parent()
            if self.loop is None or self.session is None:
                self.loop, self.session = LoopThread(), make()
            return self.loop, self.session

    def close(self) -> None:
        """Close the connections and end the loop."""
        with self.lock:
            self._leave_to_parent()
            if self.loop is not None and self.session is not None:
                self.loop.run(self.session.store.close())
                self.loop.stop()
            self.loop = self.session = None

    def _leave_to_parent(self) -> None:
        """Forget, in a forked process, what belongs to its parent."""
        if self.pid == os.getpid():
            return
        self.pid = os.getpid()
        if self.session is not None:
            self.inherited.append(self.session)
        self.loop = self.session = None


class SyncMethods(BaseCheckpointSaver[str]):
    """The sync methods of a saver."""

    @abstractmethod
    def _in_other_loop(self, call: Callable[[BaseCheckpointSaver[str]], Call[T]]) -> T:
        """Run a call, on a saver of the other loop."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read one checkpoint; see `aget_tuple`."""
        return self._in_other_loop(lambda saver: saver.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # LangGraph's signature
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Read history, newest first; see `alist`."""
        pages: AsyncIterator[CheckpointTuple] | None = None

        async def following(saver: BaseCheckpointSaver[str]) -> CheckpointTuple | None:
            nonlocal pages
            if pages is None:
                pages = saver.alist(config, filter=filter, before=before, limit=limit)
            return await anext(pages, None)

        while (found := self._in_other_loop(following)) is not None:
            yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; see `aput`."""
        return self._in_other_loop(
            lambda saver: saver.aput(config, checkpoint, metadata, new_versions)
        )

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote; see `aput_writes`."""
        self._in_other_loop(lambda saver: saver.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread; see `adelete_thread`."""
        self._in_other_loop(lambda saver: saver.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove what runs stored; see `adelete_for_runs`."""
        self._in_other_loop(lambda saver: saver.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread; see `acopy_thread`."""
        self._in_other_loop(lambda saver: saver.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove old checkpoints; see `aprune`."""
        self._in_other_loop(lambda saver: saver.aprune(thread_ids, strategy=strategy))

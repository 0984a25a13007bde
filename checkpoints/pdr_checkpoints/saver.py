"""`RedisSaver`, the checkpoint saver."""

import functools
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints.delta import DeltaReader
from pdr_checkpoints.lease import Lease
from pdr_checkpoints.reader import Reader, config_of
from pdr_checkpoints.records import Place
from pdr_checkpoints.retention import RetentionMethods
from pdr_checkpoints.rotation import SealMethods
from pdr_checkpoints.serde import Allowed, serializer
from pdr_checkpoints.session import (
    Call,
    Health,
    LoopSessions,
    SaverOptions,
    StoreTrial,
    examine,
    open_session,
    try_out,
)
from pdr_checkpoints.store import Fence
from pdr_checkpoints.threads import ThreadMethods

T = TypeVar("T")
P = ParamSpec("P")
logger = logging.getLogger(__name__)


def _blocking(
    method: Callable[Concatenate[Any, P], Call[T]],  # Any: a saver
) -> Callable[Concatenate[Any, P], T]:
    """Make the sync form of a saver's async method."""
    name = method.__name__

    @functools.wraps(method)
    def run(saver: "RedisSaver", /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = saver._sessions.run(getattr(saver, name)(*args, **kwargs))
        return result

    run.__name__ = name.removeprefix("a")
    return run


class RedisSaver(SealMethods):
    """Keeps LangGraph checkpoints in Redis or Valkey, with core commands only.

    Opening it (`async with`, `with`, or `open_checkpointer`) makes sure that the server answers
    and warns when it would lose what it is given. One saver serves every event loop of a process,
    each by connections of its own; its sync methods may be called from any thread.
    """

    def __init__(
        self,
        url: str,
        *,
        serde: SerializerProtocol | None = None,
        allowed: Iterable[Allowed] = (),
        options: SaverOptions | None = None,
    ) -> None:
        super().__init__(serde=serializer(url, serde, allowed))
        self.url = url
        self.options = options or SaverOptions()
        # Clones and sync methods share the leases, by thread, so that all write under them.
        held: dict[str, Fence] = {}
        # Clones made by `with_allowlist` share them, so that any of them closes them.
        self._sessions = LoopSessions(functools.partial(open_session, url, self.options, held))

    async def aopen(self) -> Self:
        """Check the server and warn about its settings.

        Raises:
            StoreUnreachableError: No server answers at the URL.
        """
        try:
            await self._check()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _check(self) -> None:
        await self._session.store.ping(self.options.open_for_s)
        for warning in (await self.health()).warnings:
            logger.warning(warning)
        self._session.sweeper.nudge(at_once=True)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._sessions.close()

    def close(self) -> None:
        """Close what the sync methods opened."""
        self._sessions.close_sync()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        try:
            self._sessions.run(self._check())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def lease(
        self,
        thread_id: str,
        *,
        ttl_s: float | None = None,
        wait_s: float = 0.0,
        owner: str | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Keep other processes from running a thread while the block runs.

        Writes of this saver to the thread are refused once another process has taken it over.

        Args:
            thread_id: The thread.
            ttl_s: Seconds after which a dead holder's lease runs out; None takes the option.
            wait_s: How long to wait for another holder.
            owner: Name of the holder that others see; None is host:pid.

        Raises:
            ThreadBusyError: Another holder runs the thread.
        """
        ttl_s = self.options.lease_ttl_s if ttl_s is None else ttl_s
        return self._session.leases.hold(str(thread_id), ttl_s=ttl_s, wait_s=wait_s, owner=owner)

    async def health(self) -> Health:
        """Say what the server is, and in which ways it may lose a run."""
        return await examine(self._session.store)

    async def try_out(self, for_s: float = 2.0) -> StoreTrial:
        """Make a trial write, and say how much room the server has.

        Args:
            for_s: Seconds for which a write that the server refuses is tried again.
        """
        return await try_out(self._session.store, for_s)

    # Reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read the checkpoint that a config names, or the latest of its namespace.

        Raises:
            CorruptCheckpointError: Stored bytes are missing, cut or altered.
        """
        thread_id, ns, checkpoint_id = _target(config)
        place: Place | None
        if checkpoint_id:
            place = Place(thread_id, ns or "", checkpoint_id)
        else:
            place = await self._reader.latest(thread_id, ns or "")
        found = await self._reader.get([place]) if place else []
        return found[0] if found else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # LangGraph's signature
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Read checkpoints, newest first: of a thread, a namespace, an exact id, or all threads."""
        before_id = get_checkpoint_id(before) if before else None
        left = sys.maxsize if limit is None else limit
        async for thread_id, ns, exact in self._targets(config):
            places = await self._reader.places(thread_id, ns, before_id)
            if exact:
                places = [place for place in places if place.checkpoint_id == exact]
            async with aclosing(self._reader.page(places, filter or {}, left)) as page:
                async for found in page:
                    yield found
                    left -= 1
            if left <= 0:
                return

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Read what rebuilds delta channels: of each its last stored value, and the writes since.

        Raises:
            CorruptCheckpointError: Stored bytes are missing, cut or altered.
        """
        if not channels:
            return {}
        thread_id, ns, checkpoint_id = _target(config)
        reader = DeltaReader(self._session.store, self._session.envelope, self.serde)
        return await reader.history(thread_id, ns or "", checkpoint_id, channels)

    async def _targets(
        self, config: RunnableConfig | None
    ) -> AsyncIterator[tuple[str, str | None, str | None]]:
        if config is not None:
            yield _target(config)
            return
        async for thread_id in self.thread_ids():
            yield thread_id, None, None

    @property
    def _reader(self) -> Reader:
        return Reader(self._session.store, self._session.envelope, self.serde)

    # Writing

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, in one round trip.

        Raises:
            LeaseLostError: Another process has taken over the thread.
        """
        thread_id, ns, parent_id = _target(config)
        place = Place(thread_id, ns or "", checkpoint["id"])
        facts = cast(dict[str, object], get_serializable_checkpoint_metadata(config, metadata))
        await self._session.writer.put(
            place, parent_id, checkpoint, facts, new_versions, self.serde
        )
        return config_of(place)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote, in one round trip.

        Raises:
            LeaseLostError: Another process has taken over the thread.
        """
        thread_id, ns, checkpoint_id = _target(config)
        place = Place(thread_id, ns or "", checkpoint_id or "")
        await self._session.writer.put_writes(place, writes, task_id, task_path, self.serde)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return the next version of a channel: a counter, then 48 random bits.

        Two forks of one checkpoint count alike, so the counter alone would let one overwrite the
        other's values. The bits come from the system: a seeded generator repeats itself when a
        run is repeated.
        """
        counter = 0 if current is None else int(str(current).split(".", 1)[0])
        return f"{counter + 1:08}.{os.urandom(6).hex()}"

    # The same from sync code

    get_tuple = _blocking(aget_tuple)
    get_delta_channel_history = _blocking(aget_delta_channel_history)
    put = _blocking(aput)
    put_writes = _blocking(aput_writes)
    delete_thread = _blocking(ThreadMethods.adelete_thread)
    copy_thread = _blocking(ThreadMethods.acopy_thread)
    delete_for_runs = _blocking(RetentionMethods.adelete_for_runs)
    prune = _blocking(RetentionMethods.aprune)

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

        async def following() -> CheckpointTuple | None:
            nonlocal pages
            if pages is None:
                pages = self.alist(config, filter=filter, before=before, limit=limit)
            return await anext(pages, None)

        while (found := self._sessions.run(following())) is not None:
            yield found

    def _in_other_loop(self, call: Callable[[Self], Call[T]]) -> T:
        return self._sessions.run(call(self))


def _target(config: RunnableConfig) -> tuple[str, str | None, str | None]:
    """Read thread id, namespace and checkpoint id; the last two may be absent."""
    named = config["configurable"]
    # Some callers number their threads.
    return str(named["thread_id"]), named.get("checkpoint_ns"), get_checkpoint_id(config)

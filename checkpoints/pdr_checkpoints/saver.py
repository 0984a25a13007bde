"""`RedisSaver`: the checkpoint saver itself, which hands each call to the module that knows.

Opens a saver from a URL; also what `langgraph.json` names as the checkpointer.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints.reader import config_of
from pdr_checkpoints.records import Place
from pdr_checkpoints.session import Options, open_session
from pdr_checkpoints.store import Fence
from pdr_checkpoints.sync import Call, SyncDoor, Twin
from pdr_checkpoints.threads import thread_ids
from pdr_checkpoints.upkeep import Upkeep

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RedisSaver(Upkeep, SyncDoor):
    """Keeps LangGraph checkpoints in Redis or Valkey, with core commands only.

    Opening it (`async with`, `with`, or `open_checkpointer`) makes sure that the server answers
    and warns when it would lose what it is given. One saver serves one event loop; its sync
    methods may be called from any thread.
    """

    def __init__(
        self,
        url: str,
        *,
        serde: SerializerProtocol | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self.url = url
        self.options = options or Options()
        # By thread. Shared with clones and the sync door, so that all write under the lease.
        self._held: dict[str, Fence] = {}
        self._session = open_session(url, self.options, self._held)
        # Shared too: clones made by `with_allowlist` must find, and close, the same one.
        self._twin = Twin()

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
        await self._session.ping(self.options.open_for_s)
        for warning in (await self.health()).warnings:
            logger.warning(warning)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.store.close()
        self._twin.close()

    def close(self) -> None:
        """Close what the sync methods opened."""
        self._twin.close()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        try:
            self._elsewhere(lambda saver: cast(RedisSaver, saver)._check())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Read the checkpoint that a config names, or the latest of its namespace.

        Raises:
            CorruptCheckpointError: Stored bytes are missing, cut or altered.
        """
        thread_id, ns, checkpoint_id = _target(config)
        reader = self._session.reader
        place: Place | None
        if checkpoint_id:
            place = Place(thread_id, ns or "", checkpoint_id)
        else:
            place = await reader.latest(thread_id, ns or "")
        if place is None:
            return None
        return (await reader.get([place], self.serde))[0]

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
        reader, left = self._session.reader, limit
        async for thread_id, ns, exact in self._targets(config):
            places = await reader.places(thread_id, ns, before_id)
            if exact:
                places = [place for place in places if place.checkpoint_id == exact]
            if not places:
                continue
            async with aclosing(reader.page(places, filter or {}, left, self.serde)) as page:
                async for found in page:
                    yield found
                    left = None if left is None else left - 1
            if left is not None and left <= 0:
                return

    async def _targets(
        self, config: RunnableConfig | None
    ) -> AsyncIterator[tuple[str, str | None, str | None]]:
        if config is not None:
            yield _target(config)
            return
        async for thread_id in thread_ids(self._session.store, self._session.keyspace):
            yield thread_id, None, None

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
            place,
            parent_id,
            checkpoint,
            facts,
            new_versions,
            self.serde,
            self._session.fence(thread_id),
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
        fence = self._session.fence(thread_id)
        await self._session.writer.put_writes(place, writes, task_id, task_path, self.serde, fence)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Give the next version of a channel: a counter, then 48 random bits.

        Two forks of one checkpoint count alike, so the counter alone would let one overwrite the
        other's values. The bits come from the system: a seeded generator repeats itself when a
        run is repeated.
        """
        counter = 0 if current is None else int(str(current).split(".", 1)[0])
        return f"{counter + 1:08}.{os.urandom(6).hex()}"

    # The twin behind the sync methods

    def _elsewhere(self, call: Callable[[BaseCheckpointSaver[str]], Call[T]]) -> T:
        loop, session = self._twin.start(lambda: open_session(self.url, self.options, self._held))
        twin = copy.copy(self)
        twin._session = session
        return loop.run(call(twin))


def _target(config: RunnableConfig) -> tuple[str, str | None, str | None]:
    """Read thread id, namespace and checkpoint id; the last two may be absent."""
    named = config["configurable"]
    # Some callers number their threads.
    return str(named["thread_id"]), named.get("checkpoint_ns"), get_checkpoint_id(config)


URL_VARIABLE: Final = "REDIS_URL"
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"


@asynccontextmanager
async def open_checkpointer(
    url: str | None = None,
    *,
    serde: SerializerProtocol | None = None,
    **options: Any,  # Any: the fields of Options, which checks them
) -> AsyncIterator[RedisSaver]:
    """Open a saver for as long as the block runs.

    Args:
        url: Where Redis or Valkey is, see `pdr_checkpoints.connect`. None takes the environment's
            REDIS_URL, or this machine.
        serde: How values become bytes; None is LangGraph's own.
        **options: Fields of `Options`.

    Raises:
        StoreConfigError: The URL or an option cannot work.
        StoreUnreachableError: No server answers.
    """
    # The one place of the package that reads the environment: langgraph.json cannot pass a URL.
    address = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    async with RedisSaver(address, serde=serde, options=Options(**options)) as saver:
        yield saver

"""One checkpoint on its way back from stored bytes to what LangGraph reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpoints import keys
from checkpoints.envelope import Envelope, describe
from checkpoints.errors import CorruptCheckpointError
from checkpoints.records import Place, Record, unpack_cell, unpack_writes
from checkpoints.values import Cell, assemble, load, references

# dict[str, Any]: a checkpoint without its values is LangGraph's TypedDict less one required key.
Bare = dict[str, Any]


@dataclass(slots=True)
class Loading:
    """A checkpoint whose record is read, and then its cells and writes, and then their parts."""

    place: Place
    record: Record | None
    """None when there is no such checkpoint."""
    write_names: Sequence[bytes]
    """Fields of its pending writes."""
    bare: Bare = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    """By channel."""
    writes: list[tuple[tuple[str, str, int], str, Cell]] = field(default_factory=list)
    """Sort key (task path, task id, index), channel and value."""

    def open(self, serde: SerializerProtocol) -> None:
        """Read the record.

        Raises:
            UnknownSerializationError: The serializer is not the one that wrote it.
        """
        if self.record is not None:
            self.bare = cast(Bare, load(self.record.checkpoint, serde, self.place.described))

    def cell_names(self) -> dict[str, bytes]:
        """Fields of the values, by channel."""
        if self.record is None:
            return {}
        versions = self.bare["channel_versions"]
        return {name: self.place.cell(name, versions[name]) for name in self.record.channels}

    def fields(self) -> Iterator[bytes]:
        """Yield the fields to read next."""
        if self.record is not None:
            yield from self.cell_names().values()
            yield from self.write_names

    def take(self, blobs: Mapping[bytes, bytes | None], envelope: Envelope) -> None:
        """Take the blobs of `fields`.

        Raises:
            CorruptCheckpointError: One is missing, cut or altered.
        """
        if self.record is None:
            return
        for channel, name in self.cell_names().items():
            self.cells[channel] = unpack_cell(_present(blobs[name], name), envelope, name)
        calls = []
        for name in self.write_names:
            writes = unpack_writes(_present(blobs[name], name), envelope, name)
            calls.append((writes.time_ns, keys.split(name)[2], writes))
        seen: set[tuple[str, int]] = set()
        for _, task_id, writes in sorted(calls, key=lambda call: call[:2]):
            for index, channel, cell in writes.cells:
                if (task_id, index) not in seen:
                    seen.add((task_id, index))
                    key = writes_sort_key(writes.task_path, task_id, index)
                    self.writes.append((key, channel, cell))
        self.writes.sort(key=lambda write: write[0])

    def references(self) -> Iterator[bytes]:
        """Yield the digests of the parts to read last."""
        for cell in self.cells.values():
            yield from references(cell)
        for _, _, cell in self.writes:
            yield from references(cell)

    def tuple(
        self, parts: Mapping[bytes, bytes], serde: SerializerProtocol
    ) -> CheckpointTuple | None:
        """Put the checkpoint together.

        Raises:
            CorruptCheckpointError: A value is laid out or serialised in an unknown way.
        """
        if self.record is None:
            return None
        here = self.place.described
        values = {
            name: assemble(cell, parts, serde, f"channel {name!r} of {here}")
            for name, cell in self.cells.items()
        }
        return CheckpointTuple(
            config=config_of(self.place),
            checkpoint=cast(Checkpoint, {**self.bare, "channel_values": values}),
            metadata=cast(
                CheckpointMetadata, load(self.record.metadata, serde, f"metadata of {here}")
            ),
            parent_config=(
                config_of(Place(self.place.thread_id, self.place.ns, self.record.parent_id))
                if self.record.parent_id
                else None
            ),
            pending_writes=[
                (
                    task_id,
                    channel,
                    assemble(cell, parts, serde, f"pending write to channel {channel!r} of {here}"),
                )
                for (_, task_id, _), channel, cell in self.writes
            ],
        )


def config_of(place: Place) -> RunnableConfig:
    """Name a checkpoint the way LangGraph does."""
    return {
        "configurable": {
            "thread_id": place.thread_id,
            "checkpoint_ns": place.ns,
            "checkpoint_id": place.checkpoint_id,
        }
    }


def _present(blob: bytes | None, name: bytes) -> bytes:
    if blob is None:
        raise CorruptCheckpointError(describe(name), "it is missing")
    return blob

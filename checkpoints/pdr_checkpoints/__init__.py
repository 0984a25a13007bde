r"""Keeps the runs of any LangGraph graph in Redis or Valkey, and loses nothing.

    async with open_checkpointer("redis://localhost:6379/0") as saver:
        graph = builder.compile(checkpointer=saver)
        async with saver.lease("my-thread"):
            await graph.ainvoke(inputs, {"configurable": {"thread_id": "my-thread"}})

It needs Redis 6.2 or later, or Valkey, with core commands and server-side scripts only.

This page describes all that is stored, in format version 1. There is no older version. A thread or
blob of a newer one is refused (`FormatVersionError`).

**Keys.** `T` is the percent-encoded thread id. All keys of a thread are in one slot of a cluster.

    checkpoint:{.T}:data    hash: all that the thread holds
    checkpoint:{.T}:index   sorted set, every score 0: names in byte order
    checkpoint:{.T}:lease   string with a time to live: "<token> <random> <holder>"
    checkpoint:{.T}:fence   counter of leases
    checkpoint:threads      sorted set of thread ids by ms of their last checkpoint
    checkpoint:{checkpoint:threads}:expiries   those that expire, by ms of that
    checkpoint:{checkpoint:threads}:walked     string: the registry was looked through today
    checkpoint:trial:<random>       string for a minute at most: a trial write

The hash and the index hold a thread of any length, so two commands refresh its time to live and
one deletes it. Redis lets the two expire, and whoever writes next removes them from the registry. A
copy or an import has both under random names until it is whole, for an hour at most.

**Fields of the hash.** `c`, `w` and `p` fields are also members of the index. `r` is a member only.

    m                                "<format version> <ms when created>"
    u                                "<ms of the last write> <random>"
    c \0 ns \0 id                    record: a checkpoint without its values
    v \0 ns \0 channel \0 version    cell: the channel's value at that version
    w \0 ns \0 id \0 task \0 number  writes: what a task wrote in one call
    p <16 bytes of SHA-256>          part: a serialised value of 1 kB or more, stored once
    r \0 run \0 ns \0 id             a checkpoint that a run made

**Content.** Records, cells and writes are msgpack. A body is `"<serde type>\0<serde bytes>"`.

    record = [checkpoint body, metadata body, parent id or None, [channels that have a value]]
    writes = [ns since 1970, task path, [[index, channel, cell], …]]
    cell   = [0, body] a small value | [1, digest] a part | [2, [cell, …]] a list, item by item

The record lists the channels that have a value, so a lost value is an error, not an empty channel.
A draft is stored once: the pending write that brings it and the channel that collects it refer to
one part. Lists are laid out item by item, so a channel of 16 drafts shares its bytes with 16
pending writes, and a growing list of messages with its earlier versions. The price is one more
read when a state is loaded. `checkpoints/README.md` has measurements.

**Envelope.** Every blob (the value of a `c`, `v`, `w` or `p` field) is wrapped.

    byte 0     format version of the envelope: 1, or 2 when encrypted
    byte 1     compression (0 none, 1 zlib, 2 zstd), plus 16 when encrypted
    plain      4 bytes CRC-32 of header, field name and body, then the body
    encrypted  4 bytes key id, 12 bytes nonce, AES-256-GCM ciphertext and tag

The check and the encryption cover the field name, so a blob in the wrong field is corrupt. The
encryption covers the thread id as well, and a copy is sealed anew. Encrypted blobs of version 1, of
an early release, do not: with keys, they and plain ones are read with `read_older` only.

**Exported thread**, a file. Blobs travel as they are stored: compressed and encrypted. Under
another id than the file's they are sealed anew.

    file  = "pdr-checkpoints 1\n", frame, …, a frame of kind E
    frame = kind (1 byte), length (4 bytes, big-endian), content
            T thread id | F length of the name (4 bytes), name, blob | M index member
            E SHA-256 of all that came before
"""

# Absolute imports throughout: `langgraph dev` may load a file by its path.
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from pdr_checkpoints.errors import (
        CheckpointLostError,
        CorruptCheckpointError,
        DecryptionError,
        FormatVersionError,
        LeaseLostError,
        MissingDependencyError,
        NotReplicatedError,
        SaverError,
        StoreConfigError,
        StoreRefusedError,
        StoreUnreachableError,
        ThreadBusyError,
        ThreadContendedError,
        ThreadNotFoundError,
        ThreadTakenError,
        TooLargeError,
        TypeNotAllowedError,
        UnknownSerializationError,
    )
    from pdr_checkpoints.lease import Lease
    from pdr_checkpoints.saver import RedisSaver
    from pdr_checkpoints.serde import Allowed, AllowlistSerializer
    from pdr_checkpoints.session import Health, SaverOptions, StoreTrial
    from pdr_checkpoints.threads import ThreadInfo

__all__ = [
    "AllowlistSerializer",
    "CheckpointLostError",
    "CorruptCheckpointError",
    "DecryptionError",
    "FormatVersionError",
    "Health",
    "Lease",
    "LeaseLostError",
    "MissingDependencyError",
    "NotReplicatedError",
    "RedisSaver",
    "SaverError",
    "SaverOptions",
    "StoreConfigError",
    "StoreRefusedError",
    "StoreTrial",
    "StoreUnreachableError",
    "ThreadBusyError",
    "ThreadContendedError",
    "ThreadInfo",
    "ThreadNotFoundError",
    "ThreadTakenError",
    "TooLargeError",
    "TypeNotAllowedError",
    "UnknownSerializationError",
    "open_checkpointer",
]

_HOMES = {
    "AllowlistSerializer": "serde",
    "Health": "session",
    "Lease": "lease",
    "RedisSaver": "saver",
    "SaverOptions": "session",
    "StoreTrial": "session",
    "ThreadInfo": "threads",
}
"""The module of each name that is no error. Names are imported on first use: the client and
LangGraph take seconds to load, and code that only names an error should not wait for them."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


# Defined here and not in `saver`: LangGraph's server looks in this module's `__dict__` for what
# langgraph.json names, and does not ask `__getattr__`.
@asynccontextmanager
async def open_checkpointer(
    url: str | None = None,
    *,
    serde: "SerializerProtocol | None" = None,
    allowed: "Iterable[Allowed]" = (),
    **options: Any,  # Any: the fields of SaverOptions, which checks them
) -> AsyncIterator["RedisSaver"]:
    """Open a saver while the block runs.

    Args:
        url: Where Redis or Valkey is, see `pdr_checkpoints.connect`. None takes REDIS_URL from the
            environment, or this machine.
        serde: How values become bytes, and back. None is `AllowlistSerializer`. LangGraph's own
            (`JsonPlusSerializer()`) runs code that the stored bytes name, so it causes a warning.
        allowed: Types that stored values may have besides the ordinary ones: your dataclasses,
            pydantic models and enums, as classes or as pairs of names.
        **options: Fields of `SaverOptions`. Without `encryption_keys`, the keys are those that
            PDR_ENCRYPTION_KEYS has, or the file that PDR_ENCRYPTION_KEY_FILE names; an empty list
            takes none.

    Raises:
        StoreConfigError: The URL or an option cannot work.
        StoreUnreachableError: No server answers.
    """
    from pdr_checkpoints.rotation import keys_from
    from pdr_checkpoints.saver import RedisSaver
    from pdr_checkpoints.session import SaverOptions

    # The one place of the package that reads the environment: langgraph.json passes no arguments.
    options.setdefault("encryption_keys", None)
    if options["encryption_keys"] is None:
        options["encryption_keys"] = keys_from(os.environ)
    address = url or os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"
    async with RedisSaver(
        address, serde=serde, allowed=allowed, options=SaverOptions(**options)
    ) as saver:
        yield saver

r"""Keeps the runs of any LangGraph graph in Redis or Valkey, and loses nothing.

    async with open_checkpointer("redis://localhost:6379/0") as saver:
        graph = builder.compile(checkpointer=saver)
        async with saver.lease("my-thread"):
            await graph.ainvoke(inputs, {"configurable": {"thread_id": "my-thread"}})

Redis 6.2 or later, or Valkey, with core commands and server-side scripts only.

Layout, format version 1. `T` is the percent-encoded thread id; all keys of a thread are in one
slot of a cluster, and expire together.

    checkpoint:{.T}:data    hash
        m                            "<format version> <ms when created>"
        u                            "<ms of the last write> <random>"
        c \0 ns \0 id                record: checkpoint without values, metadata, parent
        v \0 ns \0 channel \0 version    the channel's value at that version
        w \0 ns \0 id \0 task \0 number  what a task wrote in one call
        p <16 bytes of SHA-256>      a value of 1 kB or more, stored once
    checkpoint:{.T}:index   sorted set, every score 0: the names of `c`, `w` and `p` fields, and
        r \0 run \0 ns \0 id         what a run stored
    checkpoint:{.T}:lease   string with a time to live: "<token> <random> <holder>"
    checkpoint:{.T}:fence   counter of leases
    checkpoint:threads      sorted set of thread ids by ms of their last checkpoint

Two keys hold a thread, whatever its length, so that a time to live is refreshed by two commands
and a deletion is one. Blobs are described in `envelope`, their content in `records` and
`values`. A thread or blob of another format version is refused with a sentence that says so
(`FormatVersionError`); version 1 is the first, so there is no older one to read.

A draft is stored once: a pending write and the channel that collects it refer to one part by its
digest. Measured in `checkpoints/README.md`; the price is one more read when a state is loaded.
"""

# Absolute imports throughout: `langgraph dev` may load this file by its path.
from pdr_checkpoints.errors import (
    CorruptCheckpointError,
    DecryptionError,
    FormatVersionError,
    LeaseLostError,
    MissingDependencyError,
    SaverError,
    StoreConfigError,
    StoreUnreachableError,
    ThreadBusyError,
    ThreadContendedError,
    ThreadNotFoundError,
    ThreadTakenError,
    UnknownSerializationError,
)
from pdr_checkpoints.lease import Lease
from pdr_checkpoints.saver import RedisSaver, open_checkpointer
from pdr_checkpoints.session import Options
from pdr_checkpoints.threads import ThreadInfo
from pdr_checkpoints.upkeep import Health

__all__ = [
    "CorruptCheckpointError",
    "DecryptionError",
    "FormatVersionError",
    "Health",
    "Lease",
    "LeaseLostError",
    "MissingDependencyError",
    "Options",
    "RedisSaver",
    "SaverError",
    "StoreConfigError",
    "StoreUnreachableError",
    "ThreadBusyError",
    "ThreadContendedError",
    "ThreadInfo",
    "ThreadNotFoundError",
    "ThreadTakenError",
    "UnknownSerializationError",
    "open_checkpointer",
]

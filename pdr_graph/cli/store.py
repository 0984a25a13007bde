"""Where runs are kept: in memory, in Redis by its URL, or in the embedded Valkey.

The keys that encrypt them come with the settings. `pdr-graph reseal` brings stored runs from one
key to another.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil
import typer
from langgraph.checkpoint.base import BaseCheckpointSaver
from pdr_checkpoints import (
    RedisSaver,
    SaverError,
    StoreRefusedError,
    StoreUnreachableError,
    ThreadBusyError,
    open_checkpointer,
)
from pdr_checkpoints.connect import redact
from pdr_checkpoints.rotation import KEYS_VARIABLE, parse_keys, read_key_file
from pdr_checkpoints.serde import MAX_CHECKPOINT_BYTES
from pydantic import SecretStr
from redis.exceptions import RedisError

from pdr_graph.cli.commands import ResealCommand
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.output import Output, one_line
from pdr_graph.errors import CheckpointError, ConfigError, UnknownThreadError, counted
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import Settings, load_settings

Saver = BaseCheckpointSaver[str]
MEMORY = "memory"
LEASE_S = 10.0
"""Seconds after which the run of a killed process may be taken over."""
BUSY = "it is in progress"
TELL_EVERY_S = 2.0
"""Seconds between two lines on the progress of long work."""


@asynccontextmanager
async def open_saver(
    settings: Settings,
    say: Callable[[str], None],
    *,
    ttl_s: float | None = None,
    read_older: bool = False,
) -> AsyncIterator[Saver]:
    """Open the store of the settings.

    Args:
        settings: Where it is.
        say: Receives a line on what is started.
        ttl_s: Seconds that a thread is kept after its last write; None keeps it until deleted.
        read_older: With keys: also read values that no key binds to their thread.

    Raises:
        CheckpointError: the store refuses to work, with its address.
        StoreConfigError: the keys cannot be read.
    """
    keys = encryption_keys(settings)
    if settings.redis_url == MEMORY:
        from langgraph.checkpoint.memory import InMemorySaver

        yield InMemorySaver()
    elif settings.redis_url is not None:
        async with open_redis(
            settings.redis_url,
            ttl_s,
            keys,
            read_older=read_older,
            max_bytes=settings.max_bytes,
        ) as saver:
            yield saver
    else:
        async with (
            embedded_valkey(settings.data_dir, announce=say) as url,
            open_redis(
                url, ttl_s, keys, read_older=read_older, max_bytes=settings.max_bytes
            ) as saver,
        ):
            yield saver


@asynccontextmanager
async def open_redis(
    url: str,
    ttl_s: float | None = None,
    encryption_keys: Sequence[bytes] = (),
    *,
    read_older: bool = False,
    max_bytes: int = MAX_CHECKPOINT_BYTES,
) -> AsyncIterator[RedisSaver]:
    """Open a saver on a server; an error names its address.

    Args:
        url: Where it is.
        ttl_s: Seconds that a thread is kept after its last write; None keeps it until deleted.
        encryption_keys: The first seals what is stored, all open it; empty stores it plain.
        read_older: With keys: whether to read values that no key binds to their thread.
        max_bytes: Memory that the values of one checkpoint may take when they are read.

    Raises:
        CheckpointError: the server refuses a command.
    """
    try:
        async with open_checkpointer(
            url,
            ttl_s=ttl_s,
            encryption_keys=encryption_keys,
            read_older=read_older,
            lease_ttl_s=LEASE_S,
            max_checkpoint_bytes=max_bytes,
        ) as saver:
            yield saver
    except RedisError as error:
        raise CheckpointError(
            f"Redis at {redact(url)} refuses to work: {error}; `pdr-graph doctor` says more"
        ) from error


def encryption_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys that encrypt stored runs: the first seals, all open.

    Raises:
        StoreConfigError: they cannot be read.
    """
    if settings.encryption_key_file is not None:
        return read_key_file(settings.encryption_key_file)
    if settings.encryption_keys is not None:
        return parse_keys(settings.encryption_keys.get_secret_value(), KEYS_VARIABLE)
    return ()


def with_keys(settings: Settings) -> Settings:
    """Return settings that hold the keys themselves, for a machine that lacks the file."""
    text = " ".join(key.hex() for key in encryption_keys(settings))
    held = {"encryption_keys": SecretStr(text) if text else None, "encryption_key_file": None}
    return settings.model_copy(update=held)


@asynccontextmanager
async def alone(saver: Saver, thread_id: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Keep other processes from running the same thread at the same time.

    Raises:
        ThreadBusyError: another process runs it, and lives.
    """
    if not isinstance(saver, RedisSaver):
        yield
        return
    wait_s = 0.0
    known = await saver.thread(thread_id)
    if known is not None and known.holder is not None and not _lives_here(known.holder):
        # The other process may have been killed; then its lease soon runs out.
        wait_s = LEASE_S + 1
        say(f"thread {thread_id!r} was run by {known.holder}; waiting up to {wait_s:.0f} s for it")
    async with saver.lease(thread_id, ttl_s=LEASE_S, wait_s=wait_s):
        yield


MOST_SHOWN = 8
"""Runs that a message lists."""


def check_named(thread: str | None, *, last: bool) -> None:
    """Refuse a command that names no run, or two, before the store is opened.

    Raises:
        ConfigError: the name is missing, or there is one beside --last.
    """
    if thread is None and not last:
        raise ConfigError(
            "no run is named; name one that `pdr-graph threads` lists, or take the latest with "
            "--last"
        )
    if thread is not None and last:
        raise ConfigError(f"{thread!r} names a run, and --last takes another; drop one of them")


async def named_thread(saver: Saver, thread: str | None) -> str:
    """Return the run that a user means: by its name, or by a beginning that no other name has.

    Args:
        saver: Where it is kept.
        thread: What was typed; None takes the run that was written last.

    Returns:
        The whole name; the typed text if no stored name begins with it.

    Raises:
        ConfigError: several names begin with the text, and the message lists them; or there is no
            last run.
    """
    if thread is None:
        latest = await saver.threads(1) if isinstance(saver, RedisSaver) else []
        if not latest:
            raise ConfigError("--last finds no run: none is kept there yet")
        return latest[0].thread_id
    if not thread or not isinstance(saver, RedisSaver) or await saver.thread(thread) is not None:
        return thread
    found = [name async for name in saver.thread_ids() if name.startswith(thread)]
    if len(found) > 1:
        listed = ", ".join(one_line(name) for name in found[:MOST_SHOWN])
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise ConfigError(f"{thread!r} begins the names of {listed}{more}; type more of it")
    return found[0] if found else thread


def _lives_here(holder: str) -> bool:
    host, _, pid = holder.rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and psutil.pid_exists(int(pid))


def reseal_command(command: ResealCommand, output: Output) -> None:
    """Seal stored runs anew.

    Raises:
        typer.Exit: something is left.
    """
    settings = load_settings(**command.storage)
    if settings.redis_url == MEMORY:
        raise ConfigError("memory keeps no runs; name a store by --checkpoint / PDR_REDIS_URL")
    if not encryption_keys(settings):
        raise ConfigError(
            "there is no encryption key; name a file that holds one by --encryption-key-file / "
            "PDR_ENCRYPTION_KEY_FILE"
        )

    async def go() -> Reseal:
        async with open_saver(settings, output.say, read_older=command.read_older) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` was refused
            work = Reseal(saver, command, output)
            try:
                await work.carry_out()
            except asyncio.CancelledError:
                output.tell(work.way_on)
                raise
            return work

    work = asyncio.run(go())
    work.show()
    if work.left:
        raise typer.Exit(FAILED)


@dataclass(slots=True)
class Reseal:
    """Brings stored runs to the first key, or to none, one by one."""

    saver: RedisSaver
    command: ResealCommand
    output: Output
    num_threads: int = 0
    num_values: int = 0
    """Values that were sealed anew."""
    left: dict[str, str] = field(default_factory=dict)
    """By the name of each run that is not sealed by the key, the reason."""
    _told: float = field(default_factory=time.monotonic)

    @property
    def seal(self) -> str:
        """The name of the key, or `plain`."""
        return "plain" if self.command.plain else self.saver.seal_name

    @property
    def way_on(self) -> str:
        """The line that says how to continue after a stop."""
        changes_kind = self.command.plain or self.command.read_older
        then = (
            "some runs are refused until it ends"
            if changes_kind
            else "until it ends, keep all keys"
        )
        return f"stopped; the same command goes on, and {then}"

    async def carry_out(self) -> None:
        """Seal all runs anew; wait once for runs whose processes may have been killed."""
        typed = [await self._name(each) for each in self.command.threads]
        for name in typed:
            if not (await self.saver.sealed_by(name, only_some=True)).counts:
                raise UnknownThreadError(name)
        named = typed or [name async for name in self.saver.stored_threads()]
        for number, name in enumerate(named):
            self._tell(f"{number} of {counted(len(named), 'run')} done")
            await self._one(name, 0.0)
        until = time.monotonic() + LEASE_S + 1
        busy = [name for name, why in self.left.items() if why == BUSY]
        if busy:
            self.output.say(
                f"{counted(len(busy), 'run')} in progress; waiting up to {LEASE_S + 1:.0f} s"
            )
        for name in busy:
            await self._one(name, max(0.0, until - time.monotonic()))
        self.num_threads = sum(name not in self.left for name in named)
        if not self.command.threads:
            await self._look_again(set(named))

    async def _name(self, typed: str) -> str:
        # A thread that is stored only in part is in no list, so it needs its whole name.
        whole = (await self.saver.sealed_by(typed, only_some=True)).counts
        return typed if whole else await named_thread(self.saver, typed)

    async def _one(self, thread_id: str, wait_s: float) -> None:
        self.left.pop(thread_id, None)
        try:
            self.num_values += await self.saver.reseal_thread(
                thread_id, plain=self.command.plain, wait_s=wait_s
            )
        except ThreadBusyError:
            self.left[thread_id] = BUSY
        except (StoreUnreachableError, StoreRefusedError):
            raise
        except SaverError as error:
            self.left[thread_id] = str(error)

    async def _look_again(self, known: set[str]) -> None:
        """Look at how every stored value is sealed: old processes may have written meanwhile."""
        async for name in self.saver.stored_threads():
            self._tell("looking at what is left")
            others = (await self.saver.sealed_by(name)).counts.keys() - {self.seal}
            if others and name not in self.left:
                self.left[name] = f"it has values sealed otherwise ({', '.join(sorted(others))})"
                self.num_threads -= name in known

    def show(self) -> None:
        """Say what was done, and what is left."""
        if self.output.json:
            left = [{"thread": name, "why": why} for name, why in self.left.items()]
            self.output.show_json(
                {
                    "sealed_by": self.seal,
                    "threads": self.num_threads,
                    "values": self.num_values,
                    "left": left,
                }
            )
        how = "plain" if self.command.plain else f"sealed by key {self.seal}"
        total = self.num_threads + len(self.left)
        are = "is" if total == 1 else "are"
        self.output.say(
            f"{self.num_threads} of {counted(total, 'run')} {are} {how}; changed: {self.num_values}"
        )
        for name, why in self.left.items():
            self.output.tell(f"{one_line(name)} is left: {one_line(why)}")
        if self.left:
            self.output.tell("keep the other keys, and run the same command again")
        elif not self.command.threads:
            self.output.say("nothing is left that is sealed otherwise")

    def _tell(self, line: str) -> None:
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            self.output.say(line)

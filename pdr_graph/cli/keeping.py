"""`pdr-graph threads --prune | --delete | --export | --import`: what is kept, and where."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from checkpoints import RedisSaver
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output
from pdr_graph.cli.stores import alone, open_saver
from pdr_graph.cli.text import one_line
from pdr_graph.errors import ConfigError, UnknownThreadError
from pdr_graph.settings import load_settings

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Chore:
    """One thing to do with threads; exactly one of the first four is asked."""

    prune: bool = False
    delete: bool = False
    export_to: Path | None = None
    import_from: Path | None = None
    keep: int | None = None
    """Checkpoints of each thread that pruning keeps; None keeps what `inspect` shows."""

    @property
    def asked(self) -> bool:
        """Whether there is anything to do but list."""
        return self.prune or self.delete or bool(self.export_to) or bool(self.import_from)


def keeping_command(chore: Chore, threads: Sequence[str], given: Given, output: Output) -> None:
    """Do the chore.

    Raises:
        ConfigError: chores are mixed, or the threads do not fit the chore.
        UnknownThreadError: a thread is not there; nothing was done.
    """
    _check(chore, threads)
    settings = load_settings(**given)

    async def go() -> None:
        async with open_saver(settings, output.say) as saver:
            if not isinstance(saver, RedisSaver):
                raise ConfigError("memory keeps no runs; name a store by --checkpoint")
            if chore.import_from is not None:
                name = await saver.import_thread(
                    _chunks(chore.import_from), thread_id=threads[0] if threads else None
                )
                output.say(f"imported thread {one_line(name)} from {chore.import_from}")
                return
            for thread in threads:
                if await saver.thread(thread) is None:
                    raise UnknownThreadError(thread)
            if chore.export_to is not None:
                await _export(saver, threads[0], chore.export_to)
                output.say(f"exported thread {one_line(threads[0])} to {chore.export_to}")
                return
            await _prune_or_delete(saver, chore, threads, output)

    asyncio.run(go())


async def _prune_or_delete(
    saver: RedisSaver, chore: Chore, threads: Sequence[str], output: Output
) -> None:
    for thread in threads or [info.thread_id for info in await saver.threads()]:
        # Under its lease: a run that goes on keeps what it needs.
        async with alone(saver, thread, output.say):
            if chore.delete:
                await saver.adelete_thread(thread)
            elif chore.keep is None:
                await saver.aprune([thread], strategy="inspection")
            else:
                await saver.aprune([thread], strategy="keep_latest", keep=chore.keep)
        output.say(f"{'deleted' if chore.delete else 'pruned'} thread {one_line(thread)}")


def _check(chore: Chore, threads: Sequence[str]) -> None:
    options = {
        "--prune": chore.prune,
        "--delete": chore.delete,
        "--export": chore.export_to is not None,
        "--import": chore.import_from is not None,
    }
    asked = [name for name, wanted in options.items() if wanted]
    if not asked:
        raise ConfigError(
            "threads are named without a chore; add --prune, --delete or --export, or look at one "
            "by `pdr-graph inspect`"
        )
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} do different things; ask for one at a time")
    if chore.keep is not None and not chore.prune:
        raise ConfigError(f"--keep {chore.keep} says how much --prune leaves, not {asked[0]}")
    if chore.delete and not threads:
        raise ConfigError("--delete needs the names of threads; `pdr-graph threads` lists them")
    if chore.export_to is not None:
        if len(threads) != 1:
            raise ConfigError(f"--export writes one thread, {len(threads)} are named")
        if chore.export_to.exists():
            raise ConfigError(f"--export {str(chore.export_to)!r} exists; choose another file")
    if chore.import_from is not None:
        if len(threads) > 1:
            raise ConfigError(f"--import stores one thread, {len(threads)} names are given for it")
        if not chore.import_from.is_file():
            raise ConfigError(f"--import {str(chore.import_from)!r} is no file")


async def _export(saver: RedisSaver, thread: str, file: Path) -> None:
    """Write the whole file or none."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as out:
            async for chunk in saver.export_thread(thread):
                await asyncio.to_thread(out.write, chunk)
        part.replace(file)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk

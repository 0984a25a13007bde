"""Encryption keys: where they come from, and how a store goes from one to another.

As text, in a file or a variable, a key is 32 bytes as 64 hexadecimal digits or as base64. Several
are separated by white space or commas, and `#` begins a comment. The first key seals, all open.

A thread is sealed anew under its lease, parts first: a part's name depends on the key, so it is
stored under its new name beside the old one. Then follows what refers to parts, and at last the old
parts go. Whenever that is cut short, everything can be read with both keys, and the next call goes
on. Runs without a lease, and whoever prunes, may come between: each write is applied only if nobody
has written since and all that it relies on is there.
"""

import asyncio
import base64
import binascii
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from redis import exceptions

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import HEAD_BYTES, KEY_BYTES, Envelope, ThreadEnvelope
from pdr_checkpoints.errors import (
    CorruptCheckpointError,
    StoreConfigError,
    ThreadContendedError,
)
from pdr_checkpoints.records import ITEMS, REFERENCE, Cell, Writes, references, unpack_cell
from pdr_checkpoints.registry import AT_ONCE
from pdr_checkpoints.retention import RetentionMethods
from pdr_checkpoints.store import SWAP_TRIES, Command, Fence, chunks
from pdr_checkpoints.threads import SCAN, field_names

KEYS_VARIABLE: Final = "PDR_ENCRYPTION_KEYS"
KEY_FILE_VARIABLE: Final = "PDR_ENCRYPTION_KEY_FILE"
MOST_KEY_TEXT: Final = 65_536
"""Bytes that a file of keys may have."""
SEALS: Final = """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local heads = {}
for at = 1, #found[2], 2 do
  heads[at], heads[at + 1] = found[2][at], found[2][at + 1]:sub(1, ARGV[3])
end
return {found[1], heads}
"""
"""A page of a hash: the names of its fields, and how their values begin."""
SEALS_PAGE: Final = 32
"""Fields of such a page, about: drafts of 32 kB make that a megabyte that the server copies."""
SCANNED: Final = 1000
"""Keys of the server that are looked at in a round trip: less than a millisecond."""

Seal = Callable[[bytes, bytes, dict[bytes, bytes]], tuple[bytes, bytes] | None]
"""Takes the name and blob of a field, and the new digests by the old ones; returns the name and
blob that it gets, or None if it stays."""


@dataclass(frozen=True, slots=True)
class ThreadSeals:
    """How the values of a thread are sealed."""

    thread_id: str
    counts: Mapping[str, int]
    """Values by what seals them: `plain`, `early` (a release that did not bind them to their
    thread), or the name of a key."""
    is_whole: bool
    """Whether all values were looked at."""
    unread: str | None
    """Why one of them cannot be read with the saver's keys, in a sentence; None if it can be."""


@dataclass(frozen=True, slots=True)
class StoreSeals:
    """How a store is sealed, by some of its threads."""

    num_threads: int
    """Of the whole store."""
    sample: Sequence[ThreadSeals]


def parse_keys(text: str, where: str) -> tuple[bytes, ...]:
    """Read keys from a text; `where` names it in a message, which never shows a part of it.

    Raises:
        StoreConfigError: It has no key, or a word that is no key.
    """
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in filter(None, re.split(r"[\s,]+", line.partition("#")[0])):
            key = _key_of(word)
            if key is None:
                raise StoreConfigError(
                    f"{where}, line {number}, has what is no encryption key: write 32 random bytes "
                    "as 64 hexadecimal digits (`openssl rand -hex 32`) or as base64"
                )
            keys.append(key)
    if not keys:
        raise StoreConfigError(
            f"{where} has no encryption key: write one there, as `openssl rand -hex 32` makes it"
        )
    return tuple(dict.fromkeys(keys))


def read_key_file(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """Read the keys of a file that nobody else can read; the first one seals, all open.

    Raises:
        StoreConfigError: The file is missing, open to others, empty or malformed.
    """
    where = f"encryption key file {os.fspath(path)!r}"
    try:
        with Path(path).open("rb") as source:
            about = os.fstat(source.fileno())
            # As PostgreSQL has it: where root keeps a secret for a service, its group may read it.
            by_root = about.st_uid == 0 and os.geteuid() != 0
            if stat.S_IMODE(about.st_mode) & (0o037 if by_root else 0o077):
                raise StoreConfigError(
                    f"{where} has mode {stat.S_IMODE(about.st_mode):04o}, so that other users can "
                    f"read or change it: `chmod 600 {os.fspath(path)}`, and replace its keys if "
                    "somebody may have read them"
                )
            raw = source.read(MOST_KEY_TEXT + 1)
    except OSError as error:
        raise StoreConfigError(
            f"{where} cannot be read ({error.strerror}): make one by `(umask 077; openssl rand "
            f"-hex 32 > {os.fspath(path)})`, or name another"
        ) from None
    if len(raw) > MOST_KEY_TEXT:
        raise StoreConfigError(f"{where} has more than {MOST_KEY_TEXT} bytes: it is no key file")
    return parse_keys(raw.decode("utf-8-sig", "replace"), where)


def keys_from(environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return the keys that an environment names; empty where it names none.

    Raises:
        StoreConfigError: It names them twice, or they cannot be read.
    """
    text, file = environment.get(KEYS_VARIABLE, ""), environment.get(KEY_FILE_VARIABLE, "")
    if text and file:
        raise StoreConfigError(f"{KEYS_VARIABLE} and {KEY_FILE_VARIABLE} are both set: unset one")
    if file:
        return read_key_file(file)
    return parse_keys(text, KEYS_VARIABLE) if text else ()


def _key_of(word: str) -> bytes | None:
    try:
        if len(word) == 2 * KEY_BYTES:
            return bytes.fromhex(word)
        padded = word.rstrip("=").translate(str.maketrans("-_", "+/")) + "="
        key = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


class SealMethods(RetentionMethods):
    """The methods of a saver that say how values are sealed, and that seal them anew."""

    @property
    def seal_name(self) -> str:
        """The name of the key that seals what is written, or `plain`."""
        return self._session.envelope.seal_name

    @property
    def key_names(self) -> frozenset[str]:
        """The names of all keys; a name is a part of the key's hash, and no secret."""
        keyring = self._session.envelope.keyring
        return frozenset() if keyring is None else keyring.names

    async def sealed_by(self, thread_id: str, *, only_some: bool = False) -> ThreadSeals:
        """Say how the values of a thread are sealed, without reading them whole.

        Args:
            thread_id: The thread.
            only_some: Look at about `SEALS_PAGE` values at most.
        """
        data_key, envelope = self._store.thread(thread_id).data, self._session.envelope
        counts: dict[str, int] = {}
        cursor, chosen = b"", b""
        while cursor != b"0" and not (cursor and only_some):
            cursor, found = await self._store.script(
                SEALS, [data_key], [cursor or b"0", SEALS_PAGE, HEAD_BYTES]
            )
            for name, head in zip(found[::2], found[1::2], strict=True):
                if name[:1] in keys.WRAPPED:
                    seal = envelope.seal_of(head)
                    counts[seal] = counts.get(seal, 0) + 1
                    # Kinds that sort first have the shorter values.
                    chosen = min(chosen or name, name)
        unread = None
        if chosen and (blob := await self._store.call("HGET", data_key, chosen)) is not None:
            try:
                envelope.of(thread_id).unwrap(blob, chosen)
            except CorruptCheckpointError as error:
                unread = str(error)
        return ThreadSeals(thread_id, counts, cursor == b"0", unread)

    async def seals(self, most: int = 50) -> StoreSeals:
        """Say how a store is sealed, by `most` of its threads that are drawn at random."""
        registry = keys.registry_keys(self._store.prefix).threads
        count, drawn = await self._store.pipeline(
            [("ZCARD", registry), ("ZRANDMEMBER", registry, most)]
        )
        names = [keys.decode(member) for member in drawn]
        return StoreSeals(count, [await self.sealed_by(name, only_some=True) for name in names])

    async def stored_threads(self) -> AsyncIterator[str]:
        """Yield the id of every thread of which anything is stored, listed or not.

        All keys of the server are scanned for it, a page at a time.
        """
        seen: set[bytes] = set()
        stem = re.sub(r"([*?\[\]\\^-])", r"\\\1", self._store.prefix)
        pattern = f"{stem}:{{.*}}:data"
        async for key in self._matching_keys(pattern):
            if key not in seen:
                seen.add(key)
                tag = key[len(self._store.prefix) + 3 : -len("}:data")]
                yield unquote(tag.decode("ascii", "replace"), errors="surrogatepass")

    async def _matching_keys(self, pattern: str) -> AsyncIterator[bytes]:
        store = self._store
        if store.connection.is_cluster:
            # Of every node: only its client knows them.
            async for key in store.connection.client.scan_iter(match=pattern, count=SCANNED):
                yield key
            return
        cursor: int | None = None
        while cursor != 0:
            position, some = await store.call(
                "SCAN", cursor or 0, "MATCH", pattern, "COUNT", SCANNED
            )
            cursor = int(position)
            for key in some:
                yield key

    async def reseal_thread(
        self, thread_id: str, *, plain: bool = False, wait_s: float = 0.0
    ) -> int:
        """Seal every value of a thread anew with the first key; return how many that changed.

        What is sealed by that key already stays. Plain values, and those of an early release, are
        refused unless the saver was opened with `read_older`. If it is stopped or killed, the
        thread can be read with all keys, and the next call goes on.

        Args:
            thread_id: The thread. One of which nothing is stored has no values.
            plain: Take the encryption off instead. Plain values then stay as they are.
            wait_s: How long to wait for a run that holds the thread.

        Raises:
            StoreConfigError: The saver has no keys.
            ThreadBusyError: Another process runs the thread.
            ThreadContendedError: A run without a lease kept writing to the thread.
            DecryptionError: No key opens a value.
            CorruptCheckpointError: A value is cut or altered, or the thread is not whole.
        """
        options, leases = self.options, self._session.leases
        if not options.encryption_keys:
            raise StoreConfigError(
                "encryption_keys is not set, and sealing anew needs a key: name a file that holds "
                "it by --encryption-key-file / PDR_ENCRYPTION_KEY_FILE"
            )
        source, target = self._session.envelope, Envelope(options.compression)
        if plain:
            # A call that was cut short may have left plain values, and without keys nothing proves
            # values true.
            source = Envelope(options.compression, options.encryption_keys, read_older=True)
        else:
            target = Envelope(options.compression, options.encryption_keys[:1])
        async with AsyncExitStack() as stack:
            if (fence := leases.fence(thread_id)) is None:
                held = leases.hold(thread_id, ttl_s=options.lease_ttl_s, wait_s=wait_s, owner=None)
                fence = (await stack.enter_async_context(held)).fence
            for _ in range(SWAP_TRIES):
                data_key = self._store.thread(thread_id).data
                stamp: bytes | None = await self._store.call("HGET", data_key, keys.UPDATED)
                if stamp is None:
                    if not await self._store.call("EXISTS", data_key):
                        return 0
                    raise CorruptCheckpointError(
                        f"thread {thread_id!r}",
                        "it is not whole, since an import or copy is under way or was cut short: "
                        "wait for it, or delete the thread",
                    )
                work = _Resealing(
                    self, thread_id, source.of(thread_id), target.of(thread_id), stamp, fence
                )
                try:
                    return await work.carry_out()
                except _OvertakenError:
                    continue
        raise ThreadContendedError(thread_id, SWAP_TRIES)


class _OvertakenError(Exception):
    """Somebody else changed the thread."""


@dataclass(slots=True)
class _Resealing:
    """Seals one thread anew, as long as nobody else writes to it."""

    saver: SealMethods
    thread_id: str
    source: ThreadEnvelope
    target: ThreadEnvelope
    stamp: bytes
    """Stamp of the last write to the thread: after a write of another process nothing is written.
    Each write changes it, since pruning may meet a new part before anything refers to it."""
    fence: Fence
    used: set[bytes] = field(default_factory=set)
    """Parts, by their old digests, to which the values refer that are written next."""

    async def carry_out(self) -> int:
        """Write the values that change, and return their number."""
        store = self.saver._store
        thread = store.thread(self.thread_id)
        listed = frozenset(await store.members(thread.index))
        names = sorted(await field_names(store, self.thread_id))
        parts = [name for name in names if name[:1] == keys.PART]
        others = [name for name in names if name[:1] in keys.WRAPPED - {keys.PART}]
        renamed: dict[bytes, bytes] = {}
        num_changed = 0
        for some, seal in ((parts, self._part), (others, self._other)):
            for chunk in chunks(some, SCAN):
                blobs = await store.call("HMGET", thread.data, *chunk)
                # zstd and AES let other threads run, so that the lease is renewed meanwhile.
                fields = dict(zip(chunk, blobs, strict=True))
                changed = await asyncio.to_thread(_sealed, fields, seal, renamed)
                commands: list[Command] = []
                for former, name, blob in changed:
                    commands.append(("HSET", thread.data, name, blob))
                    if former != name and former in listed:
                        commands.append(("ZADD", thread.index, b"0", name))
                # A process that prunes meanwhile takes a new part for an unused one.
                needed = {
                    keys.part(renamed[each]) for each in self.used if keys.part(each) in listed
                }
                needed |= {former for former, *_ in changed if former in listed}
                await self._write(commands, sorted(needed))
                self.used.clear()
                num_changed += len(changed)
        gone = [keys.part(old) for old, new in renamed.items() if old != new]
        for chunk in chunks(gone):
            await self._write([("ZREM", thread.index, *chunk), ("HDEL", thread.data, *chunk)])
        return num_changed

    def _part(
        self, name: bytes, blob: bytes, renamed: dict[bytes, bytes]
    ) -> tuple[bytes, bytes] | None:
        body = self.source.unwrap(blob, name)
        digest = renamed[name[1:]] = self.target.envelope.digest(body)
        if digest == name[1:] and self._is_current(blob):
            return None
        return keys.part(digest), self.target.wrap(body, keys.part(digest))

    def _other(
        self, name: bytes, blob: bytes, renamed: Mapping[bytes, bytes]
    ) -> tuple[bytes, bytes] | None:
        """Seal a record, a cell or writes, and name their parts as these are called now."""
        source, target = self.source, self.target
        if name[:1] == keys.RECORD:
            body = source.unwrap(blob, name)
            return None if self._is_current(blob) else (name, target.wrap(body, name))
        if name[:1] == keys.CELL:
            cell = unpack_cell(blob, source, name)
            if self._stays(blob, references(cell), renamed):
                return None
            return name, target.pack(_renamed(cell, renamed), name)
        writes = Writes.unpack(blob, source, name)
        used = (digest for *_, cell in writes.cells for digest in references(cell))
        if self._stays(blob, used, renamed):
            return None
        cells = [[index, channel, _renamed(cell, renamed)] for index, channel, cell in writes.cells]
        return name, replace(writes, cells=cells).pack(target, name)

    def _stays(self, blob: bytes, used: Iterable[bytes], renamed: Mapping[bytes, bytes]) -> bool:
        """Whether a value need not be written; if it must be, note the parts that it needs."""
        known = [each for each in used if each in renamed]
        if self._is_current(blob) and all(renamed[each] == each for each in known):
            return True
        self.used.update(known)
        return False

    def _is_current(self, blob: bytes) -> bool:
        envelope = self.target.envelope
        return envelope.seal_of(blob[:HEAD_BYTES]) == envelope.seal_name

    async def _write(self, commands: Sequence[Command], needed: Sequence[bytes] = ()) -> None:
        """Write, unless the thread was written to, or lost one of the needed members."""
        store = self.saver._store
        data_key = store.thread(self.thread_id).data
        for together in _by_size(commands):
            # The time of the last write stays: a run is not younger for it.
            stamp = b"%b %b" % (self.stamp.split(b" ")[0], os.urandom(4).hex().encode())
            changes = [("HSET", data_key, keys.UPDATED, stamp), *together]
            try:
                done = await store.write(
                    self.thread_id, changes, self.fence, needed, stamp=self.stamp
                )
            except exceptions.ResponseError as error:
                if "CHANGED" not in str(error):
                    raise
                done = False
            if not done:
                raise _OvertakenError
            self.stamp = stamp


def _sealed(
    fields: Mapping[bytes, bytes | None], seal: Seal, renamed: dict[bytes, bytes]
) -> list[tuple[bytes, bytes, bytes]]:
    """Return what changes: the field, and the name and blob that it gets."""
    return [
        (field, *new)
        for field, blob in fields.items()
        if blob is not None and (new := seal(field, blob, renamed)) is not None
    ]


def _renamed(cell: Cell, names: Mapping[bytes, bytes]) -> Cell:
    if cell[0] == REFERENCE:
        return [REFERENCE, names.get(cell[1], cell[1])]
    if cell[0] == ITEMS:
        return [ITEMS, [_renamed(item, names) for item in cell[1]]]
    return cell


def _by_size(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """Group commands, in order, until they have `AT_ONCE` bytes."""
    together: list[Command] = []
    size = 0
    for command in commands:
        together.append(command)
        size += sum(len(each) for each in command if isinstance(each, bytes))
        if size > AT_ONCE:
            yield together
            together, size = [], 0
    if together:
        yield together

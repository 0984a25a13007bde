"""Names in Redis: the keys of a thread, the fields of its hash, the members of its index.

The package's docstring lists them. A thread's keys carry its id between braces, so Redis Cluster
keeps them in one slot and one script covers them. The id is percent-encoded: a UUID stays readable
and any other character is safe. NUL joins the names in a field. NUL and SOH within a name are
escaped, so a prefix of names is a prefix of bytes and a range scan is exact.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote

RECORD = b"c"
CELL = b"v"
WRITE = b"w"
PART = b"p"
RUN = b"r"
WRAPPED: Final = frozenset((RECORD, CELL, WRITE, PART))
"""Kinds of the fields whose values are blobs."""
HEAD = b"m"
"""Format version and time of creation."""
UPDATED = b"u"
"""Time of the last write."""


@dataclass(frozen=True, slots=True)
class ThreadKeys:
    """The keys of one thread, all in one hash slot."""

    data: str
    index: str
    lease: str
    fence: str


@lru_cache(maxsize=1024)
def thread_keys(prefix: str, thread_id: str) -> ThreadKeys:
    """Return the keys of a thread under a prefix without braces."""
    # The leading dot keeps the tag non-empty: Redis hashes the whole key when it is empty.
    tag = quote(thread_id, safe="", errors="surrogatepass")
    stem = f"{prefix}:{{.{tag}}}"
    return ThreadKeys(f"{stem}:data", f"{stem}:index", f"{stem}:lease", f"{stem}:fence")


@dataclass(frozen=True, slots=True)
class RegistryKeys:
    """The keys of the registry of threads, all in one hash slot."""

    threads: str
    """Thread ids by ms of their last checkpoint."""
    expiries: str
    """Thread ids that expire, by the ms of their expiry."""
    walked: str
    """Exists for a time after a walk through the registry."""


@lru_cache(maxsize=64)
def registry_keys(prefix: str) -> RegistryKeys:
    """Return the keys of the registry under a prefix without braces."""
    threads = f"{prefix}:threads"
    # Between braces stands the name of the first key, so all are in its slot.
    return RegistryKeys(threads, *(f"{prefix}:{{{threads}}}:{n}" for n in ("expiries", "walked")))


def encode(text: str) -> bytes:
    """Turn a name into bytes. Python's JSON lets lone surrogates through, so they survive."""
    return text.encode("utf-8", "surrogatepass")


def decode(raw: bytes) -> str:
    """Undo `encode`. Other bytes become a name that belongs to nothing."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace")


def join(kind: bytes, *names: str) -> bytes:
    """Make the name of a field or member."""
    return b"\0".join((kind, *map(_escape, names)))


def split(name: bytes) -> list[str]:
    """Return the names that `join` joined, without the kind."""
    return [_unescape(part) for part in name.split(b"\0")[1:]]


def name_at(field: bytes, position: int) -> str:
    """Return one of the names that `join` joined."""
    return _unescape(field.split(b"\0", position + 2)[position + 1])


def below(kind: bytes, *names: str) -> tuple[bytes, bytes]:
    """Return the bounds, for `ZRANGEBYLEX`, of the members that begin with these names."""
    stem = join(kind, *names)
    return b"[" + stem + b"\0", b"(" + stem + b"\1"


def part(digest: bytes) -> bytes:
    """Make the name of a part."""
    return PART + digest


_ESCAPED: Final = re.compile(b"\1([\1\2])")


def _escape(text: str) -> bytes:
    return encode(text).replace(b"\1", b"\1\1").replace(b"\0", b"\1\2")


def _unescape(raw: bytes) -> str:
    if b"\1" in raw:
        raw = _ESCAPED.sub(lambda found: b"\1" if found[1] == b"\1" else b"\0", raw)
    return decode(raw)

"""Remembers parts: which ones a server holds, so that a draft is sent once, and how they are named.

Only what a server acknowledged counts. A write that relies on it is applied only if each part is
still there, since a crash without an append-only file, a prune or a deletion elsewhere may have
removed it; if one is gone, all are sent again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

CAPACITY: Final = 32_768
"""Digests remembered, about 6 MB; the least recently used are forgotten, and sent again."""

REMEMBERED_BYTES: Final = 8_000_000
"""Of bodies whose digest is remembered: 250 drafts of 32 kB."""
SAMPLE: Final = 64


class Digests:
    """The digests of the latest bodies, since a draft comes twice: as a write, then in its channel.

    A body is found by its length and its ends and then compared whole, which takes a tenth of the
    time of a SHA-256.
    """

    def __init__(self, digest: Callable[[bytes], bytes], capacity: int = REMEMBERED_BYTES) -> None:
        self._digest = digest
        self._capacity = capacity
        self._num_bytes = 0
        self._known: OrderedDict[tuple[int, bytes, bytes], tuple[bytes, bytes]] = OrderedDict()

    def __call__(self, body: bytes) -> bytes:
        """Name a body by its content."""
        ends = (len(body), body[:SAMPLE], body[-SAMPLE:])
        known = self._known.pop(ends, None)
        if known is not None and known[0] == body:
            self._known[ends] = known
            return known[1]
        digest = self._digest(body)
        self._known[ends] = (body, digest)
        self._num_bytes += len(body) - (0 if known is None else len(known[0]))
        while self._num_bytes > self._capacity:
            _, (oldest, _) = self._known.popitem(last=False)
            self._num_bytes -= len(oldest)
        return digest


class PartLedger:
    """Parts that the server acknowledged, by the key of their thread."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._stored: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def has(self, data_key: str, digest: bytes) -> bool:
        """Say whether the server acknowledged a part, and remember it for longer if so."""
        if (data_key, digest) not in self._stored:
            return False
        self._stored.move_to_end((data_key, digest))
        return True

    def add(self, data_key: str, digests: Iterable[bytes]) -> None:
        """Note parts that the server acknowledged."""
        self._stored.update(((data_key, digest), None) for digest in digests)
        while len(self._stored) > self._capacity:
            self._stored.popitem(last=False)

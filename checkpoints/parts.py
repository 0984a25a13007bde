"""Remembers which parts a server holds, so that the bytes of a draft are sent once.

Only what a server acknowledged counts. A write that relies on it also asks, in the same
transaction, whether each part is still there, since a crash without an append-only file, a prune
or a deletion elsewhere may have removed it; whatever is gone is sent again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

CAPACITY: Final = 32_768
"""Digests remembered, about 6 MB; the least recently used are forgotten, and sent again."""


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

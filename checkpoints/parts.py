"""Remembers which parts a server holds, so that the bytes of a draft are sent once.

Only what a server acknowledged counts. A write that relies on it also asks, in the same
transaction, whether each part is still there, since a crash without an append-only file, a prune
or a deletion elsewhere may have removed it; whatever is gone is sent again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CAPACITY = 32_768
"""Digests remembered, about 6 MB; the least recently used are forgotten, and sent again."""


class PartLedger:
    """Parts acknowledged and parts in flight, for one connection pool in one event loop."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._stored: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._in_flight: dict[tuple[str, bytes], asyncio.Future[None]] = {}

    async def settle(self, data_key: str, digests: Iterable[bytes]) -> None:
        """Wait until no other write is sending one of these parts."""
        # A checkpoint follows its last pending write so closely that the write is often not
        # acknowledged yet: waiting for it is cheaper than sending 16 drafts a second time.
        for digest in digests:
            while (sending := self._in_flight.get((data_key, digest))) is not None:
                await asyncio.shield(sending)

    def has(self, data_key: str, digest: bytes) -> bool:
        """Say whether the server acknowledged a part, and remember it for longer if so."""
        if (data_key, digest) not in self._stored:
            return False
        self._stored.move_to_end((data_key, digest))
        return True

    @contextmanager
    def sending(self, data_key: str, digests: Iterable[bytes]) -> Iterator[None]:
        """Mark parts as in flight; when the block ends without an error they are stored."""
        names = [(data_key, digest) for digest in digests]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight.update(dict.fromkeys(names, done))
        try:
            yield
            self._stored.update(dict.fromkeys(names))
        finally:
            for name in names:
                if self._in_flight.get(name) is done:
                    del self._in_flight[name]
            while len(self._stored) > self._capacity:
                self._stored.popitem(last=False)
            done.set_result(None)

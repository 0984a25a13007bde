"""Seeds for requests that come again.

Evaluation harnesses send one constant seed with every request, also where they ask for several
samples of one problem: taken as it is, all of them would be one sample. So the first request has
the seed that it names, and each repeat one derived from it and from its number, which keeps a
whole evaluation repeatable from the start of the server.
"""

import hashlib
from collections import OrderedDict

from pdr_graph.llm.asker import derived_seed

REMEMBERED = 65_536
"""Requests whose repeats are counted; the least recent is forgotten first."""


class Repeats:
    """Counts how often each request has come."""

    def __init__(self, *, repeatable: bool = False) -> None:
        self._repeatable = repeatable
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def seed(self, seed: int, request: str) -> int:
        """Return the seed of a run.

        Args:
            seed: The one that the client names.
            request: Whatever else tells requests apart.
        """
        number = 0 if self._repeatable else self._count(f"{seed} {request}")
        if number == 0:
            return seed if 0 <= seed < 2**31 else derived_seed(seed)
        return derived_seed(seed, "repeat", number)

    def _count(self, request: str) -> int:
        key = hashlib.sha256(request.encode("utf-8", "surrogatepass")).digest()
        number = self._counts.pop(key, 0)
        self._counts[key] = number + 1
        if len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)
        return number

"""First-round drafts that several arms share, on request: asked for once, charged to each arm.

Arms that draw their samples' seeds alike ask for the same drafts, word for word. Within one process
each is asked for once; another process, or a run that is gone on with, asks again, and gets the
same drafts from a server that repeats itself by seed.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdr_graph.errors import ConfigError
from pdr_graph.eval.arms import Arm
from pdr_graph.llm.client import ModelClient, OnChunk, Reply, Sampling
from pdr_graph.llm.meter import Spent

_MOST_KEPT = 8192
"""Replies; arms work on one problem at about the same time."""
_ALIKE = ("max_tokens", "temperature", "top_p", "thinking_token_budget", "answer")
"""Settings that the first drafts of two arms must have in common to be the same calls."""


def sharing_arms(arms: Sequence[Arm]) -> frozenset[str]:
    """Name the arms whose first drafts are also another's.

    Raises:
        ConfigError: there are no two such arms.
    """
    kinds = {
        arm.name: tuple(getattr(arm.config, name) for name in _ALIKE)
        for arm in arms
        if arm.config.widths
    }
    counts = Counter(kinds.values())
    sharing = frozenset(name for name, kind in kinds.items() if counts[kind] > 1)
    if not sharing:
        raise ConfigError(
            "--share-first-round: no two arms with drafts are alike in "
            f"{', '.join(_ALIKE)}; give them all the same, or leave it out"
        )
    return sharing


@dataclass(slots=True)
class _Asked:
    """One call, and its reply once it is there."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reply: Reply | None = None
    cost: Spent = field(default_factory=Spent)


class SharingClient(ModelClient):
    """Makes a call once that several arms make, and charges it to each as if it had made it."""

    def __init__(self, client: ModelClient) -> None:
        super().__init__(
            client.model, counter=client.counter, retry=client.retry, window=client.window
        )
        self._client = client
        self._asked: OrderedDict[tuple[str, Sampling], _Asked] = OrderedDict()

    async def ask(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None = None
    ) -> Reply:
        """Make a call, or wait for the one that was made before.

        Raises:
            CallError: it failed; whoever asks next tries again.
        """
        asked = self._asked.setdefault((prompt, sampling), _Asked())
        self._asked.move_to_end((prompt, sampling))
        while len(self._asked) > _MOST_KEPT:
            self._asked.popitem(last=False)
        async with asked.lock:
            if asked.reply is None:
                cost = Spent()
                try:
                    asked.reply = await self._client.ask(prompt, sampling, cost, on_chunk)
                finally:
                    _charge(cost, spent)  # whatever came of it
                asked.cost = cost
                return asked.reply
        _charge(asked.cost, spent)
        return asked.reply


def _charge(cost: Spent, spent: Spent) -> None:
    spent.requests += cost.requests
    spent.usage.extend(cost.usage)
    spent.failed += cost.failed
    spent.aborted += cost.aborted
    spent.seconds += cost.seconds
    spent.nominal += cost.nominal

"""Where samples end: the classes of `pdr-graph compare`."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from pdr_graph.answers import answer_kind
from pdr_graph.eval.decomposition import Outcome, outcome_of
from pdr_graph.eval.records import SampleRecord

_NUMBERS = answer_kind("math")


def outcomes(samples: Sequence[SampleRecord]) -> Counter[Outcome]:
    """Return how many samples fall in each class."""

    async def classes() -> Counter[Outcome]:
        return Counter([await outcome_of(sample, _NUMBERS) for sample in samples])

    return asyncio.run(classes())

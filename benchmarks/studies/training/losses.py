"""Where the samples of a model end, over its seeds: the classes of `pdr-graph compare`."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pdr_graph.eval.attempts import arms_of
from pdr_graph.eval.decomposition import Outcome, decompose
from pdr_graph.eval.records import read_run


def outcomes(evaluations: Iterable[Path], strategy: str) -> Counter[Outcome]:
    """Return how many samples of one strategy fall in each class, over some evaluations."""
    counts: Counter[Outcome] = Counter()
    for folder in evaluations:
        for arm in arms_of([read_run(folder)]):
            if arm.name == strategy:
                counts.update(asyncio.run(decompose(arm)).counts)
    return counts

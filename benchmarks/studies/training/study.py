"""All evaluations of a study that are there, by arm and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from benchmarks.studies.training.arms import ABLATIONS, MAIN, WARM
from benchmarks.studies.training.contrasts import Side
from benchmarks.studies.training.intervals import Estimated, differences, estimated
from benchmarks.studies.training.measured import Measured, Values, measured
from benchmarks.studies.training.pipeline import Pipeline
from pdr_graph.eval.records import SampleRecord

NAMES = {
    "long_cot": "long CoT",
    "sr": "SR, 4 calls",
    "pdr_1": "PDR, 1 round",
    "pdr_2": "PDR, 2 rounds",
    "majority": "majority@4",
}
PASS = "pass@4"


@dataclass(frozen=True, slots=True)
class Study:
    """All evaluations that are there, by arm and seed."""

    models: Mapping[str, Mapping[int, Measured]]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds that any arm was measured with."""
        return sorted({seed for by_seed in self.models.values() for seed in by_seed})

    def values(self, arm: str, strategy: str) -> dict[int, Values]:
        """Return accuracy on each problem, by seed."""
        return {
            seed: each.any_draft_P("majority") if strategy == PASS else each.accuracy_P(strategy)
            for seed, each in self.models.get(arm, {}).items()
        }

    def estimate(self, arm: str, strategy: str) -> Estimated | None:
        """Return the accuracy of an arm; None where it was not evaluated."""
        values = self.values(arm, strategy)
        return estimated(np.stack(list(values.values()))) if values else None

    def of(self, seeds: Sequence[int]) -> Self:
        """Return the evaluations of some seeds alone."""
        kept = {
            name: {seed: each for seed, each in by_seed.items() if seed in seeds}
            for name, by_seed in self.models.items()
        }
        return type(self)({name: by_seed for name, by_seed in kept.items() if by_seed})

    def samples(self, arm: str, strategy: str) -> list[SampleRecord]:
        """Return the samples of all seeds."""
        return [each for one in self.models[arm].values() for each in one.by_strategy[strategy]]

    def difference(self, reference: Side, other: Side) -> Estimated | None:
        """Return accuracy of the other minus the reference's; None where a side is missing."""
        first, second = self.values(*reference), self.values(*other)
        return estimated(differences(first, second)) if first.keys() & second.keys() else None


def study_of(pipeline: Pipeline) -> Study:
    """Read what is there."""
    models: dict[str, dict[int, Measured]] = {}
    for name in (WARM, *(arm.name for arm in (*MAIN, *ABLATIONS))):
        for seed in pipeline.scale.all_seeds:
            found = measured(pipeline.evaluation(seed, name))
            if found is not None and (pipeline.evaluation(seed, name) / "done").exists():
                models.setdefault(name, {})[seed] = found
    return Study(models)

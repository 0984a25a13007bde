"""What one rank trains on in a step, and what all ranks do: batches, and counts of each update."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import PickleError
from typing import Self

import torch
from accelerate import Accelerator

from pdr_graph.errors import ConfigError
from pdr_graph.train.batch import Batch, Sample, padded
from pdr_graph.train.objective import TokenCounts


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step, ready to be trained on."""

    step: int
    batches: tuple[Batch, ...]
    """This rank's micro-batches, in the order of their turn."""
    counts: tuple[TokenCounts, ...]
    """Of each update, over its micro-batches and all ranks."""

    @classmethod
    def of(
        cls,
        step: int,
        dealt: Sequence[Sequence[Sample]],
        *,
        num_updates: int,
        pad_id: int,
        accelerator: Accelerator,
    ) -> Self:
        """Pad the micro-batches of a step, and count its tokens together with the other ranks."""
        batches = tuple(padded(samples, pad_id=pad_id) for samples in dealt)
        each = len(batches) // num_updates
        here = torch.zeros(num_updates, 2, dtype=torch.long, device=accelerator.device)
        for index, batch in enumerate(batches):
            here[index // each] += torch.tensor(
                [batch.counts.all, batch.counts.correct], device=here.device
            )
        totals = accelerator.reduce(here, reduction="sum").tolist()
        return cls(step, batches, tuple(TokenCounts(*counts) for counts in totals))

    def save(self, file: Path) -> None:
        """Write the rows, for a run that is resumed between two updates of a step."""
        torch.save(
            {
                "step": self.step,
                "batches": [batch.tensors() for batch in self.batches],
                "counts": [asdict(counts) for counts in self.counts],
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read rows that were saved.

        Raises:
            ConfigError: they are not there, or cannot be read.
        """
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        # torch finds out in many ways that a file is not one of its own.
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, PickleError):
            raise ConfigError(
                f"{str(file)!r} cannot be read: the checkpoint lacks the rows that are left of its "
                "step; resume from another one"
            ) from None
        batches = tuple(Batch(**tensors) for tensors in saved["batches"])
        return cls(saved["step"], batches, tuple(TokenCounts(**each) for each in saved["counts"]))

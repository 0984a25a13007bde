"""Figures of an update: summed over its micro-batches on each rank, then over the ranks."""

from time import perf_counter

import torch
from accelerate import Accelerator

from pdr_graph.train.batch import Batch
from pdr_graph.train.figures import Figures
from pdr_graph.train.objective import Objective
from pdr_graph.train.scoring import Scores

SUMS = ("tokens", "clipped", "entropy", "policy_loss", "likelihood_loss")


class UpdateFigures:
    """Follows one update after another."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums = torch.zeros(len(SUMS), device=accelerator.device)
        self._began = 0.0

    def begin(self) -> None:
        """Start an update."""
        self._sums.zero_()
        self._began = perf_counter()

    def add(self, batch: Batch, scores: Scores, part: Objective) -> None:
        """Add a micro-batch."""
        tokens, entropy = batch.mask_B_T.sum(), scores.entropy_B_T[batch.mask_B_T].sum()
        sums = (tokens, part.clipped_tokens, entropy, part.policy_loss, part.likelihood_loss)
        self._sums += torch.stack([each.detach().float() for each in sums])

    def finish(self) -> Figures:
        """Return the figures of the update; called on every rank."""
        seconds = perf_counter() - self._began
        totals = self._accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        sums = dict(zip(SUMS, totals, strict=True))
        tokens = sums["tokens"]
        return {
            "tokens/trained": tokens,
            "policy/clipped": sums["clipped"] / max(1.0, tokens),
            "policy/entropy": sums["entropy"] / max(1.0, tokens),
            "loss/policy": sums["policy_loss"],
            "loss/likelihood": sums["likelihood_loss"],
            "seconds/update": seconds,
            "tokens_per_second/trained": tokens / seconds,
        }

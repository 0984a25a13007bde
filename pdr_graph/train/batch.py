"""The rows of a step as padded tensors, cut into updates and micro-batches.

Every problem has exactly K rows: a call that failed, or that is not trained on, leaves a filler
that carries no gradient, so that all ranks have the same number of forward passes. Padding stands
on the right: a token's position is then the same as when it was drawn, whatever the model's
position embedding is.

What one rank trains on in a step, and what all ranks do: batches, and counts of each update.

Log-probabilities of drawn tokens under the model that is trained.

The head is TRL's (`add_fused_lm_head`, which its trainer puts on the model): in chunks, so that the
logits of a whole batch are never there at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from pickle import PickleError
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pdr_graph.errors import ConfigError
from pdr_graph.train.advantage import TrainRow
from pdr_graph.train.objective import TokenCounts, count_tokens

try:
    import torch
    from torch import Tensor
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


@dataclass(frozen=True, slots=True)
class TokenSample:
    """One row with its advantage, or a filler."""

    row: TrainRow | None
    """None is a filler."""
    advantage: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Return the length of prompt and completion in tokens."""
        if self.row is None:
            return 1
        return len(self.row.call.prompt_ids) + len(self.row.call.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a step; column t of a `[B, T]` is about the token after `input_ids[:, t]`."""

    input_ids: Tensor
    """`[B, T + 1]`: the prompt, what was drawn, padding."""
    attention_mask: Tensor
    """`[B, T + 1]`, 1 where there is a token; a filler has one."""
    mask_B_T: Tensor
    """`[B, T]`, whether the token was drawn by the policy, and is trained."""
    behaviour_B_T: Tensor
    """`[B, T]`, its log-probability when it was drawn; 0 elsewhere."""
    advantages_B: Tensor
    correct_B: Tensor
    """`[B]`, whether the row's likelihood is raised."""

    @property
    def counts(self) -> TokenCounts:
        """Return the trained tokens of these rows."""
        return count_tokens(self.mask_B_T, self.correct_B)

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        return replace(self, **{name: each.to(device) for name, each in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, from which `Batch(**tensors)` is made again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def filled(rows_P: Sequence[Sequence[TrainRow]], num_rows: int) -> list[TrainRow | None]:
    """Return exactly K rows of each problem, one problem after another; None is a filler.

    Raises:
        ConfigError: a problem has more than K.
    """
    filled_rows: list[TrainRow | None] = []
    for rows in rows_P:
        if len(rows) > num_rows:
            raise ConfigError(
                f"problem {rows[0].problem_id!r} has {len(rows)} rows, and a step has room for "
                f"{num_rows} of each; collect by a plan of {num_rows} rows"
            )
        filled_rows += [*rows, *[None] * (num_rows - len(rows))]
    return filled_rows


def dealt(
    samples: Sequence[TokenSample], order: Sequence[int], num_updates: int, rows_at_once: int
) -> list[list[TokenSample]]:
    """Deal samples to updates in the given order, and cut each update into micro-batches.

    Within an update rows of like length go together, which saves padding and changes nothing:
    the loss is the same however an update is cut up.

    Raises:
        ConfigError: they cannot be cut up evenly.
    """
    each, rest = divmod(len(samples), num_updates * rows_at_once)
    if rest or not each:
        raise ConfigError(
            f"{len(samples)} rows of a process cannot be cut into {num_updates} updates of "
            f"micro-batches of {rows_at_once}; use a divisor of {len(samples) // num_updates}"
        )
    per_update = each * rows_at_once
    batches = []
    for start in range(0, len(samples), per_update):
        chosen = [samples[index] for index in order[start : start + per_update]]
        chosen.sort(key=lambda sample: sample.num_tokens, reverse=True)
        batches += [chosen[i : i + rows_at_once] for i in range(0, per_update, rows_at_once)]
    return batches


def padded(samples: Sequence[TokenSample], *, pad_id: int) -> Batch:
    """Return the tensors of some samples, padded to the longest."""
    shape = len(samples), max(2, *(sample.num_tokens for sample in samples))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    drawn = torch.zeros(shape, dtype=torch.bool)
    behaviour = torch.zeros(shape)
    for index, sample in enumerate(samples):
        attention_mask[index, : sample.num_tokens] = 1
        if sample.row is None:
            continue
        call = sample.row.call
        start = len(call.prompt_ids)
        input_ids[index, : sample.num_tokens] = torch.tensor([*call.prompt_ids, *call.token_ids])
        drawn[index, start : sample.num_tokens] = True
        behaviour[index, start : sample.num_tokens] = torch.tensor(call.logprobs)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mask_B_T=drawn[:, 1:],
        behaviour_B_T=behaviour[:, 1:],
        advantages_B=torch.tensor([sample.advantage for sample in samples]),
        correct_B=torch.tensor([s.row is not None and s.row.correct for s in samples]),
    )


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
        dealt: Sequence[Sequence[TokenSample]],
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


IGNORED = -100
"""Label of a token that is not scored."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the tokens of a batch; what stands where its mask is false means nothing."""

    logprobs_B_T: Tensor
    """`[B, T]`, with gradient."""
    entropy_B_T: Tensor
    """`[B, T]` in nats, of the distribution that the token was drawn from."""


def score(
    model: nn.Module, batch: Batch, autocast: AbstractContextManager[object] | None = None
) -> Scores:
    """Return log-probability and entropy of every drawn token, at the head's temperature."""
    labels = batch.input_ids.clone()
    labels[:, 0] = IGNORED
    labels[:, 1:][~batch.mask_B_T] = IGNORED
    with autocast or nullcontext():
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=labels,
            fused_lm_head=True,
        )
    return Scores(output.log_probs, output.entropy.detach())


def score_quietly(
    model: nn.Module, batch: Batch, autocast: AbstractContextManager[object] | None = None
) -> Scores:
    """Return the same without gradient, as the model is when it is used."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return score(model, batch, autocast)
    finally:
        model.train(training)

"""From rows to the loss: a padded batch, log-probabilities under the model, and the objective.

    J = (1/N) Σ sg(min(r, ε_max)) A log π + α (1/N_c) Σ_correct log π

`r` is the ratio of the policy to the one that drew the token. It is cut from above and carries no
gradient (sg), so that clipping drops no token. N counts the trained tokens of the whole update, N_c
those of its correct rollouts: over all micro-batches and ranks, so that the split changes nothing.
Sources: paper section 4 (α = 0.1); CISPO, arXiv 2506.13585.

Padding is on the right, so that a token keeps the position at which it was drawn. The head is TRL's
`add_fused_lm_head`: it works in tiles, so that the logits of a batch never exist at once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PickleError

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.settings import ObjectiveSettings

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

IGNORED = -100
"""Label of a token that is not scored."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a step; column t of a `[B, T]` is about the token after `input_ids[:, t]`."""

    input_ids: Tensor
    """`[B, T + 1]`: prompt, drawn tokens, padding."""
    attention_mask: Tensor
    """`[B, T + 1]`: 1 where there is a token; a filler has one."""
    mask_B_T: Tensor
    """`[B, T]`: whether the policy drew the token, so that it is trained on."""
    behaviour_B_T: Tensor
    """`[B, T]`: log-probability of the token when it was drawn; 0 elsewhere."""
    advantages_B: Tensor
    correct_B: Tensor
    """`[B]`: whether the row's likelihood is raised."""
    counts: Tensor
    """`[2]`: N and N_c of the update that the batch is part of."""

    def own_counts(self) -> Tensor:
        """Return N and N_c of these rows alone."""
        return torch.stack([self.mask_B_T.sum(), self.mask_B_T[self.correct_B].sum()])

    def to(self, device: torch.device) -> "Batch":
        """Return the same on a device."""
        return Batch(**{name: each.to(device) for name, each in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name; `Batch(**tensors)` is the same batch."""
        return {name: getattr(self, name) for name in self.__slots__}


def padded(rows: Sequence[TrainRow | None], *, pad_id: int) -> Batch:
    """Return the tensors of some rows, padded to the longest; the counts are those of these rows.

    Args:
        rows: None is a filler.
        pad_id: Token that pads.
    """
    lengths = [row.num_tokens if row else 1 for row in rows]
    shape = len(rows), max(2, *lengths)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    drawn = torch.zeros(shape, dtype=torch.bool)
    behaviour = torch.zeros(shape)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        attention_mask[index, :length] = 1
        if row is None:
            continue
        start = len(row.call.prompt_ids)
        input_ids[index, :length] = torch.tensor([*row.call.prompt_ids, *row.call.token_ids])
        drawn[index, start:length] = True
        behaviour[index, start:length] = torch.tensor(row.call.logprobs)
    batch = Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mask_B_T=drawn[:, 1:],
        behaviour_B_T=behaviour[:, 1:],
        advantages_B=torch.tensor([row.advantage if row else 0.0 for row in rows]),
        correct_B=torch.tensor([row is not None and row.correct for row in rows]),
        counts=torch.zeros(2, dtype=torch.long),
    )
    return replace(batch, counts=batch.own_counts())


def save_batches(batches: Sequence[Batch], file: Path) -> None:
    """Write the batches of a step, for a run that is resumed between two of its updates."""
    torch.save([batch.tensors() for batch in batches], file)


def load_batches(file: Path) -> list[Batch]:
    """Read batches that were saved.

    Raises:
        ConfigError: they are missing, cannot be read, or an older pdr-graph wrote them.
    """
    try:
        return [Batch(**each) for each in torch.load(file, map_location="cpu", weights_only=True)]
    # torch has many errors for a file that is not its own.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, PickleError):
        raise ConfigError(
            f"{str(file)!r} does not hold the rows that are left of the checkpoint's step; delete "
            f"the folder {file.parent.name} to go on from the checkpoint before it"
        ) from None


def score(
    model: nn.Module, batch: Batch, autocast: AbstractContextManager[object] | None = None
) -> tuple[Tensor, Tensor]:
    """Return log-probability and entropy of every drawn token, at the head's temperature.

    Both are `[B, T]`; values where the batch's mask is false mean nothing. Only the first carries
    a gradient.
    """
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
    return output.log_probs, output.entropy.detach()


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of some rows; parts of an update are added, never averaged."""

    loss: Tensor
    """Scalar with gradient: this part of −J."""
    policy_loss: Tensor
    """Scalar: the part by CISPO."""
    likelihood_loss: Tensor
    """Scalar: the part by likelihood, α included."""
    clipped_tokens: Tensor
    """Scalar: tokens whose ratio was cut."""


def objective(logprobs_B_T: Tensor, batch: Batch, settings: ObjectiveSettings) -> Objective:
    """Return these rows' part of the update's loss.

    Args:
        logprobs_B_T: `[B, T]` of the drawn tokens under the model, with gradient. Values where the
            batch's mask is false may be anything, NaN included.
        batch: The rows, with the counts of the whole update.
        settings: α and ε_max.

    Raises:
        ValueError: the shapes differ, or the counts are below those of these rows.
    """
    mask_B_T = batch.mask_B_T
    if logprobs_B_T.shape != mask_B_T.shape:
        raise ValueError(
            f"{tuple(logprobs_B_T.shape)} log-probabilities of {mask_B_T.shape} tokens"
        )
    own = batch.own_counts()
    if (batch.counts < own).any():
        raise ValueError(
            f"the update has {batch.counts.tolist()} tokens, and these rows have {own.tolist()}"
        )
    all_tokens, correct_tokens = batch.counts.clamp(min=1)
    # Chosen before any arithmetic: NaN times 0 would still be NaN.
    logprobs_B_T = logprobs_B_T.masked_fill(~mask_B_T, 0.0)
    behaviour_B_T = batch.behaviour_B_T.masked_fill(~mask_B_T, 0.0)
    with torch.no_grad():
        ratio_B_T = torch.exp(logprobs_B_T - behaviour_B_T)
        weight_B_T = ratio_B_T.clamp(max=settings.epsilon_max) * batch.advantages_B[:, None]
        clipped = (ratio_B_T > settings.epsilon_max).sum()
    policy_loss = -(weight_B_T * logprobs_B_T).sum() / all_tokens
    likelihood = (logprobs_B_T * batch.correct_B[:, None]).sum() / correct_tokens
    likelihood_loss = -settings.alpha * likelihood
    return Objective(
        policy_loss + likelihood_loss, policy_loss.detach(), likelihood_loss.detach(), clipped
    )

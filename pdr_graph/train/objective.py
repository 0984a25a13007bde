"""The loss: CISPO on every token, and the likelihood of rollouts that earned their reward.

    J = (1/N) Σ sg(min(r, ε_max)) A log π + α (1/N_c) Σ_correct log π

`r` is the ratio of the policy to the one that drew the token, cut above and kept out of the
gradient (sg), so that no token is dropped by clipping. N counts the trained tokens of the whole
batch, N_c those of its correct rollouts: over micro-batches and ranks, so that how the batch is cut
up changes nothing. Sources: paper section 4 (α = 0.1); CISPO, arXiv 2506.13585.
"""

from dataclasses import dataclass

from pdr_graph.errors import ConfigError

try:
    import torch
    from torch import Tensor
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Trained tokens of a whole optimiser step, over all micro-batches and ranks."""

    all: int
    """N."""
    correct: int
    """N_c, those of correct rollouts; 0 leaves the likelihood out."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of some rows, and what happened in them; sums of all rows' are those of the step."""

    loss: Tensor
    """Scalar with gradient: this part of −J. Parts are added, never averaged."""
    policy_loss: Tensor
    """Scalar without gradient: the part by CISPO."""
    likelihood_loss: Tensor
    """Scalar without gradient: the part by likelihood, α included."""
    clipped_tokens: Tensor
    """Scalar: tokens whose ratio was cut."""


def count_tokens(mask_B_T: Tensor, correct_B: Tensor) -> TokenCounts:
    """Count the trained tokens of one micro-batch on one rank; the step's are the sum."""
    mask_B_T = mask_B_T.bool()
    return TokenCounts(int(mask_B_T.sum()), int(mask_B_T[correct_B.bool()].sum()))


def objective(
    logprobs_B_T: Tensor,
    behaviour_logprobs_B_T: Tensor,
    advantages_B: Tensor,
    correct_B: Tensor,
    mask_B_T: Tensor,
    counts: TokenCounts,
    *,
    epsilon_max: float = 5.0,
    alpha: float = 0.1,
) -> Objective:
    """Return this part of the step's loss.

    Args:
        logprobs_B_T: `[B, T]` of the drawn tokens under the policy; carries the gradient.
        behaviour_logprobs_B_T: `[B, T]` under the policy that drew them.
        advantages_B: `[B]`, one for each row.
        correct_B: `[B]`, whether the row's likelihood is raised.
        mask_B_T: `[B, T]`, true for drawn tokens and false for padding, whose values may be
            anything, NaN included.
        counts: Of the whole step, see `count_tokens`.
        epsilon_max: Bound on the ratio.
        alpha: Weight of the likelihood.

    Raises:
        ValueError: shapes differ, or the counts are below what these rows have.
    """
    mask_B_T, correct_B = mask_B_T.bool(), correct_B.bool()
    _check(logprobs_B_T, behaviour_logprobs_B_T, advantages_B, correct_B, mask_B_T, counts)
    # Chosen before any arithmetic: a NaN of the padding times 0 would still be NaN.
    logprobs_B_T = logprobs_B_T.masked_fill(~mask_B_T, 0.0)
    behaviour_B_T = behaviour_logprobs_B_T.masked_fill(~mask_B_T, 0.0)
    with torch.no_grad():
        ratio_B_T = torch.exp(logprobs_B_T - behaviour_B_T)
        weight_B_T = ratio_B_T.clamp(max=epsilon_max) * advantages_B[:, None]
        clipped = (ratio_B_T > epsilon_max).sum()
    policy_loss = -(weight_B_T * logprobs_B_T).sum() / max(1, counts.all)
    likelihood = (logprobs_B_T * correct_B[:, None]).sum() / max(1, counts.correct)
    likelihood_loss = -alpha * likelihood
    return Objective(
        policy_loss + likelihood_loss, policy_loss.detach(), likelihood_loss.detach(), clipped
    )


def _check(
    logprobs_B_T: Tensor,
    behaviour_B_T: Tensor,
    advantages_B: Tensor,
    correct_B: Tensor,
    mask_B_T: Tensor,
    counts: TokenCounts,
) -> None:
    matrices = {tuple(each.shape) for each in (logprobs_B_T, behaviour_B_T, mask_B_T)}
    vectors = {tuple(each.shape) for each in (advantages_B, correct_B)}
    if len(matrices) != 1 or vectors != {tuple(logprobs_B_T.shape[:1])}:
        raise ValueError(f"shapes do not fit: [B, T] {matrices}, [B] {vectors}")
    here = count_tokens(mask_B_T, correct_B)
    if counts.all < here.all or counts.correct < here.correct:
        raise ValueError(f"the step is said to have {counts}, these rows alone have {here}")

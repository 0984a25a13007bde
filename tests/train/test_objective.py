"""The loss and its gradient, beside a reference that knows no padding, batches or ranks."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.objective import TokenCounts, count_tokens, objective
from tests.train.model_rows import (
    Rollout,
    TinyPolicy,
    draw_rollouts,
    gradient_of,
    padded,
    reference_gradient,
    run_rank,
    step_gradient,
)
from tests.train.processes import exit_code, start

ROLLOUTS = draw_rollouts(12, seed=3)


def gap(one, other) -> float:
    """Return the largest difference of two gradients."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_the_gradient_is_that_of_the_formula_token_by_token():
    """Rows of 1 to 9 tokens, padded to one length, against one token after another in a loop."""
    reference = reference_gradient(TinyPolicy(), ROLLOUTS)
    assert gap(step_gradient(TinyPolicy(), ROLLOUTS, rows_at_once=12), reference) < 1e-6
    assert max(float(each.abs().max()) for each in reference) > 1e-3


@pytest.mark.parametrize("rows_at_once", [1, 5])
def test_accumulating_over_micro_batches_changes_nothing(rows_at_once):
    """Uneven ones, of different lengths: each token counts the same wherever it stands."""
    reference = reference_gradient(TinyPolicy(), ROLLOUTS)
    assert gap(step_gradient(TinyPolicy(), ROLLOUTS, rows_at_once), reference) < 1e-6


def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """Two processes over gloo, 3 rows on one and 9 on the other, counts and gradients summed."""
    ranks = [start(run_rank, rank, tmp_path) for rank in range(2)]
    assert [exit_code(rank) for rank in ranks] == [0, 0]
    reference = reference_gradient(TinyPolicy(), ROLLOUTS)
    for rank in range(2):
        found = torch.load(tmp_path / f"gradient-{rank}.pt")
        assert gap(found, reference) < 1e-6


def test_what_stands_in_the_padding_does_not_matter():
    """Not even NaN or infinity."""
    logprobs, behaviour, *rest, mask = padded(TinyPolicy(), ROLLOUTS[:4])
    counts = count_tokens(mask, rest[1])
    plain = objective(logprobs, behaviour, *rest, mask, counts).loss
    for odd in (math.nan, math.inf, -math.inf):
        dirty = [each.masked_fill(~mask, odd) for each in (logprobs, behaviour)]
        assert objective(*dirty, *rest, mask, counts).loss.item() == plain.item()


def test_a_clipped_token_keeps_its_gradient():
    """PPO would drop it; here its weight is the bound times its advantage."""
    logprob = torch.tensor([[-1.0]], requires_grad=True)
    found = objective(
        logprob,
        torch.tensor([[-9.0]]),  # the ratio is e to the 8th
        torch.tensor([2.0]),
        torch.tensor([False]),
        torch.tensor([[True]]),
        TokenCounts(1, 0),
        epsilon_max=5.0,
    )
    found.loss.backward()
    assert (float(logprob.grad), int(found.clipped_tokens)) == (-10.0, 1)


def test_the_likelihood_is_of_correct_rows_alone():
    """Without a difference in reward only they are learnt from, by alpha over their own tokens."""
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    correct, mask = torch.tensor([True, False]), torch.ones(2, 3)
    found = objective(
        logprobs, torch.full((2, 3), -1.0), torch.zeros(2), correct, mask, TokenCounts(6, 3),
        alpha=0.3,
    )  # fmt: skip
    found.loss.backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-0.1] * 3)
    assert logprobs.grad[1].tolist() == [0.0] * 3
    assert found.loss.item() == pytest.approx((found.policy_loss + found.likelihood_loss).item())


def test_a_batch_without_a_correct_row_or_a_token_is_no_division_by_zero():
    """It has a loss of 0 and a gradient of 0."""
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    found = objective(
        logprobs, logprobs.detach(), torch.ones(2), nothing[0], nothing, TokenCounts(0, 0)
    )
    found.loss.backward()
    assert (found.loss.item(), logprobs.grad.abs().sum().item()) == (0.0, 0.0)


def test_shapes_and_counts_that_cannot_be_are_refused():
    """A mean over the micro-batch in place of the step's is the usual mistake."""
    matrix, vector = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ValueError, match="these rows alone have"):
        objective(matrix, matrix, vector, vector, torch.ones(2, 3), TokenCounts(5, 0))
    with pytest.raises(ValueError, match="shapes do not fit"):
        objective(matrix, matrix[:, :2], vector, vector, matrix, TokenCounts(6, 0))
    with pytest.raises(ValueError, match="shapes do not fit"):
        objective(matrix, matrix, vector[:1], vector, matrix, TokenCounts(6, 0))


def test_the_reference_itself_follows_a_difference_quotient():
    """Where no token is off-policy, its gradient is that of a plain weighted log-likelihood."""
    policy = TinyPolicy()
    rollout = Rollout([1, 2], [3], [0.0], advantage=2.0, correct=False)
    with torch.no_grad():
        rollout.behaviour[0] = float(policy.logprobs(rollout)[0])
    gradient = gradient_of(policy, reference_gradient, [rollout])
    weight, step = policy.head.weight, 1e-5
    with torch.no_grad():
        weight[3, 0] += step
        above = -2.0 * float(policy.logprobs(rollout)[0])
        weight[3, 0] -= 2 * step
        below = -2.0 * float(policy.logprobs(rollout)[0])
    position = [name for name, _ in policy.named_parameters()].index("head.weight")
    assert float(gradient[position][3, 0]) == pytest.approx((above - below) / (2 * step), abs=1e-6)

"""Log-probabilities of drawn tokens under the model that is trained.

The head is TRL's (`add_fused_lm_head`, which its trainer puts on the model): in chunks, so that the
logits of a whole batch are never there at once.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdr_graph.train.batch import Batch

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

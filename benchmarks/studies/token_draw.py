"""Draws a token with one random number: where it falls in the cumulative sum of the weights."""

from collections.abc import Mapping

import torch

BLOCK = 512
"""Tokens of the vocabulary whose weights are summed first."""


def draw(logits: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """Draw a token for each row.

    Row by row, since one row fits a core's cache and all together do not. In blocks, since then
    only the sums of blocks are accumulated over the whole vocabulary.

    Args:
        logits: `[requests, vocabulary]`, temperature applied, -inf where top-k or top-p cut.
        generators: By row, of the requests that have a seed.

    Returns:
        `[requests]`, int64.
    """
    tokens = [_draw_one(row, generators.get(index)) for index, row in enumerate(logits)]
    return torch.tensor(tokens, dtype=torch.int64)


def _draw_one(row: torch.Tensor, generator: torch.Generator | None) -> int:
    """Find the token at which the cumulative sum passes a uniform share of the total."""
    weights = (row - row.max()).exp_()
    blocks = torch.nn.functional.pad(weights, (0, -len(weights) % BLOCK)).view(-1, BLOCK)
    sums = blocks.sum(dim=1).double().cumsum(0)
    share = torch.rand((), dtype=torch.float64, generator=generator) * sums[-1]
    block = int(torch.searchsorted(sums, share, right=True))
    left = torch.clamp(share - (sums[block - 1] if block else 0.0), min=0.0)
    inside = blocks[block].double().cumsum(0)
    index = min(int(torch.searchsorted(inside, left, right=True)), BLOCK - 1)
    # Both sums of a block may differ in their last bit. A token without weight is never drawn.
    while blocks[block, index] == 0.0:
        index -= 1
    return block * BLOCK + index

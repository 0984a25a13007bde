"""Draws one token for each row of a batch.

A row's token is where its own random number falls on its own distribution, so that the other rows
of the batch, and their number, do not move it (beyond the last bits of its logits).
"""

from pdr_graph.errors import ConfigError

try:
    import torch
    from torch import Tensor
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

_MOST_NUMBERS = 1 << 23
"""Numbers in one float64 matrix, 64 MiB: rows of a large vocabulary are drawn a few at a time."""


def sample(logits_B: Tensor, temperatures_B: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the drawn tokens `[B]` and their log-probabilities `[B]`.

    Args:
        logits_B: `[B, V]`, of whatever precision; all else is float32, sums are float64.
        temperatures_B: `[B]`; 0 takes the most likely token, its log-probability is that of
            temperature 1.
        uniforms_B: `[B]` in [0, 1), float64; a number falls on the first token at which the
            probabilities, added up in the order of the vocabulary, are above it.
    """
    most_rows = max(1, _MOST_NUMBERS // logits_B.shape[1])
    parts = [
        _sample(*rows)
        for rows in zip(
            logits_B.split(most_rows),
            temperatures_B.split(most_rows),
            uniforms_B.split(most_rows),
            strict=True,
        )
    ]
    if len(parts) == 1:
        return parts[0]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(logits_B: Tensor, temperatures_B: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    greedy_B = temperatures_B == 0
    divisors_B = temperatures_B.masked_fill(greedy_B, 1.0).float()
    table_B = (logits_B.float() / divisors_B[:, None]).log_softmax(-1)
    cumulative_B = table_B.exp().double().cumsum(-1)
    # Of the whole, which is 1 up to rounding, and below it: no number falls behind the last token
    # that has a probability.
    whole_B = cumulative_B[:, -1:]
    places_B = torch.minimum(
        uniforms_B[:, None] * whole_B, torch.nextafter(whole_B, torch.zeros_like(whole_B))
    )
    drawn_B = torch.searchsorted(cumulative_B, places_B, right=True)[:, 0]
    tokens_B = torch.where(greedy_B, logits_B.argmax(-1), drawn_B)
    return tokens_B, table_B.gather(-1, tokens_B[:, None])[:, 0]

"""What a draft shows of its own quality, besides its answer.

Log-probabilities are free where the server tells them. `logprob_tail` and `logprob_window` are
DeepConf's (arXiv 2508.15260), here of the tokens that were drawn. All are natural logarithms, at
most 0; a likelier draft has a higher one.
"""

import math
from collections.abc import Sequence

TAIL = 40
"""Tokens at the end of a draft that state its answer."""
WINDOW = 20
"""Tokens of the windows of which the least likely one counts."""

LOGPROBS = ("logprob", "logprob_tail", "logprob_window")
"""Signals that are made of log-probabilities."""


def logprob_signals(logprobs: Sequence[float]) -> dict[str, float]:
    """Return the mean log-probability of all tokens, of the last ones, and of the worst window.

    Args:
        logprobs: Of each drawn token, in order. Those that are no finite number are left out.

    Returns:
        Signals by the names of `LOGPROBS`; empty if no token is left.
    """
    known = [min(each, 0.0) for each in logprobs if math.isfinite(each)]
    if not known:
        return {}
    tail = known[-TAIL:]
    return {
        "logprob": math.fsum(known) / len(known),
        "logprob_tail": math.fsum(tail) / len(tail),
        "logprob_window": _lowest_window(known),
    }


def _lowest_window(logprobs: Sequence[float]) -> float:
    size = min(WINDOW, len(logprobs))
    window = math.fsum(logprobs[:size])
    lowest = window
    for gone, new in zip(logprobs, logprobs[size:], strict=False):
        window += new - gone
        lowest = min(lowest, window)
    return lowest / size

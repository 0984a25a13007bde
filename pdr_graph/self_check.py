"""What a model says of drafts, read from the likelihood of one token, not from what it writes.

- `self_check` is P(true): the model is asked whether a solution is correct, and the likelihood of
  "Yes" counts (Kadavath and others, arXiv 2207.05221; as a weight of votes: CISC, 2502.06233). A
  model that was trained on that question answers it better: the adapter of `train/judge.py`.
- `preference` is a forced choice between two solutions, asked in both orders: models prefer a
  position as well as a solution, and the mean of both orders does not (PairRM, 2306.02561).

Each call is one token behind a prompt. Where the server does not tell the likeliest tokens, or none
of them is an answer, the signal is absent.
"""

import math
from string import Template

from pdr_graph.errors import CallError
from pdr_graph.llm.asker import Asker
from pdr_graph.llm.client import ModelClient, Reply, Sampling
from pdr_graph.llm.usage import Spent

SELF_CHECK = "self_check"
"""Name of the signal, and of its prompt."""

YES, NO = frozenset({"Yes", "yes", "YES"}), frozenset({"No", "no", "NO"})
_FIRST, _SECOND = frozenset("A"), frozenset("B")
_AROUND = " \t\r\n\u2581\u0120\u010a\"'*_.:()"
"""What tokens of one word differ by: blanks, as tokenizers mark them too, and marks."""


async def self_check(
    client: ModelClient, question: str, problem: str, solution: str, spent: Spent
) -> float | None:
    """Return how likely the model finds a solution correct, 0 to 1; None where that is unknown.

    Args:
        client: Asks the model, or an adapter of it (`ModelClient.named`).
        question: Template with $problem and $candidates.
        problem: As a draft was asked it.
        solution: The draft's.
        spent: Is charged.

    Raises:
        CallError: the call failed for good.
    """
    if client.lacks_alternatives:
        return None
    prompt = Template(question).substitute(problem=problem, candidates=solution).strip()
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=1.0, seed=0).one_token()
    reply = await client.ask(prompt, sampling, spent)
    client.lacks_alternatives |= not reply.alternatives
    return chance_of(reply, YES, NO)


async def preference(ask: Asker, problem: str, first: str, second: str) -> float | None:
    """Return how likely the first of two solutions is the better one, 0 to 1; None if unknown.

    The order does not matter: `preference(b, a)` is `1 - preference(a, b)`. Both calls are made at
    the same time. One that fails leaves it unknown.
    """
    if ask.client.lacks_alternatives:
        return None
    calls = [
        {"problem": problem, "candidates": _lettered(first, second)},
        {"problem": problem, "candidates": _lettered(second, first)},
    ]
    try:
        replies = await ask.each("prefer", calls)
    except CallError:
        return None  # what it cost is in the meter
    ask.client.lacks_alternatives |= not any(reply.alternatives for reply in replies)
    ahead, behind = (chance_of(reply, _FIRST, _SECOND) for reply in replies)
    return None if ahead is None or behind is None else (ahead + 1.0 - behind) / 2


def _lettered(first: str, second: str) -> str:
    return "\n\n".join(
        f"<solution {letter}>\n{text}\n</solution {letter}>"
        for letter, text in zip("AB", (first, second), strict=True)
    )


def word_of(token: str) -> str:
    """Return a token without the blanks and marks around it."""
    return token.strip(_AROUND)


def chance_of(reply: Reply, wanted: frozenset[str], other: frozenset[str]) -> float | None:
    """Return the likelihood of the wanted words at a reply's first place, as a share of both.

    None where neither is among the likeliest tokens.
    """
    first = reply.alternatives[0] if reply.alternatives else []
    said = [(word_of(token), math.exp(logprob)) for token, logprob in first]
    mine = math.fsum(chance for word, chance in said if word in wanted)
    both = mine + math.fsum(chance for word, chance in said if word in other)
    return mine / both if both > 0.0 else None

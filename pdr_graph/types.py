"""The plain data that a run remembers and reports.

What is checkpointed is a `TypedDict` of text, numbers and lists: any saver stores it, strict
serialisers included, and Studio can edit it.
"""

from typing import Literal

from typing_extensions import TypedDict

DraftError = Literal["failed", "empty", "truncated", "cut"]
"""Why a draft has no solution: the call failed, nothing was said, the thought was cut short,
or a quorum was in before it (its request was then cancelled)."""


class Draft(TypedDict):
    """One attempt at the problem: its solution part, never its reasoning."""

    round: int
    """1 for the first parallel round."""
    index: int
    """Position in its round, 0 to M_r - 1."""
    solution: str
    """At most `PDRConfig.solution_tokens` model tokens; empty where `error` is set."""
    answer: str | None
    """The final answer as extracted; None if the solution states none."""
    tokens: int
    """Completion tokens that the call cost, reasoning included."""
    truncated: bool
    """Whether the model ran into its token limit."""
    error: DraftError | None
    detail: str
    """A sentence on the error; empty without one."""
    seed: int
    seconds: float


class Workspace(TypedDict):
    """The bounded text C^(r) that the next calls read."""

    text: str
    tokens: int
    """Length of `text` in model tokens; never above `PDRConfig.kappa`."""
    estimated: bool
    """Whether `tokens` rests on the conservative estimate instead of the model's tokenizer."""
    sources: list[int]
    """Indices of the drafts of this round that entered, best first; all of them for a summary."""


class Solution(TypedDict):
    """What the run answers."""

    text: str
    answer: str | None
    truncated: bool
    finish: str
    """The finish that produced it: `refine`, `vote`, `select` or a user's own."""


class Vote(TypedDict):
    """An answer that drafts gave."""

    answer: str
    count: int
    """How many drafts gave it."""
    solution: str
    """The solution of the first of them."""


class Tally(TypedDict):
    """The votes of all rounds so far, see `pdr_graph.nodes.distiller`."""

    voters: int
    """Usable drafts in all, those without an answer included."""
    votes: list[Vote]
    """The most common answers, the most common first."""


class Verdict(TypedDict):
    """What the verifier says of the solution."""

    verifier: str
    accepted: bool | None
    """None where nobody judged; not the same as False."""
    reason: str


class LedgerRow(TypedDict):
    """Tokens and time of one node in one super-step of one round."""

    round: int
    node: str
    step: int
    """The super-step; rows of one step ran in parallel, rows of different steps in sequence."""
    calls: int
    """Requests sent to the model, retries and aborted ones included."""
    prompt_tokens: int
    cached_tokens: int
    """Part of `prompt_tokens` that the server had in its prefix cache."""
    completion_tokens: int
    reasoning_tokens: int
    """Part of `completion_tokens` spent on thought, where the server tells."""
    failed: int
    """Calls that failed for good, after their retries."""
    aborted: int
    """Calls cancelled at the server because a quorum was in."""
    seconds: float
    """Length of the critical path."""
    estimated: bool
    """Whether any count here, or the workspace's length, rests on an estimate."""
    critical_tokens: int
    """Prompt and completion tokens on the critical path: the largest of parallel calls."""
    nominal_tokens: int
    """Completion tokens allotted to all calls, as the paper plots budgets."""
    critical_nominal: int
    """Completion tokens allotted on the critical path."""


class RunRecord(TypedDict):
    """What produced a run, so that a resume or a reader can tell."""

    version: str
    model: str
    prompts: dict[str, str]
    """First 16 hex digits of each prompt template's sha256, by name."""
    token_counts: str
    """Where token counts come from: `server`, `file` or `estimate`."""

"""The plain data that a run keeps and reports, and roles and prices as a user names them.

What is kept is `TypedDict`s of text, numbers and lists, so that any saver stores it, even one with
a strict serialiser, and Studio can edit it. Nothing here imports a model, so that the command line
can read it at once.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Literal, NamedTuple, NotRequired

from typing_extensions import TypedDict

from pdr_graph.errors import keep_secrets_of

DraftError = Literal["failed", "empty", "truncated", "cut"]
"""Why a draft has no solution: its call failed, the reply was empty, the thought was cut short, or
a quorum was in first and its request was cancelled."""


ROLES: Mapping[str, str | None] = MappingProxyType(
    {
        "drafter": None,
        "contested": "drafter",
        "distiller": None,
        "refiner": None,
        "verifier": None,
        "judge": "verifier",
    }
)
"""The roles that may have a model of their own, each with the role whose model stands in for it;
None is the model of the run. A role is a node of the graph, with two exceptions: `contested` makes
the drafts of a round after one whose drafts did not agree, `judge` is the verifier of that name."""


class Price(NamedTuple):
    """What a model costs, per million tokens, in a currency of the user's own."""

    prompt: float
    completion: float

    def of(self, row: "LedgerRow") -> float:
        """Return the cost of what a row counts."""
        spent = row["prompt_tokens"] * self.prompt + row["completion_tokens"] * self.completion
        return spent / 1_000_000


@dataclass(frozen=True, slots=True)
class RoleModel:
    """The model that a role is asked of."""

    role: str
    """One of `ROLES`."""
    name: str | None
    """None takes the only one that its endpoint serves."""
    base_url: str | None
    """None is the endpoint of the settings; without one there, `name` is a .gguf file or a model
    folder to run here."""

    @classmethod
    def parse(cls, text: str) -> "RoleModel":
        """Read ROLE=NAME[@URL].

        Raises:
            ValueError: it is none; the sentence says how it is written.
        """
        if url := re.search(r"https?://\S+", text):
            keep_secrets_of(url[0])
        role, equals, model = (part.strip() for part in text.partition("="))
        if not equals or not model:
            raise ValueError(
                "write it as ROLE=NAME[@URL], such as refiner=large@http://host:8000/v1"
            )
        if role not in ROLES:
            raise ValueError(f"there is no role {role!r}; known: {', '.join(ROLES)}")
        name, *urls = re.split(r"@(?=https?://)", model, maxsplit=1)
        # Names have an @ too, as in claude@20250219; an address without its scheme is a mistake.
        if not urls and re.match(r"https?://|.*@.*[:/]", name):
            raise ValueError(
                "an @ separates NAME and URL, which begins with http:// or https://, as in "
                f"{role}=large@http://host:8000/v1"
            )
        return cls(role, name or None, urls[0] if urls else None)

    @property
    def runs_here(self) -> bool:
        """Whether it is a file of weights, which no endpoint serves."""
        return self.base_url is None and (self.name or "").endswith(".gguf")


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The stated price of a model."""

    name: str
    price: Price

    @classmethod
    def parse(cls, text: str) -> "ModelPrice":
        """Read NAME=IN/OUT.

        Raises:
            ValueError: it is none; the sentence says how it is written.
        """
        name, _, prices = (part.strip() for part in text.rpartition("="))
        try:
            prompt, completion = (float(each) for each in prices.split("/"))
        except ValueError:
            prompt = completion = -1.0
        if not name or not all(isfinite(each) and each >= 0 for each in (prompt, completion)):
            raise ValueError(
                "write it as NAME=IN/OUT, the prices of a million prompt and completion tokens, "
                "such as large=0.5/1.5"
            )
        return cls(name, Price(prompt, completion))


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
    """Completion tokens of the call, reasoning included."""
    truncated: bool
    """Whether the model ran into its token limit, or was ended in a loop."""
    loop: NotRequired[bool]
    """Whether it is truncated because it repeated itself; absent in any other draft."""
    error: DraftError | None
    """None where there is a solution."""
    detail: str
    """A sentence on the error; empty without one."""
    refused: NotRequired[bool]
    """Whether a failed call would be refused again, as with a wrong key."""
    seed: int
    """Seed of the call."""
    seconds: float
    """Duration of the call, all attempts together."""
    signals: NotRequired[dict[str, float]]
    """Signals of the draft, by the names of `judge.LOGPROBS`; absent if no part uses them."""
    weight: NotRequired[float]
    """How sure the judge is that the draft is right, 0 to 1; absent where none has weighed it."""
    unweighed: NotRequired[str]
    """Why the judge could not weigh it, in a sentence; absent in any other draft."""


class Workspace(TypedDict):
    """The bounded text C^(r) that the next calls read."""

    text: str
    tokens: int
    """Length of `text` in model tokens; never above `PDRConfig.kappa`."""
    estimated: bool
    """Whether `tokens` rests on the conservative estimate instead of the model's tokenizer."""
    sources: list[int]
    """Indices of the drafts that entered, best first; of all drafts for a summary."""


class Solution(TypedDict):
    """What the run answers."""

    text: str
    answer: str | None
    """The final answer as extracted; None if the text states none."""
    truncated: bool
    """Whether the model ran into its token limit, or was ended in a loop."""
    loop: NotRequired[bool]
    """Whether it is truncated because it repeated itself; absent in any other solution."""
    finish: str
    """The finish that produced it, by its name in `finish.FINISHES`, or a user's own."""


class Vote(TypedDict):
    """An answer, and the drafts that gave it."""

    answer: str
    count: int
    """How many drafts gave it."""
    solution: str
    """The solution of the best of them: the highest weight, then the likeliest, then the first."""
    source: NotRequired[list[int]]
    """Round and index of that draft; absent in runs of earlier versions."""
    weight: NotRequired[float]
    """Sum of the weights of these drafts; absent unless a judge has weighed all of them."""
    best_weight: NotRequired[float]
    """The largest of these weights."""
    logprob: NotRequired[float]
    """The largest `logprob` of these drafts; absent where the server tells none."""


class Tally(TypedDict):
    """The votes of all rounds so far, kept where rounds are pooled."""

    voters: int
    """Usable drafts in all, those without an answer included."""
    votes: list[Vote]
    """The most common answers, at most `ballot.MAX_ANSWERS`, the most common first."""


class Verdict(TypedDict):
    """What the verifier says about the solution."""

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
    """Part of `completion_tokens` spent on thought; 0 where the server does not tell."""
    failed: int
    """Calls that failed after all their retries."""
    aborted: int
    """Calls cancelled at the server because a quorum was in."""
    seconds: float
    """Length of the critical path."""
    estimated: bool
    """Whether any count here, or the workspace's length, rests on an estimate."""
    critical_tokens: int
    """Prompt and completion tokens on the critical path: of parallel calls the largest."""
    nominal_tokens: int
    """Completion tokens allotted to all calls, as the paper plots budgets."""
    critical_nominal: int
    """Completion tokens allotted on the critical path."""
    over_budget: NotRequired[int]
    """Calls whose thought was longer than `thinking_token_budget` by more than 16 tokens. Rows of
    version 0.1 lack this field and the next three."""
    run: NotRequired[str]
    """The run that spent it; in the ledger of a graph around it, the super-step of that graph."""
    model: NotRequired[str]
    """The model that was asked; absent in a run with only one model, which its record names."""
    attempt: NotRequired[str]
    """Names an attempt that ended without a result; empty for the one whose result counts."""
    parts: NotRequired[dict[str, list[int]]]
    """What each draft, or each run, has added to the counts of the row, so that it is counted once,
    however often rows are merged."""


class RunRecord(TypedDict):
    """What produced a run: compared on resume, and shown to readers of the run."""

    version: str
    """Version of pdr-graph."""
    model: str
    """The drafter's."""
    models: NotRequired[dict[str, str]]
    """The model of each role; absent where one model has all of them."""
    prompts: dict[str, str]
    """First 16 hex digits of each prompt template's sha256, by name."""
    own_prompts: NotRequired[list[str]]
    """Names of the templates that a folder of prompts has replaced; absent without one."""
    judge: NotRequired[str]
    """Digest of the judge that has weighed the drafts; absent if there was none."""
    token_counts: str
    """Where token counts came from: `server`, `file` or `estimate`."""


def new_thread_id() -> str:
    """Return a name for a run that no other has."""
    return uuid.uuid4().hex[:12]

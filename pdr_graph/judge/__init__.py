"""What a draft shows besides its answer, and judges that were trained on it: is the draft right?

A judge is a JSON file that `pdr-graph judge fit` makes of the records of evaluations
(`eval/judge_fit.py`). It holds numbers and texts alone, so that reading one runs nothing.

The contract. A kind of judge is a subclass of `DraftJudge` with a `kind` of its own, named in
`KINDS`; the file's field `kind` chooses it, and a file without one is of kind `signals`.

    judge = load_judge(file, places)             # ConfigError: no judge, or it lacks a place
    judge.check(model)                           # ConfigError: fitted on another model's drafts
    weight = await judge.weigh(draft, evidence)  # 0 to 1; UnweighedError: why there is none

`load_judge` opens the judge on what `JudgePlaces` names (an endpoint, a reader in this process),
and refuses at the door a judge whose place is missing. `Evidence` is what a judge may look at
besides the draft: the problem, the prompt that a first draft is asked with, and the run's own
client. A judge that asks a server, or reads the draft with a model in this process, charges what it
cost to `evidence.spent`, also where it fails or is cancelled. Drafts and the voice of `guarded` are
weighed by one path, `step.weigh`. It adds that cost to the caller's ledger row after the cost of
the draft, so that B_seq counts it in sequence. What cannot be weighed has no `weight`; why not is
in the draft's `unweighed`, and the run notes it once. A weight is never guessed, and a judge never
fails a draft: `UnweighedError` and `CallError` are caught there, and nothing else.

Log-probabilities are free where the server tells them. `logprob_tail` and `logprob_window` are
DeepConf's (arXiv 2508.15260), here of the tokens that were drawn. All are natural logarithms, at
most 0; a likelier draft has a higher one. `SignalsJudge` is a logistic regression over them, as in
CISC (arXiv 2502.06233).
"""

import hashlib
import importlib
import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.files import written_whole
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.usage import Spent
from pdr_graph.self_check import SELF_CHECK, self_check
from pdr_graph.types import Draft
from pdr_graph.validation import Fault, shown

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


FEATURES = (*LOGPROBS, "log_tokens", "truncated")
"""What a judge may look at: the signals above, the natural logarithm of the tokens of the
draft's call, and 1 where it was cut."""


_SUREST = 1e-6
"""Nearer to 0 or 1 the likelihood of a token is not known."""


def log_odds(chance: float) -> float:
    """Return the logit of what a model says by the likelihood of a token, 0 and 1 included."""
    sure = min(max(chance, _SUREST), 1 - _SUREST)
    return math.log(sure / (1 - sure))


def features_of(draft: Draft) -> dict[str, float] | None:
    """Return the features of a draft; None where its server tells no log-probabilities.

    Where the model was asked about the draft, its log-odds are one of them, as `SELF_CHECK`.
    """
    signals = draft.get("signals")
    if not signals or not signals.keys() & set(LOGPROBS):
        return None
    checked = {SELF_CHECK: log_odds(signals[SELF_CHECK])} if SELF_CHECK in signals else {}
    return {
        **signals,
        **checked,
        "log_tokens": math.log(max(1, draft["tokens"])),
        "truncated": float(draft["truncated"]),
    }


class UnweighedError(PDRError, LookupError):
    """A draft cannot be weighed; the sentence says why."""


Turns = Sequence[tuple[str, str]]
"""A conversation: role and text of each message."""

Layers = Sequence[int | None]


class StateReader(Protocol):
    """Reads a conversation with a model, and returns what the model makes of it."""

    @property
    def place(self) -> str:
        """Where it reads, for records and sentences."""

    async def read(self, turns: Turns, layers: Layers, spent: Spent) -> list[list[float]]:
        """Return hidden states at the end of a conversation, where the reply would begin.

        Args:
            turns: Alternating between `user` and `assistant`, beginning and ending with `user`.
            layers: How many layers each state has passed; None is all of them, and the final norm.
            spent: Charged with the tokens that were read, once for all layers.

        Raises:
            UnweighedError, CallError: it cannot be had.
        """


@dataclass(frozen=True, slots=True)
class JudgePlaces:
    """Where a judge may look at a draft; what is None is not there."""

    url: str | None = None
    """OpenAI-compatible endpoint with its /v1, for judges that read or ask a model of their own."""
    api_key: str = "none"
    """Of the endpoint."""
    states: StateReader | None = None
    """Reads in this process, such as `policy.hidden_states.TransformersStates`."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a judge may look at besides the draft, and what that has cost."""

    problem: str
    prompt: str
    """What a first draft is asked, before the chat template. It holds no workspace, so that drafts
    of all rounds are read alike."""
    client: ModelClient
    """The run's own, for a judge that asks the same server."""
    spent: Spent = field(default_factory=Spent)
    """Charged by the judge: requests, usage of each, failures, seconds."""


class DraftJudge(BaseModel):
    """Weighs the drafts of one model; each kind is a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    reads: ClassVar[bool] = False
    """Whether weighing has a model read the draft, which costs tokens."""

    format: Literal["pdr-graph judge"] = "pdr-graph judge"
    version: Literal[1] = 1
    kind: str
    model: str
    """The model whose drafts it was fitted on; those of another are refused."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """First 16 hex digits of each prompt's sha256, by name, as in the records."""
    data: tuple[str, ...] = ()
    """sha256 of each file of problems."""
    created: str = ""
    """ISO 8601, in UTC."""
    report: dict[str, Any] = Field(default_factory=dict)  # Any: plain JSON data
    """What the fit has found, for readers."""

    @property
    def asks(self) -> bool:
        """Whether weighing asks the server of the model whose drafts they are."""
        return False

    def opened(self, places: JudgePlaces) -> Self:
        """Return the judge, able to look where it has to.

        Raises:
            ConfigError: it needs a place that is not named; the sentence names the remedy.
        """
        return self

    async def meet(self, client: ModelClient) -> None:
        """Make sure, before any draft is paid for, that the run's server has what it is asked for.

        Raises:
            ConfigError: it has not; the sentence names the remedy.
        """

    @abstractmethod
    async def weigh(self, draft: Draft, evidence: Evidence) -> float:
        """Return how likely the draft is to be right, 0 to 1.

        Args:
            draft: With its solution as it is kept, and its signals where there are any.
            evidence: What else there is to look at; charged with what looking costs.

        Raises:
            UnweighedError: it cannot be told; the sentence says why, without the draft's name.
        """

    def save(self, file: Path) -> None:
        """Write the judge.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as out:
                out.write(self.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise ConfigError(f"judge {str(file)!r} cannot be written: {error.strerror}") from None

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of what it says; runs record it."""
        # What a kind leaves out, such as a question that it does not ask, is no part of it.
        said = self.model_dump_json(exclude={"report", "created"}, exclude_none=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def check(self, model: str) -> None:
        """Refuse a model on whose drafts the judge was not fitted.

        Raises:
            ConfigError: it is another model.
        """
        if model != self.model:
            raise ConfigError(
                f"the judge was fitted on drafts of {self.model!r}, and this run asks {model!r}; "
                "fit one on its drafts with pdr-graph judge fit"
            )


class SignalsJudge(DraftJudge):
    """A logistic regression over what is known of a draft for free, or for one token."""

    kind: Literal["signals"] = "signals"
    features: tuple[str, ...]
    """Names of `FEATURES`, or `SELF_CHECK`, in the order of the numbers below."""
    question: str | None = None
    """Template of the self-check, with $problem and $candidates; None where it is no feature."""
    means: tuple[FiniteFloat, ...]
    scales: tuple[FiniteFloat, ...]
    """Standard deviations of the features, none of them 0."""
    weights: tuple[FiniteFloat, ...]
    """Of the features less their means, in units of their scales."""
    bias: FiniteFloat

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        lengths = {len(each) for each in (self.features, self.means, self.scales, self.weights)}
        if len(lengths) != 1:
            raise ValueError("features, means, scales and weights differ in length")
        known = (*FEATURES, SELF_CHECK)
        if unknown := set(self.features) - set(known):
            raise ValueError(f"unknown feature {min(unknown)!r}; known: {', '.join(known)}")
        if (SELF_CHECK in self.features) != (self.question is not None):
            raise ValueError(f"a question goes with the feature {SELF_CHECK}, and with no other")
        if 0.0 in self.scales:
            raise ValueError("a scale is 0")
        return self

    @property
    def asks(self) -> bool:
        """As `DraftJudge.asks`."""
        return self.question is not None

    async def weigh(self, draft: Draft, evidence: Evidence) -> float:
        """As `DraftJudge.weigh`; at no cost, or by one call of one token that the draft keeps."""
        if self.question is not None and SELF_CHECK not in draft.get("signals", {}):
            said = await self_check(
                evidence.client,
                self.question,
                evidence.prompt,
                draft["solution"],
                evidence.spent,
            )
            if said is None:
                raise UnweighedError("the server does not tell the likeliest tokens")
            draft["signals"] = {**draft.get("signals", {}), SELF_CHECK: said}
        return self.weight_of(draft)

    def weight_of(self, draft: Draft) -> float:
        """Return how likely the draft is to be right, by its signals.

        Raises:
            UnweighedError: a signal is unknown.
        """
        known = features_of(draft)
        if known is None:
            raise UnweighedError("the server tells no log-probabilities")
        if missing := set(self.features) - known.keys():
            raise UnweighedError(f"the draft has no signal {min(missing)!r}")
        parts = zip(self.features, self.means, self.scales, self.weights, strict=True)
        logit = self.bias + math.fsum(
            weight * (known[name] - mean) / scale for name, mean, scale, weight in parts
        )
        return probability(logit)


def probability(logit: float) -> float:
    """Return the logistic function of a logit, whatever its size."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -700.0), 700.0)))


# ------------------------------------------------------------------------------------ the file

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "signals": "pdr_graph.judge:SignalsJudge",
        "hidden": "pdr_graph.judge.hidden:HiddenJudge",
        "adapter": "pdr_graph.judge.adapter:AdapterJudge",
    }
)
"""The class of each kind of judge. Its module is imported when a file names the kind."""


def load_judge(file: Path, places: JudgePlaces | None = None) -> DraftJudge:
    """Read a judge of any kind, and open it on the places that it needs.

    Args:
        file: Written by `pdr-graph judge fit`.
        places: None names none.

    Raises:
        ConfigError: the file cannot be read, is no judge, or needs a place that is not named.
    """
    return read_judge(file).opened(places or JudgePlaces())


def read_judge(file: Path) -> DraftJudge:
    """Read a judge of any kind without opening it.

    Raises:
        ConfigError: the file cannot be read, or is no judge.
    """
    remedy = "make one with pdr-graph judge fit"
    try:
        data = file.read_bytes()
        found = json.loads(data)
    except OSError as error:
        raise ConfigError(f"judge {str(file)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{str(file)!r} is no judge: it holds no JSON; {remedy}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{str(file)!r} is no judge: it holds no object; {remedy}")
    name = found.get("kind", "signals")
    if not (isinstance(name, str) and name in KINDS):
        raise ConfigError(
            f"{str(file)!r} is no judge: unknown kind {shown(name)}; known: {', '.join(KINDS)}; "
            f"{remedy}, or use the version of pdr-graph that made it"
        )
    module, _, attribute = KINDS[name].partition(":")
    kind: type[DraftJudge] = getattr(importlib.import_module(module), attribute)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        reason = Fault.of(error).sentence(model=kind)
        raise ConfigError(f"{str(file)!r} is no judge: {reason}; {remedy}") from None

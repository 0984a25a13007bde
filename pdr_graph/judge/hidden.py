"""A judge that looks at the model's own hidden state: a probe, fitted on checked drafts.

The model reads the problem, the draft's solution and a question, and the state at the end of the
question is what the probe sees, as in LiLaVe (arXiv 2504.16760) and in arXiv 2504.05419. Reading
costs one prefill for each draft, and no decoding. Middle layers know more than the last.

States come from an endpoint that serves embeddings by the last token, or from a model in this
process. Each is brought to unit length first: some servers do so and others do not, and a copy of
the first layers of a model may have a final norm that it cannot do without.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from operator import mul
from time import perf_counter
from typing import Annotated, Any, ClassVar, Literal, Self

import httpx2
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PrivateAttr, model_validator

from pdr_graph.errors import ConfigError, EndpointError, redacted
from pdr_graph.judge import (
    FEATURES,
    DraftJudge,
    Evidence,
    JudgePlaces,
    Layers,
    StateReader,
    Turns,
    UnweighedError,
    features_of,
    probability,
)
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import ask_small, make_http_client
from pdr_graph.llm.retry import BadReplyError, Retry, call_error, words_of
from pdr_graph.llm.tokens import estimate_tokens, wellformed
from pdr_graph.llm.usage import MOST_TOKENS, Spent, Usage
from pdr_graph.types import Draft

QUESTION = "Is this solution correct? Answer Yes or No."
"""What the model is asked after the solution; its state there tells the most."""

Vector = Sequence[float]


def _dot(first: Vector, second: Vector) -> float:
    return math.fsum(map(mul, first, second))


class LinearProbe(BaseModel):
    """A logistic regression."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Literal["linear"] = "linear"
    weights: tuple[FiniteFloat, ...]
    bias: FiniteFloat

    @property
    def num_inputs(self) -> int:
        """How many numbers it takes."""
        return len(self.weights)

    def logit(self, scaled: Vector) -> float:
        """Return the logit of numbers that are centred and scaled."""
        return self.bias + _dot(self.weights, scaled)


class NetworkProbe(BaseModel):
    """Two layers, with rectified units between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Literal["network"] = "network"
    units: tuple[tuple[FiniteFloat, ...], ...] = Field(min_length=1)
    """The weights of each unit."""
    unit_biases: tuple[FiniteFloat, ...]
    weights: tuple[FiniteFloat, ...]
    """Of the units."""
    bias: FiniteFloat

    @model_validator(mode="after")
    def _layers_fit_together(self) -> Self:
        if not len(self.units) == len(self.unit_biases) == len(self.weights):
            raise ValueError("units, unit_biases and weights differ in length")
        if len({len(each) for each in self.units}) != 1:
            raise ValueError("units differ in length")
        return self

    @property
    def num_inputs(self) -> int:
        """How many numbers it takes."""
        return len(self.units[0])

    def logit(self, scaled: Vector) -> float:
        """Return the logit of numbers that are centred and scaled."""
        return self.bias + math.fsum(
            weight * max(0.0, bias + _dot(unit, scaled))
            for unit, bias, weight in zip(self.units, self.unit_biases, self.weights, strict=True)
        )


class HiddenJudge(DraftJudge):
    """Weighs a draft by the model's hidden state after it."""

    reads: ClassVar[bool] = True

    kind: Literal["hidden"] = "hidden"
    question: str = QUESTION
    """What is asked after the solution."""
    layer: int | None = Field(ge=1)
    """How many layers the state has passed; None is all of them, and the final norm."""
    source: str = ""
    """Where the states were read that it was fitted on, for readers."""
    size: int = Field(ge=1)
    """Numbers of a state."""
    features: tuple[str, ...] = ()
    """Names of `FEATURES` that come after the state."""
    means: tuple[FiniteFloat, ...]
    """Of the state and the features."""
    scales: tuple[FiniteFloat, ...]
    """Standard deviations, none of them 0."""
    probe: Annotated[LinearProbe | NetworkProbe, Field(discriminator="form")]

    _reader: StateReader | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        inputs = self.size + len(self.features)
        if {len(self.means), len(self.scales), self.probe.num_inputs} != {inputs}:
            raise ValueError(f"means, scales and probe do not all take {inputs} numbers")
        if unknown := set(self.features) - set(FEATURES):
            raise ValueError(f"unknown feature {min(unknown)!r}; known: {', '.join(FEATURES)}")
        if 0.0 in self.scales:
            raise ValueError("a scale is 0")
        return self

    def opened(self, places: JudgePlaces) -> Self:
        """As `DraftJudge.opened`: with a place to read hidden states."""
        reader = places.states
        if reader is None and places.url is not None:
            reader = EndpointStates(places.url, api_key=places.api_key, model=self.model)
        if reader is None:
            layers = "all its layers" if self.layer is None else f"its first {self.layer} layers"
            raise ConfigError(
                f"the judge reads hidden states of {self.model!r} behind {layers}; name an "
                "endpoint of embeddings by --judge-url / PDR_JUDGE_URL, or the model's folder or "
                ".gguf file by --judge-weights / PDR_JUDGE_WEIGHTS"
            )
        judge = self.model_copy()
        judge._reader = reader
        return judge

    async def weigh(self, draft: Draft, evidence: Evidence) -> float:
        """As `DraftJudge.weigh`, at the cost of one prefill."""
        if self._reader is None:
            raise UnweighedError("the judge was not opened, and has no place to read from")
        if self.features:
            self._features_of(draft)  # before anything is spent
        turns = judged_turns(evidence.prompt, draft["solution"], self.question)
        (state,) = await self._reader.read(turns, (self.layer,), evidence.spent)
        return self.weight_of(draft, state)

    def weight_of(self, draft: Draft, state: Vector) -> float:
        """Return how likely the draft is to be right, by a state of any length above 0.

        Raises:
            UnweighedError: the state is of another size, or a feature is unknown.
        """
        if len(state) != self.size:
            raise UnweighedError(
                f"a hidden state has {len(state)} numbers, and the judge takes {self.size}: it was "
                f"fitted on another model than the one that is read"
            )
        numbers = [*unit_length(state), *self._features_of(draft)]
        scaled = [
            (number - mean) / scale
            for number, mean, scale in zip(numbers, self.means, self.scales, strict=True)
        ]
        return probability(self.probe.logit(scaled))

    def _features_of(self, draft: Draft) -> list[float]:
        if not self.features:
            return []
        known = features_of(draft)
        if known is None or not set(self.features) <= known.keys():
            raise UnweighedError("the server tells no log-probabilities")
        return [known[name] for name in self.features]


def judged_turns(prompt: str, solution: str, question: str = QUESTION) -> Turns:
    """Return the conversation at whose end the state is read."""
    return [("user", prompt), ("assistant", solution), ("user", question)]


def unit_length(state: Vector) -> list[float]:
    """Return a state divided by its length.

    Raises:
        UnweighedError: it has none, or no finite one.
    """
    length = math.hypot(*state)
    if not (math.isfinite(length) and length > 0):
        raise UnweighedError("a hidden state has no length, or no finite one")
    return [number / length for number in state]


# ------------------------------------------------------------------------------------ endpoints

READ_S = 600.0
"""Longest prefill, in seconds."""


class EndpointStates:
    """Hidden states by `/v1/embeddings` of a server that pools by the last token.

    vLLM (`--runner pooling --convert embed`) takes the conversation. llama.cpp, in its embedding
    mode with `last` pooling, takes the text that its `/apply-template` makes of it.
    """

    def __init__(
        self, url: str, *, api_key: str, model: str | None = None, retry: Retry | None = None
    ) -> None:
        """Name a server.

        Args:
            url: Ends in /v1.
            api_key: Sent as a bearer token.
            model: Asked for where the server has it; else the server must serve only one.
            retry: None is `Retry()`.
        """
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._wanted = model
        self._retry = retry or Retry()
        self._name: str | None = None
        self._takes_turns: bool | None = None
        """None until the server has answered."""

    @property
    def place(self) -> str:
        """As in `StateReader`."""
        return f"endpoint {redacted(self._url)}"

    async def read(self, turns: Turns, layers: Layers, spent: Spent) -> list[list[float]]:
        """As in `StateReader`, for one layer; the server decides how many its model has."""
        began = perf_counter()
        try:
            async with make_http_client() as http:
                await self._find_name(http)
                async for attempt in self._retry.controller():
                    with attempt:
                        return [await self._read(http, turns, spent)]
            raise AssertionError("the last attempt raises")
        except UnweighedError:
            raise
        except (EndpointError, BadReplyError, httpx2.HTTPError, OSError) as error:
            spent.failed += 1
            raise call_error(error) from error
        finally:
            spent.seconds += perf_counter() - began

    async def _find_name(self, http: httpx2.AsyncClient) -> None:
        if self._name is not None:
            return
        models = (await probe_endpoint(http, self._url, api_key=self._api_key)).models
        if self._wanted in models:
            self._name = self._wanted
        elif len(models) == 1:
            self._name = models[0]
        else:
            raise UnweighedError(
                f"{self.place} serves {len(models)} models, and none is called {self._wanted!r}"
            )

    async def _read(self, http: httpx2.AsyncClient, turns: Turns, spent: Spent) -> list[float]:
        messages = [{"role": role, "content": wellformed(text)} for role, text in turns]
        guess = Usage(prompt=sum(estimate_tokens(text) for _, text in turns), estimated=True)
        refusal: BadReplyError | None = None
        if self._takes_turns is not False:
            asked = {"messages": messages, "add_generation_prompt": True}
            try:
                reply = await self._embed(http, asked, guess, spent)
            except BadReplyError as error:
                if self._takes_turns or error.status not in _OTHER_FORM:
                    raise
                refusal = error
            else:
                self._takes_turns = True
                return _state_in(reply)
        url = f"{self._url.removesuffix('/v1')}/apply-template"
        try:
            prompt = (await self._post(http, url, {"messages": messages})).get("prompt")
            reply = await self._embed(http, {"input": prompt}, guess, spent)
        except BadReplyError as error:
            raise refusal or error from None
        self._takes_turns = False
        return _state_in(reply)

    async def _embed(
        self, http: httpx2.AsyncClient, asked: Mapping[str, object], guess: Usage, spent: Spent
    ) -> Mapping[str, Any]:
        body = {"model": self._name, "encoding_format": "float", **asked}
        spent.requests += 1
        try:
            reply = await self._post(http, f"{self._url}/embeddings", body)
        except asyncio.CancelledError:
            spent.aborted += 1
            spent.usage.append(guess)
            raise
        spent.usage.append(_usage_in(reply) or guess)
        return reply

    async def _post(
        self, http: httpx2.AsyncClient, url: str, body: Mapping[str, object]
    ) -> Mapping[str, Any]:
        reply = await ask_small(http, "POST", url, api_key=self._api_key, json=body, total_s=READ_S)
        try:
            found = json.loads(reply.content)
        except (ValueError, RecursionError):
            found = None
        if 200 <= reply.status < 300 and isinstance(found, dict):
            return found
        words = words_of(found) or f"HTTP {reply.status} without a JSON object"
        status = reply.status if reply.status >= 400 else None
        raise BadReplyError(f"{self.place} serves no embedding: {words}", status=status)


_OTHER_FORM = frozenset({400, 404, 422, 501})
"""How servers refuse a request of a form that they do not know."""


def _usage_in(reply: Mapping[str, Any]) -> Usage | None:
    usage = reply.get("usage")
    told = usage if isinstance(usage, dict) else {}
    prompt, details = told.get("prompt_tokens"), told.get("prompt_tokens_details")
    if type(prompt) is not int or not 0 < prompt < MOST_TOKENS:
        return None
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(prompt=prompt, cached=min(prompt, cached) if type(cached) is int else 0)


def _state_in(reply: Mapping[str, Any]) -> list[float]:
    try:
        state = reply["data"][0]["embedding"]
        if state and isinstance(state[0], list):  # every token's: the last one's counts
            state = state[-1]
        found = [float(number) for number in state]
    except (KeyError, IndexError, TypeError, ValueError):
        raise UnweighedError("the server's embedding is no list of numbers") from None
    if not found or not all(map(math.isfinite, found)):
        raise UnweighedError("the server's embedding is no list of finite numbers")
    return found

"""Calls one chat model for a whole process: one limit, one retry policy, exact counts.

Every call of the package goes through `ModelClient.ask`, so that every cost is in a ledger. A
reply's solution is told apart from the reasoning that led to it: only the solution goes into a
workspace (paper section 3).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Any, TypeGuard

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.ai import add_ai_message_chunks

from pdr_graph.answers.extract import ReplyParts, split_text
from pdr_graph.errors import ConfigError
from pdr_graph.llm.pool import PerLoop
from pdr_graph.llm.retry import (
    BadReplyError,
    Retry,
    call_error,
    is_connection_error,
    never_sent,
    scrubbed,
)
from pdr_graph.llm.tokens import (
    EstimateCounter,
    TokenCounter,
    estimate_tokens,
    flat_text,
    is_looping,
    wellformed,
)
from pdr_graph.llm.usage import REFUSED_USAGE, Spent, Usage, read_usage, stated_usage
from pdr_graph.types import Price
from pdr_graph.validation import shown

logger = logging.getLogger(__name__)


ALTERNATIVES = 20
"""Likeliest tokens that are asked for with a choice: the most that OpenAI sends, and vLLM by
default."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one reply is sampled."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    thinking_token_budget: int | None = None
    """None leaves the thought to `max_tokens`."""
    priority: int | None = None
    """Place in the server's queue, lower first; None tells the server none."""
    logprobs: bool | None = None
    """Whether the log-probability of each token is asked for; None asks for nothing."""
    top_logprobs: int | None = None
    """Likeliest tokens of which the log-probability is asked for at each place; None asks for
    none."""

    def one_token(self) -> "Sampling":
        """Return how a choice is asked for: one token, with the likeliest ones at its place.

        At temperature 1 and with all of the distribution, every server reports the model's own
        probabilities.
        """
        return replace(
            self,
            max_tokens=1,
            temperature=1.0,
            top_p=1.0,
            thinking_token_budget=None,
            logprobs=True,
            top_logprobs=ALTERNATIVES,
        )

    def parameters(self, model: BaseChatModel) -> dict[str, Any]:
        """Return the parameters that this model's class declares; providers refuse others."""
        known = type(model).model_fields
        return {name: v for name, v in asdict(self).items() if v is not None and name in known}


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens of one call as the server drew them, for a policy gradient."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each of `token_ids` when it was drawn."""


def read_sampled(message: AIMessage) -> SampledTokens | None:
    """Return the tokens that a message carries, None unless its server sent all of them.

    Malformed ids and log-probabilities count as not sent.
    """
    metadata = message.response_metadata
    prompt_ids, token_ids = metadata.get("prompt_token_ids"), metadata.get("token_ids")
    logprobs = read_logprobs(message)
    if not (_are_ids(prompt_ids) and _are_ids(token_ids)) or logprobs is None:
        return None
    return SampledTokens(prompt_ids, token_ids, logprobs)


def read_logprobs(message: AIMessage) -> list[float] | None:
    """Return the log-probability of each token of a message; None unless its server sent them."""
    told = message.response_metadata.get("logprobs")
    rows = told.get("content") if isinstance(told, dict) else None
    if not isinstance(rows, list):
        return None
    found = [row.get("logprob") if isinstance(row, dict) else None for row in rows]
    known = [float(each) for each in found if isinstance(each, int | float)]
    return known if len(known) == len(found) and all(map(isfinite, known)) else None


Alternatives = list[tuple[str, float]]
"""The likeliest tokens at one place of a reply, each with its log-probability, at most 0."""


def read_alternatives(message: AIMessage) -> list[Alternatives]:
    """Return the alternatives of each token of a message, the drawn one among them.

    Empty if the server sent none at all. A malformed token or number counts as not sent.
    """
    told = message.response_metadata.get("logprobs")
    rows = told.get("content") if isinstance(told, dict) else None
    found = [_alternatives(row) for row in rows] if isinstance(rows, list) else []
    return found if any(found) else []


def _alternatives(row: object) -> Alternatives:
    top = row.get("top_logprobs") if isinstance(row, dict) else None
    found = [_told(each) for each in top] if isinstance(top, list) else []
    known = [each for each in found if each is not None]
    drawn = _told(row)
    # The drawn token may not be among the likeliest.
    missing = known and drawn is not None and drawn[0] not in dict(known)
    return [*known, drawn] if missing and drawn is not None else known


def _told(row: object) -> tuple[str, float] | None:
    token, logprob = (row.get("token"), row.get("logprob")) if isinstance(row, dict) else (0, 0)
    if not (isinstance(token, str) and isinstance(logprob, int | float) and isfinite(logprob)):
        return None
    return token, min(float(logprob), 0.0)


def _are_ids(value: object) -> TypeGuard[list[int]]:
    ids = value if isinstance(value, list) else [None]
    return all(type(each) is int and 0 <= each < _MOST_ID for each in ids)


_MOST_ID = 2**31
"""Above every token's id."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered, and what the call cost."""

    solution: str
    thought: str
    truncated: bool
    """Whether the reply ran into its token limit, or ended inside its thought."""
    finish_reason: str
    """As the server says it; `loop` if the reply repeated itself until its limit, or until the
    server ended it."""
    usage: Usage
    seconds: float
    message_id: str = ""
    """Id of the model's message; empty if it has none."""
    sampled: SampledTokens | None = None
    """Token ids and log-probabilities; None unless the model was asked for them."""
    logprobs: Sequence[float] = ()
    """Log-probability of each token; empty where the server tells none."""
    alternatives: Sequence[Alternatives] = ()
    """The likeliest tokens at each place; empty where nobody asked, or the server tells none."""


OnChunk = Callable[[int, AIMessage], None]
"""Receives a reply in pieces: the number of the attempt, from 1, and the new piece. A further
attempt begins the reply anew."""


def split_message(message: AIMessage) -> ReplyParts:
    """Take a message apart, whether its reasoning is separate or in the text."""
    parts = split_text(message.text)
    reasoning = flat_text(message.additional_kwargs.get("reasoning_content"))
    reasoning = reasoning or _reasoning_blocks(message)
    if not reasoning:
        return parts
    return ReplyParts(f"{reasoning}{parts.thought}", parts.solution, parts.closed)


def _reasoning_blocks(message: AIMessage) -> str:
    if not isinstance(message.content, list):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(
        flat_text(block.get("thinking")) or flat_text(block.get("reasoning"))
        for block in blocks
        if block.get("type") in {"thinking", "reasoning"}
    )


LOOP = "loop"
"""Finish reason of a reply that ends in a loop."""
CUT = frozenset({"length", "max_tokens", LOOP})
"""Finish reasons of a reply that did not come to its end."""
BLOCK = 16
"""Tokens by which a thought may exceed its budget: a block of vLLM's, with room for the words that
close the thought."""
_MOST_TOLD = 4096
"""Runs of which it is remembered that they were warned."""
LONGEST_ID = 256
"""Characters of a message's id."""
_FAR = 4
"""A stated completion may be this many times its limit: some servers do not count the thought in
the limit."""
_MORE = 4096
"""Tokens that a stated completion may have beyond that."""
_HIDDEN_PROMPT = 2**20
"""Tokens that a server may add to a prompt, such as what it has looked up."""

_FIRST_PACE = 50.0
"""Completion tokens per second that an aborted call is charged before any call has finished."""


class ModelClient:
    """Calls one chat model for a whole process."""

    def __init__(
        self,
        model: BaseChatModel,
        *,
        counter: TokenCounter | None = None,
        retry: Retry | None = None,
        max_in_flight: int = 256,
        window: int | None = None,
        streamed: bool = False,
        priorities: bool = False,
        price: Price | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: Any LangChain chat model.
            counter: Counts model tokens; None estimates them.
            retry: None is `Retry()`.
            max_in_flight: Calls at once, over all runs of this process and event loop.
            window: Context window of one call, in tokens; None does not check.
            streamed: Whether every call is streamed. Some servers notice only then that a caller
                has left; it costs this process some work for every token.
            priorities: Whether runs tell the server how far they are, so that it serves those that
                have begun before new ones. It must schedule by priority: others may refuse the
                call. A model with a `priority` of its own keeps it.
            price: What it costs, for the ledger; None states nothing.

        Raises:
            ConfigError: the model is no chat model, or the counter is no counter.
        """
        if not isinstance(model, BaseChatModel):
            raise ConfigError(f"model must be a LangChain chat model, not {shown(model)}")
        if counter is not None and not callable(getattr(counter, "count", None)):
            raise ConfigError(
                f"counter must have a method count, as EstimateCounter() has, not {shown(counter)}"
            )
        self.model = _read_plainly(model)
        self.counter: TokenCounter = counter or EstimateCounter()
        self.retry = retry or Retry()
        self.window = window
        self.streamed = streamed
        self.price = price
        self.priorities = priorities and getattr(model, "priority", None) is None
        self.lacks_logprobs = False
        """Whether the server has refused to tell log-probabilities; it is not asked again."""
        self.lacks_alternatives = "top_logprobs" not in type(self.model).model_fields
        """Whether the model has no way to tell the likeliest tokens, or its server told none."""
        self._others: dict[str, ModelClient] = {}
        """Clients of other models at the same endpoint, by their names."""
        self._slots = PerLoop(lambda: asyncio.Semaphore(max_in_flight))
        self._turn = PerLoop(asyncio.Lock)
        self._pace = _FIRST_PACE
        self._prompt_tokens: OrderedDict[int, int] = OrderedDict()
        self._told: OrderedDict[str, None] = OrderedDict()
        """Runs that were warned of refused usage."""

    @classmethod
    def of(cls, model: "BaseChatModel | ModelClient") -> "ModelClient":
        """Return a client of this model; a client is returned as it is."""
        return model if isinstance(model, ModelClient) else cls(model)

    def named(self, name: str) -> "ModelClient":
        """Return a client of another model at the same endpoint, with the same limits.

        Raises:
            ConfigError: this class of models has no name that can be changed.
        """
        field = next((f for f in ("model_name", "model") if f in type(self.model).model_fields), "")
        if not field:
            raise ConfigError(
                f"model {name!r} cannot be asked: {type(self.model).__name__} serves one model; "
                "use an endpoint"
            )
        if (known := self._others.get(name)) is not None:
            return known
        other = self._others[name] = copy(self)
        other.model = self.model.model_copy(update={field: name})
        return other

    @property
    def name(self) -> str:
        """The model's name, for the record of a run."""
        for attribute in ("model_name", "model", "model_id"):
            value = getattr(self.model, attribute, None)
            if isinstance(value, str) and value:
                return value
        return type(self.model).__name__

    async def ask(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None = None
    ) -> Reply:
        """Make one call, retried where that may help, and charge all of it to `spent`.

        With `on_chunk` the reply is streamed, and handed on piece by piece.

        Raises:
            CallError: the call failed for good; what its attempts cost is in `spent`.
        """
        spent.nominal += sampling.max_tokens
        if self.lacks_logprobs:
            sampling = replace(sampling, logprobs=None, top_logprobs=None)
        started = perf_counter()
        try:
            try:
                message = await self._retried(prompt, sampling, spent, on_chunk)
            except Exception as error:
                if not (sampling.logprobs and _refuses_logprobs(error)):
                    raise
                if sampling.top_logprobs:  # a choice cannot be read without them
                    self.lacks_alternatives = True
                    raise
                self.lacks_logprobs, sampling = True, replace(sampling, logprobs=None)
                message = await self._retried(prompt, sampling, spent, on_chunk)
        # The boundary to the SDKs of all providers, each with an error tree of its own.
        except Exception as error:
            spent.failed += 1
            scrubbed(error)
            raise call_error(error) from error
        finally:
            spent.seconds += perf_counter() - started
        parts = split_message(message)
        metadata = message.response_metadata
        reason = str(metadata.get("finish_reason") or metadata.get("stop_reason") or "stop")
        # vLLM ends a loop by `repetition`, where it is asked to.
        if reason == "repetition" or (
            reason in CUT and is_looping(parts.solution or parts.thought)
        ):
            reason = LOOP
        budget = sampling.thinking_token_budget
        if budget is not None and _thought_tokens(parts, spent.usage[-1]) > budget + BLOCK:
            spent.over_budget += 1
        return Reply(
            solution=wellformed(parts.solution),
            thought=wellformed(parts.thought),
            truncated=reason in CUT or not parts.closed,
            finish_reason=reason,
            usage=spent.usage[-1],
            seconds=spent.seconds,
            message_id=(message.id or "")[:LONGEST_ID],
            sampled=read_sampled(message),
            logprobs=(read_logprobs(message) or ()) if sampling.logprobs else (),
            alternatives=read_alternatives(message) if sampling.top_logprobs else (),
        )

    async def _retried(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None
    ) -> AIMessage:
        async for attempt in self.retry.controller():
            with attempt:
                return await self._send(prompt, sampling, spent, on_chunk)
        raise AssertionError("the last attempt raises")

    def tell_refused(self, spent: Spent, thread_id: str) -> None:
        """Warn, once for each run, that the usage which the server states is impossible."""
        if not spent.refused_usage or thread_id in self._told:
            return
        self._told[thread_id] = None
        while len(self._told) > _MOST_TOLD:
            self._told.popitem(last=False)
        logger.warning(
            "usage.refused thread=%s: the endpoint states usage that cannot be (%s); it is "
            "estimated instead",
            thread_id,
            spent.refused_usage,
        )

    async def _send(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None
    ) -> AIMessage:
        async with self._slots.get():
            # One call in each turn of the event loop, in order of arrival. Building and sending it
            # takes a millisecond or two without a pause: a round of a thousand drafts would do that
            # a thousand times in one turn, and stall all else in the process for seconds.
            async with self._turn.get():
                await asyncio.sleep(0)
            spent.requests += 1
            began = perf_counter()
            refused: list[str] = []
            noting = REFUSED_USAGE.set(refused)
            try:
                message = await self._invoke(prompt, sampling, spent.requests, on_chunk)
            except asyncio.CancelledError:
                spent.aborted += 1
                spent.usage.append(self._guess(prompt, sampling, perf_counter() - began))
                raise
            except Exception as error:
                cost = self._cost_of(error, prompt, sampling, perf_counter() - began, refused)
                if cost is not None:
                    spent.usage.append(cost)
                raise
            finally:
                REFUSED_USAGE.reset(noting)
                spent.refused_usage = spent.refused_usage or "".join(refused[:1])
            cost = self._usage(prompt, sampling, message, perf_counter() - began, refused)
            spent.usage.append(cost)
            spent.refused_usage = spent.refused_usage or "".join(refused[:1])
            return message

    async def _invoke(
        self, prompt: str, sampling: Sampling, attempt: int, on_chunk: OnChunk | None
    ) -> AIMessage:
        messages = [HumanMessage(wellformed(prompt))]
        parameters = sampling.parameters(self.model)
        if on_chunk is None and not self.streamed:
            return await self.model.ainvoke(messages, **parameters)
        chunks: list[AIMessage] = []
        async for chunk in self.model.astream(messages, **parameters):
            chunks.append(chunk)
            if on_chunk is not None:
                on_chunk(attempt, chunk)
        return _joined(chunks)

    def _usage(
        self,
        prompt: str,
        sampling: Sampling,
        message: AIMessage,
        seconds: float,
        refused: list[str],
    ) -> Usage:
        usage = read_usage(message)
        if usage is None and message.usage_metadata is not None:
            refused.append("figures of no use")
        if usage is None or not _is_possible(usage, prompt, sampling, refused):
            said = message.text + flat_text(message.additional_kwargs.get("reasoning_content"))
            return Usage(estimate_tokens(prompt), 0, estimate_tokens(said), 0, estimated=True)
        self._prompt_tokens[hash(prompt)] = usage.prompt
        while len(self._prompt_tokens) > 256:
            self._prompt_tokens.popitem(last=False)
        if usage.completion and seconds > 0:
            self._pace += 0.2 * (usage.completion / seconds - self._pace)
        return usage

    def _cost_of(
        self,
        error: Exception,
        prompt: str,
        sampling: Sampling,
        seconds: float,
        refused: list[str],
    ) -> Usage | None:
        """Return what a failed request may have cost, None if it cost nothing."""
        if isinstance(error, BadReplyError):
            if error.is_refusal:
                return None
            stated = None if error.usage is None else stated_usage(error.usage)
            if stated is not None and _is_possible(stated, prompt, sampling, refused):
                return stated
            guess = self._guess(prompt, sampling, seconds)
            if not error.said:
                return guess
            return replace(guess, completion=min(sampling.max_tokens, estimate_tokens(error.said)))
        if is_connection_error(error) and not never_sent(error):
            return self._guess(prompt, sampling, seconds)
        return None

    def _guess(self, prompt: str, sampling: Sampling, seconds: float) -> Usage:
        """Estimate a call that ended without its usage: a known prompt, the recent pace."""
        known = self._prompt_tokens.get(hash(prompt))
        return Usage(
            prompt=known if known is not None else estimate_tokens(prompt),
            completion=min(sampling.max_tokens, int(self._pace * seconds)),
            estimated=True,
        )


def _refuses_logprobs(error: Exception) -> bool:
    """Tell whether a server refused a call because it asked for log-probabilities."""
    failure = call_error(error)
    refused = failure.status is not None and 400 <= failure.status < 500
    return refused and "logprob" in str(failure).lower()


def _is_possible(usage: Usage, prompt: str, sampling: Sampling, refused: list[str]) -> bool:
    """Tell whether a call can have cost what the server states; if not, note the figures."""
    most_prompt = len(prompt.encode("utf-8", "replace")) + _HIDDEN_PROMPT
    most_completion = _FAR * sampling.max_tokens + _MORE
    if usage.prompt <= most_prompt and usage.completion <= most_completion:
        return True
    refused.append(
        f"{usage.prompt} prompt and {usage.completion} completion tokens, where max_tokens is "
        f"{sampling.max_tokens}"
    )
    return False


def _thought_tokens(parts: ReplyParts, usage: Usage) -> int:
    """Return the tokens of a thought, or a lower bound."""
    # If the server does not say, the solution is charged by an estimate that is too high.
    if usage.reasoning or usage.estimated or not parts.thought:
        return usage.reasoning
    return usage.completion - estimate_tokens(parts.solution)


def _joined(chunks: list[AIMessage]) -> AIMessage:
    """Return the whole message; a model that cannot stream sends it as one chunk."""
    if not chunks:
        raise BadReplyError("the model's stream was empty", broken=True)
    pieces = [each for each in chunks if isinstance(each, AIMessageChunk)]
    return add_ai_message_chunks(pieces[0], *pieces[1:]) if pieces else chunks[-1]


def _read_plainly(model: BaseChatModel) -> BaseChatModel:
    """Return the model; one of langchain-openai as a copy that makes odd replies plain."""
    if not type(getattr(model, "async_client", None)).__module__.startswith("openai."):
        return model
    # Imported here: the SDK takes long to load, and other providers' classes do not need it.
    from pdr_graph.llm.wire import plain_clients

    fields = plain_clients(model)
    return model.model_copy(update=fields) if fields else model

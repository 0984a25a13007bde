"""Calls one chat model for a whole process: one limit, one retry policy, exact counts.

Every call of the package goes through `ModelClient.ask`, so that nothing is spent that no ledger
knows. A reply's solution is told apart from the reasoning that led to it: only the solution goes
into a workspace (paper section 3).
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.ai import add_ai_message_chunks

from pdr_graph.answers.extract import ReplyParts, split_text
from pdr_graph.errors import CallError, ContextWindowError
from pdr_graph.llm.pool import PerLoop
from pdr_graph.llm.retry import Retry, is_connection_error, never_sent, status_of
from pdr_graph.llm.tokens import EstimateCounter, TokenCounter, estimate_tokens, wellformed
from pdr_graph.llm.usage import Spent, Usage, read_usage


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
    """Return the tokens that a message carries, None unless its server sent all of them."""
    metadata = message.response_metadata
    prompt_ids, token_ids = metadata.get("prompt_token_ids"), metadata.get("token_ids")
    rows = (metadata.get("logprobs") or {}).get("content")
    if prompt_ids is None or token_ids is None or rows is None:
        return None
    return SampledTokens(list(prompt_ids), list(token_ids), [row["logprob"] for row in rows])


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered, and what the call cost."""

    solution: str
    thought: str
    truncated: bool
    """Whether the reply ran into its token limit, or ended inside its thought."""
    finish_reason: str
    usage: Usage
    seconds: float
    sampled: SampledTokens | None = None
    """Token ids and log-probabilities; None unless the model was asked for them."""


OnChunk = Callable[[int, AIMessage], None]
"""Receives a reply in pieces: the number of the attempt, from 1, and the new piece. A further
attempt begins the reply anew."""


def split_message(message: AIMessage) -> ReplyParts:
    """Take a message apart, whether its reasoning is separate or in the text."""
    parts = split_text(message.text)
    reasoning = message.additional_kwargs.get("reasoning_content") or _reasoning_blocks(message)
    if not reasoning:
        return parts
    return ReplyParts(f"{reasoning}{parts.thought}", parts.solution, parts.closed)


def _reasoning_blocks(message: AIMessage) -> str:
    if not isinstance(message.content, list):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(
        str(block.get("thinking") or block.get("reasoning") or "")
        for block in blocks
        if block.get("type") in {"thinking", "reasoning"}
    )


_WINDOW = re.compile(r"context\b.*\b(length|size)|max_model_len")
"""How llama.cpp and vLLM name the context window when they refuse a call."""

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
        """
        self.model = model
        self.counter: TokenCounter = counter or EstimateCounter()
        self.retry = retry or Retry()
        self.window = window
        self.streamed = streamed
        self.priorities = priorities and getattr(model, "priority", None) is None
        self._slots = PerLoop(lambda: asyncio.Semaphore(max_in_flight))
        self._turn = PerLoop(asyncio.Lock)
        self._pace = _FIRST_PACE
        self._prompt_tokens: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def of(cls, model: "BaseChatModel | ModelClient") -> "ModelClient":
        """Return a client of this model; a client is returned as it is."""
        return model if isinstance(model, ModelClient) else cls(model)

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
        started = perf_counter()
        try:
            async for attempt in self.retry.controller():
                with attempt:
                    message = await self._send(prompt, sampling, spent, on_chunk)
        # The boundary to the SDKs of all providers, each with an error tree of its own.
        except Exception as error:
            spent.failed += 1
            raise call_error(error) from error
        finally:
            spent.seconds += perf_counter() - started
        parts = split_message(message)
        metadata = message.response_metadata
        reason = str(metadata.get("finish_reason") or metadata.get("stop_reason") or "stop")
        return Reply(
            solution=wellformed(parts.solution),
            thought=wellformed(parts.thought),
            truncated=reason in {"length", "max_tokens"} or not parts.closed,
            finish_reason=reason,
            usage=spent.usage[-1],
            seconds=spent.seconds,
            sampled=read_sampled(message),
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
            try:
                message = await self._invoke(prompt, sampling, spent.requests, on_chunk)
            except asyncio.CancelledError:
                spent.aborted += 1
                spent.usage.append(self._guess(prompt, sampling, perf_counter() - began))
                raise
            except Exception as error:
                if is_connection_error(error) and not never_sent(error):
                    spent.usage.append(self._guess(prompt, sampling, perf_counter() - began))
                raise
            spent.usage.append(self._usage(prompt, message, perf_counter() - began))
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

    def _usage(self, prompt: str, message: AIMessage, seconds: float) -> Usage:
        usage = read_usage(message)
        if usage is None:
            said = message.text + str(message.additional_kwargs.get("reasoning_content") or "")
            return Usage(estimate_tokens(prompt), 0, estimate_tokens(said), 0, estimated=True)
        self._prompt_tokens[hash(prompt)] = usage.prompt
        while len(self._prompt_tokens) > 256:
            self._prompt_tokens.popitem(last=False)
        if usage.completion and seconds > 0:
            self._pace += 0.2 * (usage.completion / seconds - self._pace)
        return usage

    def _guess(self, prompt: str, sampling: Sampling, seconds: float) -> Usage:
        """Estimate a call that ended without its usage: a known prompt, the recent pace."""
        known = self._prompt_tokens.get(hash(prompt))
        return Usage(
            prompt=known if known is not None else estimate_tokens(prompt),
            completion=min(sampling.max_tokens, int(self._pace * seconds)),
            estimated=True,
        )


def call_error(error: Exception) -> CallError:
    """Say in one sentence why a call failed."""
    status = status_of(error)
    body = getattr(error, "body", None)
    text = str(body.get("message") or "") if isinstance(body, dict) else ""
    text = " ".join((text or str(error) or type(error).__name__).split())[:400]
    if status is None:
        kind = "connection to the model lost" if is_connection_error(error) else "call failed"
        return CallError(f"{kind}: {text}")
    lowered = text.lower()
    if status == 400 and _WINDOW.search(lowered):
        return ContextWindowError(f"HTTP 400: {text}", status=status)
    return CallError(f"HTTP {status}: {text}", status=status)


def _joined(chunks: list[AIMessage]) -> AIMessage:
    """Return the whole message; a model that cannot stream sends it as one chunk."""
    pieces = [each for each in chunks if isinstance(each, AIMessageChunk)]
    return add_ai_message_chunks(pieces[0], *pieces[1:]) if pieces else chunks[-1]

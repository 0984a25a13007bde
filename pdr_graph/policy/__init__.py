"""Models that draw tokens in this process, and return every token with its log-probability.

Training and small studies use them. The policies are `TransformersPolicy`, `VLLMPolicy`, and
`ScriptedPolicy`, which answers from a list: for tests, and to see what a run costs without a model.
`policy_client` makes a `ModelClient` of one, which the graph calls like a server; `open_folder`
opens a model folder. Only the modules of an engine import it. A policy behind vLLM's endpoint is
`ChatVLLM`, made by `pdr_graph.train.recorder.telling_tokens`.

    Drawn(token_ids, logprobs, finish_reason)
    Policy: async draw(prompt_ids, sampling) -> Drawn; window: int | None
    TransformersPolicy(model, tokenizer, *, most_rows=256, most_tokens=65536, settle_s=0.002)
    VLLMPolicy(llm)                           # llm = open_engine(folder, **options of vllm.LLM)
    ScriptedPolicy(replies, tokenizer)
    policy_client(policy, tokenizer, *, name="policy", window=None, max_in_flight=1024)
    open_folder(folder, *, device=None) -> OpenedFolder(policy, tokenizer, name)

Concurrent calls are collected into batches, for a model that works on many at once. The last bits
of what a model draws depend on the rest of the batch. So a batch waits for the calls of all runs
that are known to be in progress. Its content then does not depend on timing: the same runs on the
same weights draw the same tokens.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.pool import PerLoop


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of one reply."""

    token_ids: tuple[int, ...]
    """What was drawn, with the token that ended the reply."""
    logprobs: tuple[float, ...]
    """Of each of `token_ids`, under the whole vocabulary's distribution at the call's temperature;
    at temperature 0, under that of temperature 1."""
    finish_reason: Literal["stop", "length"]
    """`stop` if the model ended the reply itself."""


class Policy(Protocol):
    """A model that reads and draws tokens."""

    @property
    def window(self) -> int | None:
        """Return how many tokens prompt and reply may have together, None if unknown."""

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw one reply, which depends only on prompt, sampling and weights.

        Concurrent calls share the work.

        Raises:
            ConfigError: the sampling cannot be done as asked.
            ContextWindowError: prompt and reply do not fit the window.
        """


def check_request(prompt_ids: Sequence[int], sampling: Sampling, window: int | None) -> None:
    """Refuse what no policy of this package can do.

    Raises:
        ConfigError: the prompt is empty, or sampling is cut.
        ContextWindowError: prompt and reply do not fit the window.
    """
    if sampling.top_p != 1.0:
        raise ConfigError(
            f"top_p {sampling.top_p:g}: a model in this process draws from the whole "
            "distribution; set top_p 1"
        )
    if not prompt_ids:
        raise ConfigError("the prompt has no tokens; does the chat template render messages?")
    if window is not None and len(prompt_ids) + sampling.max_tokens > window:
        raise ContextWindowError(
            f"a prompt of {len(prompt_ids)} tokens and max_tokens {sampling.max_tokens} are more "
            f"than the model's context window of {window}; lower max_tokens, or shorten the prompt"
        )


Script = Callable[[str, Sampling], str]
"""Makes the reply of a call from its prompt's text and its sampling."""


class ScriptedPolicy:
    """Answers from a list, in order, repeating the last reply; or by a function.

    Each token has the log-probability −1. The token that ends a reply is included if it fits.
    """

    def __init__(
        self,
        replies: Sequence[str] | Script,
        tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
        *,
        window: int | None = None,
    ) -> None:
        self._replies = replies
        self._tokenizer = tokenizer
        self.window = window
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []
        """Every call so far."""

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Return the next reply."""
        check_request(prompt_ids, sampling, self.window)
        self.asked.append((tuple(prompt_ids), sampling))
        text = self._text(prompt_ids, sampling)
        ids = [*self._tokenizer.encode(text, add_special_tokens=False)]
        ids = [*ids, self._tokenizer.eos_token_id]
        kept = tuple(ids[: sampling.max_tokens])
        whole = len(kept) == len(ids)
        return Drawn(kept, (-1.0,) * len(kept), "stop" if whole else "length")

    def _text(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        if callable(self._replies):
            return self._replies(self._tokenizer.decode(list(prompt_ids)), sampling)
        return self._replies[min(len(self.asked), len(self._replies)) - 1]


Request = TypeVar("Request")
Answer = TypeVar("Answer")

_RUN: ContextVar[object | None] = ContextVar("run", default=None)
"""The run that a task belongs to."""
_TURNS = 64
"""Turns of the event loop without a further call, after which a round's calls are complete."""
_POLL_S = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[Request, Answer]):
    """A waiting call."""

    request: Request
    future: "asyncio.Future[Answer]"
    run: object | None
    """The run that it belongs to, None if unknown."""

    @property
    def left(self) -> bool:
        """Whether its caller has gone."""
        return self.future.cancelled()


@dataclass(slots=True)
class _Queue(Generic[Request, Answer]):
    """The waiting calls of one event loop."""

    tickets: list[Ticket[Request, Answer]] = field(default_factory=list)
    runs: set[object] = field(default_factory=set)
    """Runs that are going on."""
    server: "asyncio.Task[None] | None" = None

    @property
    def has_all(self) -> bool:
        """Whether every run has a waiting call."""
        return self.runs <= {ticket.run for ticket in self.tickets}


class CallBatcher(Generic[Request, Answer]):
    """Hands calls to a function in batches, one batch at a time, in a thread of its own."""

    def __init__(
        self,
        work: Callable[[Sequence[Ticket[Request, Answer]]], Sequence[Answer]],
        *,
        settle_s: float = 0.002,
        patience_s: float = 0.25,
    ) -> None:
        """Make a batcher.

        Args:
            work: Answers calls in their order.
            settle_s: If no run is known, a batch begins when no call has come for this long.
            patience_s: If runs are known, a batch begins when no call has come for this long, even
                if a run has none waiting: it may be busy with something else.
        """
        self._work = work
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._queues: PerLoop[_Queue[Request, Answer]] = PerLoop(_Queue)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Make batches wait for a run: the calls of this task, and of tasks that it starts."""
        run, runs = object(), self._queues.get().runs
        runs.add(run)
        token = _RUN.set(run)
        try:
            yield
        finally:
            _RUN.reset(token)
            runs.discard(run)

    async def ask(self, request: Request) -> Answer:
        """Return the answer; an error of `work` is raised in every call of its batch."""
        queue = self._queues.get()
        ticket: Ticket[Request, Answer] = Ticket(
            request, asyncio.get_running_loop().create_future(), _RUN.get()
        )
        queue.tickets.append(ticket)
        if queue.server is None or queue.server.done():
            queue.server = asyncio.create_task(self._serve(queue))
        return await ticket.future

    async def _serve(self, queue: _Queue[Request, Answer]) -> None:
        """Work until no call is waiting."""
        while queue.tickets:
            await self._settle(queue)
            batch = [ticket for ticket in queue.tickets if not ticket.left]
            queue.tickets.clear()
            if batch:
                await self._answer(batch)

    async def _settle(self, queue: _Queue[Request, Answer]) -> None:
        """Return once the calls of a batch are there."""
        loop = asyncio.get_running_loop()
        count, since = len(queue.tickets), loop.time()
        while True:
            if not queue.runs:
                await asyncio.sleep(self._settle_s)
            elif queue.has_all:
                await _turns()
            elif loop.time() - since < self._patience_s:
                await asyncio.sleep(_POLL_S)
                if len(queue.tickets) == count:
                    continue
            if len(queue.tickets) == count:
                return
            count, since = len(queue.tickets), loop.time()

    async def _answer(self, batch: Sequence[Ticket[Request, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._work, batch)
        except Exception as error:  # noqa: BLE001  # any error is the callers'
            for ticket in batch:
                if not ticket.future.done():
                    ticket.future.set_exception(error)
            return
        for ticket, answer in zip(batch, answers, strict=True):
            if not ticket.future.done():
                ticket.future.set_result(answer)


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)

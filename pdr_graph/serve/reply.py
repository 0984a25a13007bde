"""One request's run as OpenAI's answer: whole, or in events while it runs.

The answer's text is sent while the model still writes it, and what was sent cannot be taken back.
So a thought is held until it ends, and whatever may turn out to begin a tag, a stop text or the
blank end is held until it does not. The pieces together are the run's solution, cut at the first
stop text.

The head of a stream is sent with its first event, so that a request that is refused at once has
the right status. Once the stream has begun, an error is sent as an event. Comments keep proxies
from taking a long thought for a dead connection. Work ends when its client leaves.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from openai import BaseModel as ReplyObject
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from pdr_graph.answers.extract import CLOSE, OPEN
from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError
from pdr_graph.events import Narration, RunEvent, is_event
from pdr_graph.llm.tokens import wellformed
from pdr_graph.run import Result
from pdr_graph.serve.protocol import PDRUsage, Report
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.serve.request import SolveRequest
from pdr_graph.serve.runner import SolveRunner

T = TypeVar("T")

# ---------------------------------------------------------------------------- the answer


class Answer:
    """The text of one answer, released as it settles."""

    def __init__(self, stops: Sequence[str] = (), *, may_think: bool = True) -> None:
        """Begin an answer.

        Args:
            stops: Texts before which the answer ends.
            may_think: Whether the text may begin inside a thought that the prompt has opened. It
                is then held until the thought is closed, or the whole answer is known.
        """
        self._stops = tuple(stops)
        self._may_think = may_think
        self._attempt = 0
        self._raw = ""
        self.sent = ""
        """What has been released so far."""

    def take(self, attempt: int, text: str, *, thought_apart: bool = False) -> str:
        """Add what the model has just written; return what may be sent now.

        Args:
            attempt: A higher one than before begins the reply anew.
            text: The piece.
            thought_apart: Whether the server sends this reply's thought apart from its text.
        """
        if attempt != self._attempt:
            self._attempt, self._raw = attempt, ""
        if thought_apart:
            self._may_think = False
        self._raw += text
        return self._release(self._settled())

    def finish(self, solution: str) -> str:
        """Return what is left to be sent of the run's solution.

        Raises:
            CallError: a second attempt at the call came out otherwise than what was sent.
        """
        final = self._cut(solution)
        if not final.startswith(self.sent):
            raise CallError(
                "the answer was interrupted and came out otherwise at the second attempt"
            )
        return self._release(final)

    def is_cut(self, solution: str) -> bool:
        """Tell whether a stop text ended the answer."""
        return len(self._cut(solution)) < len(solution)

    def _release(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        piece, self.sent = text[len(self.sent) :], text
        return piece

    def _settled(self) -> str:
        """Return as much of the solution as cannot change any more."""
        _, closing, after = self._raw.rpartition(CLOSE)
        if not closing and self._may_think:
            return ""
        text = after if closing else self._raw
        if OPEN in text:
            return ""
        cut = self._cut(text.strip())
        if len(cut) < len(text.strip()):
            return wellformed(cut)
        held = max(_overlap(text, each) for each in (OPEN, CLOSE, *self._stops))
        return wellformed(text[: len(text) - held].strip())

    def _cut(self, text: str) -> str:
        found = [place for each in self._stops if (place := text.find(each)) >= 0]
        return text[: min(found)] if found else text


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


# ---------------------------------------------------------------------------- the reply


class ReplyForm(Protocol):
    """Makes the objects of one reply in one protocol."""

    end: bytes
    """What follows the last event of a stream that no error ended."""

    def whole(self, result: Result, text: str, thought: str, *, cut: bool) -> ReplyObject:
        """Return the reply to a request that does not stream.

        Args:
            result: The run.
            text: The answer.
            thought: Progress, and the model's own thought.
            cut: Whether a stop text ended the answer.
        """

    def opening(self) -> Sequence[ReplyObject]:
        """Return the first objects of a stream."""

    def thought(self, text: str) -> Sequence[ReplyObject]:
        """Return the objects of a piece of progress, or of the model's own thought."""

    def text(self, text: str) -> Sequence[ReplyObject]:
        """Return the objects of a piece of the answer."""

    def closing(self, result: Result, *, cut: bool) -> Sequence[ReplyObject]:
        """Return the last objects of a stream."""

    def event(self, each: ReplyObject) -> bytes:
        """Return the server-sent event of an object."""

    def failure(self, refusal: RefusalError) -> bytes:
        """Return the events of an error that ends a stream."""


def json_of(reply: ReplyObject) -> bytes:
    """Return an object as JSON in ASCII: some clients take U+2028 for the end of a line."""
    return json.dumps(reply.model_dump(exclude_unset=True)).encode()


def is_truncated(result: Result) -> bool:
    """Tell whether the model ran into its token limit while it wrote the answer."""
    solution = result.state["solution"]
    return solution is not None and solution["truncated"]


def budgets_of(result: Result) -> PDRUsage:
    """Return the budgets of a run, which OpenAI's usage has no place for."""
    return PDRUsage.model_validate(result.ledger.to_json())


def report_of(result: Result) -> Report:
    """Return what a reply tells beyond OpenAI's protocol."""
    report = {name: value for name, value in result.to_json().items() if name != "solution"}
    report["notes"] = list(result.notes)
    report["estimated"] = result.ledger.estimated
    report["rounds"] = result.state["round"]
    return Report.model_validate(report)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    is_thought: bool


@dataclass(slots=True)
class RunReply:
    """Runs one request and makes a reply of what the run tells."""

    runner: SolveRunner
    asked: SolveRequest
    form: ReplyForm
    result: Result | None = None
    """None until the run has ended."""
    refused: RefusalError | None = None
    """What ended the stream after it had begun; None if nothing did."""
    _answer: Answer = field(init=False)
    _narration: Narration = field(init=False)
    _pieces: asyncio.Queue[_Piece | None] = field(default_factory=asyncio.Queue)
    """None is the last: the run has ended."""
    _reasoning: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin(self.asked.config)

    async def whole(self) -> ReplyObject:
        """Run to the end and return the reply."""
        self.result = await self._run()
        text = Answer(self.asked.stops).finish(self.result.solution)
        reasoning = "".join(self._reasoning)
        return self.form.whole(self.result, text, reasoning, cut=self._is_cut)

    async def events(self) -> AsyncGenerator[bytes]:
        """Run, and yield the reply's server-sent events as it comes.

        Raises:
            PDRError: whatever ended the run; before the first event if it never began.
        """
        form = self.form
        run = asyncio.ensure_future(self._run())
        run.add_done_callback(lambda _: self._pieces.put_nowait(None))
        try:
            opened = False
            while (piece := await self._pieces.get()) is not None:
                if not opened:
                    opened = True
                    yield self._joined(form.opening())
                make = form.thought if piece.is_thought else form.text
                if events := self._joined(make(piece.text)):
                    yield events
            self.result = await run
            if not opened:
                yield self._joined(form.opening())
            if rest := self._answer.finish(self.result.solution):
                yield self._joined(form.text(rest))
            yield self._joined(form.closing(self.result, cut=self._is_cut)) + form.end
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    def _joined(self, objects: Sequence[ReplyObject]) -> bytes:
        return b"".join(map(self.form.event, objects))

    async def _run(self) -> Result:
        return await self.runner.carry_out(self.asked, self._begin, self._listen)

    def _begin(self, config: PDRConfig) -> None:
        self._answer = Answer(self.asked.stops)
        self._narration = Narration(len(config.widths))

    def _listen(self, event: RunEvent) -> None:
        if not is_event(event):
            return
        if event["event"] == "chunk":
            self._tell(event["thought"])
            piece = self._answer.take(
                event["attempt"], event["text"], thought_apart=bool(event["thought"])
            )
            if piece:
                self._pieces.put_nowait(_Piece(piece, is_thought=False))
            return
        if event["event"] == "finish":
            # Until a reply has shown whether this model thinks in its text, it may.
            thinks = self.runner.metrics.thinks
            self._answer = Answer(self.asked.stops, may_think=thinks is not False)
        line = self._narration.line(event)
        if line and not self._answer.sent:
            self._tell(f"{line}\n")

    def _tell(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._pieces.put_nowait(_Piece(text, is_thought=True))

    @property
    def _is_cut(self) -> bool:
        return self.result is not None and self._answer.is_cut(self.result.solution)


# ---------------------------------------------------------------------------- the connection


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def while_present(receive: Receive, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return the result of `work`, which is cancelled as soon as the client leaves.

    A cancelled run closes the connections of its calls, so that the model's server stops too.

    Args:
        receive: ASGI's channel of a request whose body has been read.
        work: What the client waits for.
        timeout_s: Seconds that the work may take.

    Raises:
        ClientGoneError: the client left first.
        RefusalError: the time was up first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise RefusalError(
            504, f"no answer within {timeout_s:g} s, the limit of this server", code="timeout"
        )
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


KEEP_ALIVE_S = 10.0
"""Longest silence on a connection, in seconds."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


@dataclass(slots=True)
class EventStream:
    """Sends events as they come; the ASGI application of one response."""

    events: AsyncGenerator[bytes]
    """What is sent."""
    failed: Callable[[BaseException], bytes]
    """Makes the last events of a stream that an error ends."""
    headers: dict[str, str]
    """Sent before the first event."""
    timeout_s: float
    """Seconds that the whole stream may take."""
    _begun: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream.

        Raises:
            ClientGoneError: the client left; the work has been cancelled.
            Exception: whatever went wrong before the first event.
        """
        try:
            await while_present(receive, self._write(send), self.timeout_s)
        except Exception as error:
            if not self._begun:
                raise
            await self._send(send, self.failed(error))
            await self._send(send, b"", more=False)

    async def _write(self, send: Send) -> None:
        following = asyncio.ensure_future(anext(self.events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE_S)
                if done:
                    each = following.result()
                    if each is None:
                        break
                    await self._send(send, each)
                    following = asyncio.ensure_future(anext(self.events, None))
                else:
                    await self._send(send, b": waiting\n\n")
            await self._send(send, b"", more=False)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            # A generator that is left in the middle keeps its run going until it is collected.
            await self.events.aclose()

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if not self._begun:
            self._begun = True
            head = Headers(_HEADERS | self.headers).raw
            await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": data, "more_body": more})

"""One request's run as OpenAI's answer: whole, or in events while it runs.

The answer's text is sent while the model still writes it, and what was sent cannot be taken back.
So a thought is held until it ends. Text that may be the beginning of a tag, of a stop text or of
the blank end is held until that is decided. The pieces together are the run's solution, cut at the
first stop text.

The head of a stream is sent with its first event, so that a request that is refused at once has
the right status. Once the stream has begun, an error is sent as an event. Comments keep proxies
from taking a long thought for a dead connection. Work ends when its client leaves.
"""

import asyncio
import json
from collections import deque
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


class Marks:
    """Finds any number of marks in a text that comes in pieces, in time linear in its length.

    It is the automaton of Aho and Corasick (1975). After each character it knows the longest end of
    the text that is the beginning of a mark.
    """

    def __init__(self, marks: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fall: list[int] = [0]
        """By state: its longest proper end, which is the state after an unexpected character."""
        self.depth: list[int] = [0]
        """Characters of the beginning of a mark that have been seen, by state."""
        self.whole: list[tuple[str, ...]] = [()]
        """Marks that end here, by state; the longest first."""
        for mark in dict.fromkeys(marks):
            state = 0
            for character in mark:
                if character not in self._next[state]:
                    self._next[state][character] = len(self._next)
                    self._next.append({})
                    self._fall.append(0)
                    self.depth.append(self.depth[state] + 1)
                    self.whole.append(())
                state = self._next[state][character]
            self.whole[state] = (mark,)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self._next[state].items():
                self._fall[following] = self.after(self._fall[state], character)
                self.whole[following] += self.whole[self._fall[following]]
                waiting.append(following)

    def after(self, state: int, character: str) -> int:
        """Return the state that follows; 0 is that of the beginning."""
        while state and character not in self._next[state]:
            state = self._fall[state]
        return self._next[state].get(character, 0)


class Answer:
    """The text of one answer, released as it settles, in time linear in its length."""

    def __init__(self, stops: Sequence[str] = (), *, may_think: bool = True) -> None:
        """Begin an answer.

        Args:
            stops: Texts before which the answer ends.
            may_think: Whether the text may begin inside a thought that the prompt has opened. It
                is then held until the thought is closed, or the whole answer is known.
        """
        self._stops = tuple(stops)
        self._may_think = may_think
        self._marks = Marks((OPEN, CLOSE, *stops))
        self._attempt = 0
        self._sent: list[str] = []
        """What has been released so far, by all attempts."""
        self._begin(anew=True)

    def _begin(self, *, anew: bool) -> None:
        """Begin the text again: at a further attempt, or behind a thought."""
        if anew:
            self._closed = False
            """Whether the text is behind a thought."""
        self._state = 0
        self._opened = False
        """Whether a thought has begun in the text that is not closed."""
        self._held: list[str] = []
        """Pieces of the text that have not settled."""
        self._start = self._end = self._solid = 0
        """Where the held pieces begin, where they end, and where their last non-blank character
        ends; all counted from the first non-blank character of the text."""
        self._cut_at: int | None = None
        """Where the first stop text begins, as far as is known."""
        self._cut_end = 0
        self._is_over = False
        """Whether all that follows is behind a stop text."""
        # What was sent cannot be taken back: the text must begin with it.
        self._owed, self._differs = self.sent, False

    @property
    def sent(self) -> str:
        """What has been released so far."""
        if len(self._sent) > 1:
            self._sent = ["".join(self._sent)]
        return self._sent[0] if self._sent else ""

    @property
    def has_begun(self) -> bool:
        """Whether anything has been released."""
        return bool(self._sent)

    def take(self, attempt: int, text: str, *, thought_apart: bool = False) -> str:
        """Add what the model has just written; return what may be sent now.

        Args:
            attempt: A higher one than before begins the reply anew.
            text: The piece.
            thought_apart: Whether the server sends this reply's thought apart from its text.
        """
        if attempt != self._attempt:
            self._attempt = attempt
            self._begin(anew=True)
        if thought_apart:
            self._may_think = False
        self._read(text)
        if self._opened or (self._may_think and not self._closed):
            return ""
        return self._release(self._settled())

    def finish(self, solution: str) -> str:
        """Return what is left to be sent of the run's solution.

        Raises:
            CallError: a second attempt at the call came out otherwise than what was sent.
        """
        final, sent = self._cut(solution), self.sent
        if not final.startswith(sent):
            raise CallError(
                "the answer was interrupted and came out otherwise at the second attempt"
            )
        self._sent = [final] if final else []
        return final[len(sent) :]

    def is_cut(self, solution: str) -> bool:
        """Tell whether a stop text ended the answer."""
        return len(self._cut(solution)) < len(solution)

    def _read(self, text: str) -> None:
        """Read a piece, and keep what may have to be sent."""
        begin, marks = 0, self._marks
        for index, character in enumerate(text):
            if self._end == 0 and begin == index and character.isspace():
                begin = index + 1
                continue
            self._state = marks.after(self._state, character)
            for mark in marks.whole[self._state]:
                if mark == CLOSE:
                    self._begin(anew=False)
                    self._closed, begin = True, index + 1
                    break
                self._opened = self._opened or mark == OPEN
                end = self._end + index + 1 - begin
                if mark in self._stops and (self._cut_at is None or end - len(mark) < self._cut_at):
                    self._cut_at, self._cut_end = end - len(mark), end
        if piece := text[begin:]:
            self._held.append(piece)
            if solid := len(piece.rstrip()):
                self._solid = self._end + solid
            self._end += len(piece)

    def _settled(self) -> str:
        """Return what has settled since the last time."""
        if self._is_over:
            self._held = []
            return ""
        # The text after this position may be the beginning of a mark.
        end = self._end - self._marks.depth[self._state]
        if self._cut_at is not None:
            self._is_over = self._cut_at <= end and self._cut_end <= self._solid
            end = min(end, self._cut_at)
        if not self._is_over and self._start == min(end, self._solid):
            return ""
        text = "".join(self._held)
        settled = text[: end - self._start]
        if not self._is_over:
            settled = settled.rstrip()
        self._held = [text[len(settled) :]]
        self._start += len(settled)
        return wellformed(settled)

    def _release(self, text: str) -> str:
        """Return the part of the settled text that has not been sent."""
        if self._owed and not self._differs:
            both = min(len(text), len(self._owed))
            self._differs = text[:both] != self._owed[:both]
            self._owed, text = self._owed[both:], text[both:]
        if self._differs or not text:
            return ""
        self._sent.append(text)
        return text

    def _cut(self, text: str) -> str:
        found = [place for each in self._stops if (place := text.find(each)) >= 0]
        return text[: min(found)] if found else text


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
            # Until the first reply has shown it, this model may think in its text.
            thinks = self.runner.metrics.thinks
            self._answer = Answer(self.asked.stops, may_think=thinks is not False)
        line = self._narration.line(event)
        if line and not self._answer.has_begun:
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

"""One request's run as OpenAI's answer: whole, or in chunks while it runs.

The answer's text is sent while the model still writes it, and what was sent cannot be taken back.
So a thought is held until it ends, and whatever may turn out to begin a tag, a stop text or the
blank end is held until it does not. The pieces together are the run's solution, cut at the first
stop text.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pdr_graph.answers.extract import CLOSE, OPEN
from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError
from pdr_graph.events import Narration, RunEvent, is_event
from pdr_graph.llm.tokens import wellformed
from pdr_graph.run import Result
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.serve.request import SolveRequest
from pdr_graph.serve.runner import SolveRunner

Json = dict[str, Any]  # Any: plain JSON data


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


@dataclass(frozen=True, slots=True)
class ReplyObjects:
    """Makes the JSON objects of one reply, which share id, time and model."""

    asked: SolveRequest
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result, content: str, reasoning: str, *, cut: bool) -> Json:
        """Return the reply to a request that does not stream."""
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message |= _thought(reasoning)
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _finish_reason(result, cut=cut),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(result),
            "pdr": report_of(result),
        }

    def opening(self) -> Json:
        """Return the first chunk of a stream; it names the thread, in case the stream breaks."""
        chunk = self._chunk({"role": "assistant", "content": ""})
        return {**chunk, "pdr": {"thread_id": self.asked.thread_id}}

    def thought(self, text: str) -> Json:
        """Return a chunk of progress, or of the model's own thought."""
        return self._chunk(_thought(text))

    def text(self, text: str) -> Json:
        """Return a chunk of the answer."""
        return self._chunk({"content": text})

    def closing(self, result: Result, *, cut: bool) -> list[Json]:
        """Return the last chunks: why the answer ended, what the run was, what it cost."""
        last = self._chunk({}, _finish_reason(result, cut=cut)) | {"pdr": report_of(result)}
        if not self.asked.include_usage:
            return [last]
        bill = self._head("chat.completion.chunk") | {"choices": [], "usage": usage_of(result)}
        return [last, bill]

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}


def _finish_reason(result: Result, *, cut: bool) -> str:
    """Return `length` where the model ran into its token limit and no stop text came first."""
    solution = result.state["solution"]
    truncated = solution is not None and solution["truncated"]
    return "length" if truncated and not cut else "stop"


def usage_of(result: Result) -> Json:
    """Return B_total as OpenAI counts tokens, with the other budgets under `pdr`.

    All leaves are whole numbers: clients add up the usage of several calls, key by key.
    """
    ledger, total = result.ledger.to_json(), result.ledger.total()
    budgets = ("b_total", "b_seq", "b_total_nominal", "b_seq_nominal")
    return {
        "prompt_tokens": ledger["prompt_tokens"],
        "completion_tokens": ledger["completion_tokens"],
        "total_tokens": ledger["b_total"],
        "prompt_tokens_details": {"cached_tokens": total["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": total["reasoning_tokens"]},
        "pdr": {name: ledger[name] for name in (*budgets, "calls", "failed", "aborted")},
    }


def report_of(result: Result) -> Json:
    """Return what a reply tells beyond OpenAI's protocol."""
    report = {name: value for name, value in result.to_json().items() if name != "solution"}
    report["notes"] = list(result.notes)
    report["estimated"] = result.ledger.estimated
    report["rounds"] = result.state["round"]
    return report


def _thought(text: str) -> Json:
    # vLLM's name for it, and the one that most clients read.
    return {"reasoning": text, "reasoning_content": text}


@dataclass(slots=True)
class RunReply:
    """Runs one request and makes a reply of what the run tells."""

    runner: SolveRunner
    asked: SolveRequest
    result: Result | None = None
    """None until the run has ended."""
    refused: RefusalError | None = None
    """What ended the stream after it had begun; None if nothing did."""
    _objects: ReplyObjects = field(init=False)
    _answer: Answer = field(init=False)
    _narration: Narration = field(init=False)
    _chunks: asyncio.Queue[Json | None] = field(default_factory=asyncio.Queue)
    """None is the last: the run has ended."""
    _reasoning: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._objects = ReplyObjects(self.asked)
        self._begin(self.asked.config)

    async def whole(self) -> Json:
        """Run to the end and return the reply."""
        self.result = await self._run()
        text = Answer(self.asked.stops).finish(self.result.solution)
        reasoning = "".join(self._reasoning)
        return self._objects.whole(self.result, text, reasoning, cut=self._is_cut)

    async def chunks(self) -> AsyncGenerator[Json]:
        """Run, and yield the reply in chunks as it comes.

        Raises:
            PDRError: whatever ended the run; before the first chunk if it never began.
        """
        run = asyncio.ensure_future(self._run())
        run.add_done_callback(lambda _: self._chunks.put_nowait(None))
        try:
            opened = False
            while (chunk := await self._chunks.get()) is not None:
                if not opened:
                    opened = True
                    yield self._objects.opening()
                yield chunk
            self.result = await run
            if not opened:
                yield self._objects.opening()
            if rest := self._answer.finish(self.result.solution):
                yield self._objects.text(rest)
            for last in self._objects.closing(self.result, cut=self._is_cut):
                yield last
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

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
                self._chunks.put_nowait(self._objects.text(piece))
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
            self._chunks.put_nowait(self._objects.thought(text))

    @property
    def _is_cut(self) -> bool:
        return self.result is not None and self._answer.is_cut(self.result.solution)

"""One request's run, turned into the parts of a reply as it goes on."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from pdr_graph.config import PDRConfig
from pdr_graph.result import Result
from pdr_graph.serve.answer import Answer
from pdr_graph.serve.asked import Asked
from pdr_graph.serve.narration import Event, Narration
from pdr_graph.serve.replies import Json, Replies
from pdr_graph.serve.runner import Runner

TEXT, THOUGHT = "text", "thought"
"""Pieces of a reply: of the answer, and of what leads to it."""


@dataclass(slots=True)
class Conversation:
    """Listens to a run: what is progress, and what is answer."""

    runner: Runner
    asked: Asked
    result: Result | None = None
    """None until the run has ended."""
    _answer: Answer = field(init=False)
    _narration: Narration = field(init=False)
    _queue: asyncio.Queue[tuple[str, str] | None] = field(default_factory=asyncio.Queue)
    _reasoning: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin(self.asked.config)

    async def whole(self) -> Json:
        """Run to the end and return the reply."""
        self.result = await self._run()
        text = Answer(self.asked.stops).finish(self.result.solution)
        reasoning = "".join(self._reasoning)
        return Replies(self.asked).whole(self.result, text, reasoning, cut=self._is_cut)

    async def chunks(self) -> AsyncGenerator[Json]:
        """Run, and yield the reply in chunks as it comes.

        Raises:
            PDRError: whatever ended the run; before the first chunk if it never began.
        """
        replies = Replies(self.asked)
        run = asyncio.ensure_future(self._run())
        run.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            opened = False
            while (piece := await self._queue.get()) is not None:
                if not opened:
                    opened = True
                    yield replies.opening()
                kind, text = piece
                yield replies.text(text) if kind == TEXT else replies.thought(text)
            self.result = await run
            if not opened:
                yield replies.opening()
            if rest := self._answer.finish(self.result.solution):
                yield replies.text(rest)
            for last in replies.closing(self.result, cut=self._is_cut):
                yield last
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def _run(self) -> Result:
        return await self.runner.carry_out(self.asked, self._begin, self._listen)

    def _begin(self, config: PDRConfig) -> None:
        self._answer = Answer(self.asked.stops)
        self._narration = Narration(config)

    def _listen(self, event: Event) -> None:
        # A user's own step may write to the same stream, whatever it likes.
        if not isinstance(event, dict):
            return
        if event.get("event") == "finish":
            # Until some reply has shown whether this model thinks in its text, it may.
            thinks = self.runner.metrics.thinks
            self._answer = Answer(self.asked.stops, may_think=thinks is not False)
        if event.get("event") != "chunk":
            if not self._answer.sent:
                self._tell(self._narration.line(event))
            return
        self._tell(event["thought"])
        piece = self._answer.take(
            event["attempt"], event["text"], thought_apart=bool(event["thought"])
        )
        if piece:
            self._queue.put_nowait((TEXT, piece))

    def _tell(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._queue.put_nowait((THOUGHT, text))

    @property
    def _is_cut(self) -> bool:
        return self.result is not None and self._answer.is_cut(self.result.solution)

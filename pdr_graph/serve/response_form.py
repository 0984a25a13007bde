"""The objects and events of a response, whose id names the run's thread.

So a response can be read again, continued and deleted for as long as its run is kept, by any server
of the same store.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlencode

from openai import BaseModel as ReplyObject
from openai.types import responses as api
from openai.types.responses import response_reasoning_summary_part_added_event as part_added
from openai.types.responses import response_reasoning_summary_part_done_event as part_done
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_reasoning_item import Summary
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from openai.types.shared import ResponseFormatText
from pydantic import JsonValue

from pdr_graph.config import PDRConfig
from pdr_graph.run import Result
from pdr_graph.serve.protocol import PDRUsage, Report
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.serve.reply import budgets_of, is_truncated, json_of, report_of
from pdr_graph.serve.request import ResponseId
from pdr_graph.serve.runner import StoredRun

PLAIN: Literal["text"] = "text"
"""The one format of a response's text."""


class RunResponseUsage(api.ResponseUsage):
    """B_total, as OpenAI counts tokens; described for the OpenAPI document."""

    pdr: PDRUsage


class RunResponse(api.Response):
    """The reply, of which the output is the run's progress and its answer."""

    output: list[api.ResponseReasoningItem | api.ResponseOutputMessage]  # type: ignore[assignment]  # what is sent of a longer list
    instructions: str | None = None
    tools: list[JsonValue]  # type: ignore[assignment]  # always empty
    tool_choice: Literal["none"]
    usage: RunResponseUsage | None = None
    pdr: Report | dict[str, JsonValue]


class DeletedResponse(ReplyObject):
    """What `DELETE` answers with."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


Status = Literal["completed", "failed", "in_progress", "cancelled", "incomplete"]


class ResponseForm:
    """Makes the objects of one reply, and numbers the events of its stream."""

    end = b""

    def __init__(
        self, response_id: ResponseId, config: PDRConfig, about: Mapping[str, Any]
    ) -> None:
        """Begin a reply; `about` are fields of the request that the response repeats."""
        self._id = response_id
        self._config = config
        self._about = about
        self._created = time.time()
        self._number = 0
        self._thought: list[str] = []
        self._text: list[str] = []
        self._answers = False
        """Whether the message has begun, and the reasoning is over."""

    def whole(self, result: Result, text: str, thought: str, *, cut: bool) -> ReplyObject:
        """Return the reply to a request that does not stream."""
        self._thought, self._text = [thought] if thought else [], [text]
        self._answers = True
        return self._ended(result, cut=cut)

    def opening(self) -> list[ReplyObject]:
        """Return the first events; they name the thread, in case the stream breaks."""
        begun = self._response("in_progress", self._config, [])
        return [
            api.ResponseCreatedEvent(type="response.created", response=begun, **self._next()),
            api.ResponseInProgressEvent(
                type="response.in_progress", response=begun, **self._next()
            ),
        ]

    def thought(self, text: str) -> list[ReplyObject]:
        """Return events of progress, or of the model's own thought.

        A second attempt at the call may think again when the answer has begun. The reasoning is
        over then, and that thought is not sent.
        """
        if self._answers:
            return []
        events: list[ReplyObject] = []
        place = {"item_id": self._reasoning_id, "output_index": 0}
        if not self._thought:
            events += [
                self._item_added(self._reasoning("in_progress", []), 0),
                api.ResponseReasoningSummaryPartAddedEvent(
                    type="response.reasoning_summary_part.added",
                    part=part_added.Part(type="summary_text", text=""),
                    summary_index=0,
                    **place,
                    **self._next(),
                ),
            ]
        self._thought.append(text)
        events.append(
            api.ResponseReasoningSummaryTextDeltaEvent(
                type="response.reasoning_summary_text.delta",
                delta=text,
                summary_index=0,
                **place,
                **self._next(),
            )
        )
        return events

    def text(self, text: str) -> list[ReplyObject]:
        """Return events of a piece of the answer."""
        events = self._answer_begun()
        self._text.append(text)
        events.append(
            api.ResponseTextDeltaEvent(
                type="response.output_text.delta",
                delta=text,
                logprobs=[],
                **self._text_place,
                **self._next(),
            )
        )
        return events

    def closing(self, result: Result, *, cut: bool) -> list[ReplyObject]:
        """Return the last events, with the whole reply in the very last."""
        events = self._answer_begun()
        whole = self._ended(result, cut=cut)
        message = whole.output[-1]
        part = _text_part("".join(self._text))
        events += [
            api.ResponseTextDoneEvent(
                type="response.output_text.done",
                text=part.text,
                logprobs=[],
                **self._text_place,
                **self._next(),
            ),
            api.ResponseContentPartDoneEvent(
                type="response.content_part.done", part=part, **self._text_place, **self._next()
            ),
            self._item_done(message, self._message_index),
        ]
        if whole.status == "incomplete":
            last: ReplyObject = api.ResponseIncompleteEvent(
                type="response.incomplete", response=whole, **self._next()
            )
        else:
            last = api.ResponseCompletedEvent(
                type="response.completed", response=whole, **self._next()
            )
        return [*events, last]

    def failure(self, refusal: RefusalError) -> bytes:
        """Return the event of an error that ends a stream, with what there is of the answer."""
        # Where nothing but a sign of life was sent, the stream must yet begin.
        opening = b"" if self._number else b"".join(map(self.event, self.opening()))
        error = api.ResponseError(
            code=_ERROR_CODES.get(refusal.status, "server_error"), message=str(refusal)
        )
        failed = self._response("failed", self._config, self._output("incomplete"), error=error)
        event = api.ResponseFailedEvent(type="response.failed", response=failed, **self._next())
        return opening + self.event(event)

    def event(self, each: ReplyObject) -> bytes:
        """Return a server-sent event, which bears the name of its type."""
        name = str(each.type).encode()  # type: ignore[attr-defined]  # every event has one
        return b"event: " + name + b"\ndata: " + json_of(each) + b"\n\n"

    def _answer_begun(self) -> list[ReplyObject]:
        """End the reasoning and begin the message, if that has not been done."""
        if self._answers:
            return []
        self._answers = True
        events: list[ReplyObject] = []
        if self._thought:
            place = {"item_id": self._reasoning_id, "output_index": 0, "summary_index": 0}
            text = "".join(self._thought)
            events += [
                api.ResponseReasoningSummaryTextDoneEvent(
                    type="response.reasoning_summary_text.done", text=text, **place, **self._next()
                ),
                api.ResponseReasoningSummaryPartDoneEvent(
                    type="response.reasoning_summary_part.done",
                    part=part_done.Part(type="summary_text", text=text),
                    **place,
                    **self._next(),
                ),
                self._item_done(self._reasoning("completed", self._thought), 0),
            ]
        return [
            *events,
            self._item_added(self._message("in_progress", []), self._message_index),
            api.ResponseContentPartAddedEvent(
                type="response.content_part.added",
                part=_text_part(""),
                **self._text_place,
                **self._next(),
            ),
        ]

    def _ended(self, result: Result, *, cut: bool) -> api.Response:
        short = is_truncated(result) and not cut
        status: Literal["completed", "incomplete"] = "incomplete" if short else "completed"
        return self._response(
            status, result.config, self._output(status), **_outcome(result, status, time.time())
        )

    def _output(self, status: Literal["completed", "incomplete"]) -> list[api.ResponseOutputItem]:
        output: list[api.ResponseOutputItem] = []
        if self._thought:
            over = "completed" if self._answers else status
            output.append(self._reasoning(over, self._thought))
        if self._answers:
            output.append(self._message(status, [_text_part("".join(self._text))]))
        return output

    def _response(
        self, status: Status, config: PDRConfig, output: list[api.ResponseOutputItem], **more: Any
    ) -> api.Response:
        given = {**self._about, "created_at": self._created, **more}
        return _response(self._id, config, status=status, output=output, **given)

    def _reasoning(
        self, status: Literal["completed", "in_progress", "incomplete"], texts: list[str]
    ) -> api.ResponseReasoningItem:
        summary = [Summary(type="summary_text", text="".join(texts))] if texts else []
        return api.ResponseReasoningItem(
            id=self._reasoning_id, type="reasoning", summary=summary, status=status
        )

    def _message(
        self,
        status: Literal["completed", "in_progress", "incomplete"],
        parts: list[api.ResponseOutputText],
    ) -> api.ResponseOutputMessage:
        return _message_of(self._id, status, parts)

    def _item_added(self, item: api.ResponseOutputItem, index: int) -> ReplyObject:
        return api.ResponseOutputItemAddedEvent(
            type="response.output_item.added", item=item, output_index=index, **self._next()
        )

    def _item_done(self, item: api.ResponseOutputItem, index: int) -> ReplyObject:
        return api.ResponseOutputItemDoneEvent(
            type="response.output_item.done", item=item, output_index=index, **self._next()
        )

    @property
    def _reasoning_id(self) -> str:
        return f"rs_{self._id.suffix}"

    @property
    def _message_index(self) -> int:
        return 1 if self._thought else 0

    @property
    def _text_place(self) -> dict[str, Any]:  # Any: fields of events
        return {
            "item_id": f"msg_{self._id.suffix}",
            "output_index": self._message_index,
            "content_index": 0,
        }

    def _next(self) -> dict[str, int]:
        number, self._number = self._number, self._number + 1
        return {"sequence_number": number}


def stored_response(response_id: ResponseId, run: StoredRun) -> api.Response:
    """Return a response as it is kept: progress is not, nor what the request said of itself."""
    result = run.result
    changes = urlencode(run.config.changes, safe=",")
    model = f"{run.config.preset}?{changes}" if changes else run.config.preset
    about = {"model": model, "created_at": run.written_s, "instructions": None}
    if result is None:
        status = "in_progress" if run.running else "incomplete"
        return _response(response_id, run.config, status=status, output=[], **about)
    ended: Literal["completed", "incomplete"]
    ended = "incomplete" if is_truncated(result) else "completed"
    message = _message_of(response_id, ended, [_text_part(result.solution)])
    outcome = _outcome(result, ended, run.written_s)
    return _response(response_id, run.config, status=ended, output=[message], **about, **outcome)


def _response(response_id: ResponseId, config: PDRConfig, **more: Any) -> api.Response:
    return api.Response(
        **{
            "id": str(response_id),
            "object": "response",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "max_output_tokens": config.max_tokens,
            "metadata": {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "temperature": config.temperature,
            "text": api.ResponseTextConfig(format=ResponseFormatText(type=PLAIN)),
            "tool_choice": "none",
            "tools": [],
            "top_p": config.top_p,
            "truncation": "disabled",
            "usage": None,
            "pdr": {"thread_id": response_id.thread_id},
            **more,
        }
    )


def _outcome(result: Result, status: str, now_s: float) -> dict[str, Any]:  # Any: fields
    short = status == "incomplete"
    return {
        "completed_at": None if short else now_s,
        "incomplete_details": IncompleteDetails(reason="max_output_tokens") if short else None,
        "usage": _usage(result),
        "pdr": report_of(result),
    }


def _usage(result: Result) -> api.ResponseUsage:
    """Return B_total as OpenAI counts tokens, with the other budgets under `pdr`."""
    ledger, total = result.ledger.to_json(), result.ledger.total()
    return api.ResponseUsage(
        input_tokens=ledger["prompt_tokens"],
        input_tokens_details=InputTokensDetails(
            cached_tokens=total["cached_tokens"], cache_write_tokens=0
        ),
        output_tokens=ledger["completion_tokens"],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=total["reasoning_tokens"]),
        total_tokens=ledger["b_total"],
        pdr=budgets_of(result),
    )


def _message_of(
    response_id: ResponseId,
    status: Literal["completed", "in_progress", "incomplete"],
    parts: Sequence[api.ResponseOutputText],
) -> api.ResponseOutputMessage:
    return api.ResponseOutputMessage(
        id=f"msg_{response_id.suffix}",
        type="message",
        role="assistant",
        status=status,
        content=list(parts),
    )


def _text_part(text: str) -> api.ResponseOutputText:
    return api.ResponseOutputText(type="output_text", text=text, annotations=[], logprobs=[])


_ERROR_CODES: Mapping[int, Literal["invalid_prompt", "rate_limit_exceeded"]] = {
    400: "invalid_prompt",
    429: "rate_limit_exceeded",
}

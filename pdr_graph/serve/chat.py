"""OpenAI's chat completions: what a request asks for, and the objects of its reply.

https://platform.openai.com/docs/api-reference/chat
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from openai import BaseModel as ReplyObject
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pdr_graph.conversation import Turn
from pdr_graph.run import Result
from pdr_graph.serve.protocol import (
    CONTENT_SCHEMA,
    AnswerRequest,
    Inquiry,
    PDRUsage,
    Report,
    StreamOptions,
    ToolCalls,
    Whole,
    document,
    text_of,
)
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.serve.reply import budgets_of, is_truncated, json_of, report_of
from pdr_graph.serve.request import SolveRequest

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
_MUST_SPEAK = frozenset({"system", "developer", "user"})


class ChatMessage(BaseModel):
    """One turn; other fields of a client's history (names, reasoning) are not read."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: Annotated[JsonValue, Field(json_schema_extra=CONTENT_SCHEMA)] = None
    """None where an assistant only thought or called tools."""


Stop = Annotated[str, Field(min_length=1, max_length=256)]

_WITHOUT_EFFECT = frozenset(
    {
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)


class ChatRequest(AnswerRequest):
    """A request for one answer."""

    without_effect: ClassVar[frozenset[str]] = _WITHOUT_EFFECT
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "audio": (),
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "moderation": (),
        "presence_penalty": (0,),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "web_search_options": (),
    }

    model_config = ConfigDict(json_schema_extra=lambda schema: document(schema, _WITHOUT_EFFECT))

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(None, ge=1)
    """Completion tokens of each call, the one that writes the answer included."""
    max_completion_tokens: Whole | None = Field(None, ge=1)
    """The newer name of `max_tokens`, which it overrides."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    """Texts before which the answer ends; drafts are written to their end."""
    n: Whole | None = Field(None, ge=1, le=128)
    """Only 1: send as many requests as you want answers."""

    def inquiry(self) -> Inquiry:
        """Return what is asked for.

        Raises:
            RefusalError: something in it cannot be honoured.
        """
        if self.n not in {None, 1}:
            raise RefusalError(
                400,
                f"n is {self.n}, and this server answers a request once; send {self.n} requests",
                param="n",
                code="unsupported_value",
            )
        self.refuse_unsupported()
        stop = self.stop or ()
        return Inquiry(
            model=self.model,
            turns=_turns(self.messages),
            turns_field="messages",
            sampling={
                "temperature": self.temperature,
                "top_p": self.top_p,
                "max_tokens": self.max_completion_tokens or self.max_tokens,
            },
            pdr=self.pdr or {},
            seed=self.seed,
            thread_id=self.thread_id,
            stops=(stop,) if isinstance(stop, str) else tuple(stop),
        )

    def form(self, asked: SolveRequest) -> "ChatForm":
        """Return what makes the objects of the reply."""
        options = self.stream_options
        return ChatForm(asked, include_usage=bool(options and options.include_usage))


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Return what was said; an assistant's thought and its calls of tools are read past.

    Raises:
        RefusalError: a message holds something else than text, or nothing where it must.
    """
    calls, turns = ToolCalls(), []
    for index, message in enumerate(messages):
        place, extra = f"messages[{index}]", message.model_extra or {}
        if message.content is None and message.role in _MUST_SPEAK:
            raise RefusalError(
                400,
                f"{place}.content is null or missing; a {message.role} message needs text",
                param=f"{place}.content",
            )
        text = text_of(message.content, f"{place}.content")
        if message.role == "assistant":
            _note_calls(calls, extra)
            if not text and extra.get("audio"):
                raise RefusalError(
                    400,
                    f"{place}.audio is sound, and this server takes only text; send what was said",
                    param=f"{place}.audio",
                    code="unsupported_content",
                )
            refusal = extra.get("refusal")
            turns.append(Turn("assistant", text or (refusal if isinstance(refusal, str) else "")))
        elif message.role in {"tool", "function"}:
            turns.append(calls.result(extra.get("tool_call_id"), extra.get("name"), text))
        else:
            turns.append(Turn(message.role, text))
    return turns


def _note_calls(calls: ToolCalls, message: Mapping[str, Any]) -> None:  # Any: JSON
    given = message.get("tool_calls")
    for call in given if isinstance(given, list) else []:
        if isinstance(call, dict):
            # The call of a custom tool has its text under `input`.
            what = call.get("function") or call.get("custom")
            if isinstance(what, dict):
                arguments = what.get("arguments", what.get("input"))
                calls.note(call.get("id"), what.get("name"), arguments)


class RunUsage(CompletionUsage):
    """B_total, as OpenAI counts tokens; described for the OpenAPI document."""

    pdr: PDRUsage


class Completion(ChatCompletion):
    """The reply to a request that does not stream; its progress is the message's `reasoning`."""

    usage: RunUsage
    pdr: Report


class ChatForm:
    """Makes the objects of one reply, which share id, time and model."""

    end = b"data: [DONE]\n\n"

    def __init__(self, asked: SolveRequest, *, include_usage: bool) -> None:
        """Begin a reply; `include_usage` ends a stream with a chunk of usage."""
        self._asked = asked
        self._include_usage = include_usage
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, result: Result, text: str, thought: str, *, cut: bool) -> ReplyObject:
        """Return the reply to a request that does not stream."""
        said = _thought(thought) if thought else {}
        message = ChatCompletionMessage(role="assistant", content=text, refusal=None, **said)
        choice = Choice(
            index=0, message=message, logprobs=None, finish_reason=_finish_reason(result, cut=cut)
        )
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._asked.model,
            choices=[choice],
            usage=_usage(result),
            pdr=report_of(result),
        )

    def opening(self) -> list[ReplyObject]:
        """Return the first chunk of a stream; it names the thread, in case the stream breaks."""
        delta = ChoiceDelta(role="assistant", content="")
        return [self._chunk(delta, pdr={"thread_id": self._asked.thread_id})]

    def thought(self, text: str) -> list[ReplyObject]:
        """Return a chunk of progress, or of the model's own thought."""
        return [self._chunk(ChoiceDelta(**_thought(text)))]

    def text(self, text: str) -> list[ReplyObject]:
        """Return a chunk of the answer."""
        return [self._chunk(ChoiceDelta(content=text))]

    def closing(self, result: Result, *, cut: bool) -> list[ReplyObject]:
        """Return the last chunks: why the answer ended, what the run was, what it cost."""
        finish = _finish_reason(result, cut=cut)
        last = self._chunk(ChoiceDelta(), finish, pdr=report_of(result))
        if not self._include_usage:
            return [last]
        return [last, self._of_choices([], usage=_usage(result))]

    def failure(self, refusal: RefusalError) -> bytes:
        """Return the event of an error that ends a stream; clients raise it."""
        return b"data: " + json.dumps(refusal.body()).encode() + b"\n\n"

    def event(self, each: ReplyObject) -> bytes:
        """Return a server-sent event."""
        return b"data: " + json_of(each) + b"\n\n"

    def _chunk(
        self,
        delta: ChoiceDelta,
        finish: Literal["stop", "length"] | None = None,
        **more: Any,  # Any: fields of our own
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish)
        usage = {"usage": None} if self._include_usage else {}
        return self._of_choices([choice], **usage, **more)

    def _of_choices(self, choices: list[ChunkChoice], **more: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._asked.model,
            choices=choices,
            **more,
        )


def _finish_reason(result: Result, *, cut: bool) -> Literal["stop", "length"]:
    """Return `length` where the model ran into its token limit and no stop text came first."""
    return "length" if is_truncated(result) and not cut else "stop"


def _usage(result: Result) -> CompletionUsage:
    """Return B_total as OpenAI counts tokens, with the other budgets under `pdr`.

    All leaves are whole numbers: clients add up the usage of several calls, key by key.
    """
    ledger, total = result.ledger.to_json(), result.ledger.total()
    return CompletionUsage(
        prompt_tokens=ledger["prompt_tokens"],
        completion_tokens=ledger["completion_tokens"],
        total_tokens=ledger["b_total"],
        prompt_tokens_details=PromptTokensDetails(cached_tokens=total["cached_tokens"]),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=total["reasoning_tokens"]
        ),
        pdr=budgets_of(result),
    )


def _thought(text: str) -> dict[str, Any]:  # Any: extra fields of typed objects
    # vLLM's name for it, and the one that most clients read.
    return {"reasoning": text, "reasoning_content": text}

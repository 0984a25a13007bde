"""OpenAI's responses: what a request asks for.

https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, JsonValue

from pdr_graph.conversation import Turn
from pdr_graph.llm.tokens import wellformed
from pdr_graph.serve.protocol import (
    CONTENT_SCHEMA,
    AnswerRequest,
    Inquiry,
    ToolCalls,
    Whole,
    document,
    only_text,
    text_of,
)
from pdr_graph.serve.refusal import RefusalError
from pdr_graph.serve.request import ResponseId, SolveRequest
from pdr_graph.serve.response_form import PLAIN, ResponseForm

Json = dict[str, JsonValue]

_WITHOUT_EFFECT = frozenset(
    {
        "access_programs",
        "max_tool_calls",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "stream_options",
        "truncation",
        "user",
    }
)
_ROLES = frozenset({"system", "developer", "user", "assistant"})

_INPUT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "role": {"enum": sorted(_ROLES)},
                    "content": CONTENT_SCHEMA,
                },
            },
        },
    ]
}


class ResponsesRequest(AnswerRequest):
    """A request for one answer."""

    without_effect: ClassVar[frozenset[str]] = _WITHOUT_EFFECT
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
    }

    model_config = ConfigDict(json_schema_extra=lambda schema: document(schema, _WITHOUT_EFFECT))

    input: Annotated[JsonValue, Field(json_schema_extra=_INPUT_SCHEMA)]
    """The task: text, or a list of items."""
    instructions: str | None = None
    """A system message for this response; one that continues it does not inherit it."""
    previous_response_id: str | None = Field(None, max_length=512)
    """The response whose conversation `input` continues; its run must be kept."""
    max_output_tokens: Whole | None = Field(None, ge=1)
    """Completion tokens of each call, the one that writes the answer included."""
    store: bool | None = None
    """False: a run without a name is not kept, and so can be neither resumed nor read again."""
    text: dict[str, JsonValue] | None = None
    """Only plain text can be asked for."""
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    """Nothing of what could be included exists here; log-probabilities are refused."""

    def inquiry(self, earlier: Sequence[Turn] = ()) -> Inquiry:
        """Return what is asked for; `earlier` is the conversation that it continues.

        Raises:
            RefusalError: something in it cannot be honoured.
        """
        self.refuse_unsupported()
        form = (self.text or {}).get("format")
        if form is not None and (not isinstance(form, dict) or form.get("type") != PLAIN):
            raise _unsupported("text.format", "text.format must be of type 'text' here")
        if "message.output_text.logprobs" in (self.include or ()):
            raise _unsupported("include", "include: log-probabilities are not supported here")
        rules = [Turn("system", self.instructions)] if self.instructions else []
        return Inquiry(
            model=self.model,
            turns=[*rules, *earlier, *_turns(self.input)],
            turns_field="input",
            sampling={
                "temperature": self.temperature,
                "top_p": self.top_p,
                "max_tokens": self.max_output_tokens,
            },
            pdr=self.pdr or {},
            seed=self.seed,
            thread_id=self.thread_id,
            stored=self.store is not False,
        )

    def form(self, asked: SolveRequest) -> ResponseForm:
        """Return what makes the objects of the reply."""
        rules = wellformed(self.instructions or "")
        labels = {} if self.metadata is None else self.metadata.model_dump(exclude_none=True)
        about = {
            "model": self.model,
            "instructions": None if self.instructions is None else rules,
            "metadata": {
                wellformed(name): wellformed(value)
                for name, value in labels.items()
                if isinstance(value, str)
            },
            "previous_response_id": self.previous_response_id,
        }
        return ResponseForm(ResponseId.of(asked, len(rules.strip())), asked.config, about)


def _unsupported(field: str, sentence: str) -> RefusalError:
    return RefusalError(400, sentence, param=field, code="unsupported_parameter")


def _turns(given: JsonValue) -> list[Turn]:
    """Return what was said; thoughts, and calls of tools, are read past.

    Raises:
        RefusalError: an item is no text, or refers to something that is not in the request.
    """
    if isinstance(given, str):
        return [Turn("user", given)]
    if not isinstance(given, list):
        raise RefusalError(400, "input must be text or a list of items", param="input")
    calls, turns = ToolCalls(), []
    for index, item in enumerate(given):
        place = f"input[{index}]"
        if not isinstance(item, dict):
            raise RefusalError(400, f"{place} must be an item, such as a message", param=place)
        turns.append(_turn(item, place, calls))
    return [each for each in turns if each is not None]


def _turn(item: Json, place: str, calls: ToolCalls) -> Turn | None:
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item, place)
    if not isinstance(kind, str):
        raise RefusalError(400, f"{place}.type must be text", param=f"{place}.type")
    if kind.endswith("_call"):
        calls.note(item.get("call_id"), item.get("name"), item.get("arguments", item.get("input")))
        # A tool that ran at another server has its result in the item.
        output = item.get("output")
        return Turn("tool", output) if isinstance(output, str) else None
    if kind.endswith("_call_output"):
        text = text_of(item.get("output"), f"{place}.output")
        return calls.result(item.get("call_id"), item.get("name"), text)
    if kind == "reasoning" or kind.startswith("mcp_"):
        return None
    if kind in {"item_reference", "compaction"}:
        raise RefusalError(
            400,
            f"{place} is of type {kind!r}, whose text is not in the request; send the messages "
            "themselves, or previous_response_id",
            param=place,
            code="unsupported_content",
        )
    raise only_text(kind, place)


def _message(item: Json, place: str) -> Turn:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise RefusalError(
            400, f"{place}.role must be one of {', '.join(sorted(_ROLES))}", param=f"{place}.role"
        )
    if content is None and role != "assistant":
        raise RefusalError(
            400,
            f"{place}.content is null or missing; a {role} message needs text",
            param=f"{place}.content",
        )
    return Turn(role, text_of(content, f"{place}.content"))

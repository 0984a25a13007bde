"""OpenAI's chat completions: the requests that can be honoured, and the replies.

A field that would change the answer and cannot be honoured is refused, never dropped in silence.
Fields that change nothing here (accounting, caching, effort hints) are accepted and ignored. The
replies are described for the OpenAPI document alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pdr_graph.config import PDRConfig
from pdr_graph.serve.refusal import RefusalError

Role = Literal["system", "developer", "user", "assistant"]


class TextPart(BaseModel):
    """A part of a message's content; only text can be read."""

    type: Literal["text", "input_text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; other fields of a client's history (names, reasoning) are not read."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


ThreadId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@/-]{1,128}$")]


class Metadata(BaseModel):
    """A client's labels; `thread_id` names the run, the others are not read."""

    model_config = ConfigDict(extra="allow")

    thread_id: ThreadId | None = None
    """A new name starts a run; a known one resumes its run, or replays it if it has ended."""


Stop = Annotated[str, Field(min_length=1, max_length=256)]


_WITHOUT_EFFECT = frozenset(
    {
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Fields that change what a call costs or where it is kept, not what is asked."""


def _document(schema: dict[str, Any]) -> None:
    """Say in the schema what `refuse_unsupported` refuses, and what `pdr` may hold."""
    schema["additionalProperties"] = False
    schema["properties"] |= {name: {} for name in sorted(_WITHOUT_EFFECT)}
    schema["properties"]["pdr"] = {"anyOf": [PDRConfig.model_json_schema(), {"type": "null"}]}


class ChatRequest(BaseModel):
    """A request for one answer."""

    model_config = ConfigDict(
        extra="allow", use_attribute_docstrings=True, json_schema_extra=_document
    )

    model: str = Field(min_length=1, max_length=512)
    """A preset; settings of `PDRConfig` may follow, as in `pdr?widths=8,4&kappa=1024`."""
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature of drafts and refinement."""
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    """Completion tokens of each call, the one that writes the answer included."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of `max_tokens`, which it overrides."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """Texts before which the answer ends; drafts are written to their end."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    """Seed of the run. A repeat of the request is a new sample with a seed of its own, unless the
    server is started with `--repeatable`. `pdr.seed` is always taken as it is."""
    n: int | None = Field(None, ge=1, le=128)
    """Only 1: send as many requests as you want answers."""
    metadata: Metadata | None = None
    pdr: dict[str, JsonValue] | None = None
    """Settings of `PDRConfig` for this request alone."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
"""Known fields that are not honoured, with the values that ask for nothing."""


def refuse_unsupported(request: ChatRequest) -> None:
    """Refuse what would have to be dropped.

    Raises:
        RefusalError: 400, with the name of the field.
    """
    if request.n not in {None, 1}:
        raise RefusalError(
            400,
            f"n is {request.n}, and this server answers a request once; send {request.n} requests",
            param="n",
            code="unsupported_value",
        )
    extra: dict[str, Any] = request.model_extra or {}  # Any: JSON
    for name, value in extra.items():
        if name in _WITHOUT_EFFECT or value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name in _NEUTRAL:
            message = f"{name} is not supported here; leave it out"
        else:
            message = f"unknown field {name!r}; settings of a run go into 'pdr'"
        raise RefusalError(400, message, param=name, code="unsupported_parameter")
    for index, message_ in enumerate(request.messages):
        if (message_.model_extra or {}).get("tool_calls"):
            raise RefusalError(
                400,
                f"messages[{index}] calls tools, which are not supported here; leave it out",
                param=f"messages[{index}].tool_calls",
                code="unsupported_parameter",
            )


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorBody(BaseModel):
    """Why a request has no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error object."""

    error: ErrorBody


class AnswerMessage(_Open):
    """The answer, and the progress that led to it under `reasoning`."""

    role: Literal["assistant"]
    content: str


class ChatChoice(_Open):
    """The one answer of a request."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]


class PDRUsage(BaseModel):
    """Tokens of the whole run: all calls, and those on the critical path."""

    b_total: int
    b_seq: int
    b_total_nominal: int
    b_seq_nominal: int
    calls: int
    failed: int
    aborted: int


class RunUsage(_Open):
    """B_total, as OpenAI counts tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    pdr: PDRUsage


class Report(_Open):
    """The run: thread, short answer, verdict, notes, ledger per node and round."""

    thread_id: str
    preset: str
    answer: str | None
    verdict: dict[str, JsonValue]
    notes: list[str]
    ledger: dict[str, Any]  # Any: as `pdr-graph solve --json` prints it
    seconds: float


class Completion(_Open):
    """The reply to a request that does not stream."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: RunUsage
    pdr: Report


class Model(_Open):
    """One preset."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """Context window of the model behind it, in tokens; None if it does not tell."""
    pdr: dict[str, JsonValue]
    """Its settings."""


class ModelList(BaseModel):
    """All presets on offer."""

    object: Literal["list"]
    data: list[Model]


class HealthBody(BaseModel):
    """Whether this server takes requests."""

    status: Literal["ok", "draining"]
    model: str
    running: int
    waiting: int

"""The shapes of what is answered, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue


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


class Choice(_Open):
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
    choices: list[Choice]
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


class Health(BaseModel):
    """Whether this server takes requests."""

    status: Literal["ok", "draining"]
    model: str
    running: int
    waiting: int

"""What both of OpenAI's protocols share: the fields of a request, its messages, and our additions.

A field that would change the answer and cannot be honoured is refused, never dropped in silence.
Fields that change nothing here (accounting, caching, effort hints) are accepted and ignored.
Requests are read leniently, since clients send back histories that other servers wrote. Replies are
made of `openai.types`; the classes below add what a run tells beyond them.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from openai.types import Model
from openai.types.shared import ErrorObject
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    ValidationError,
)

from pdr_graph.config import PDRConfig
from pdr_graph.conversation import Turn
from pdr_graph.serve.refusal import RefusalError, malformed
from pdr_graph.validation import Fault

MOST_OF_A_MODEL = 512
"""Characters of a model's name, with its settings."""
THREAD = r"^[A-Za-z0-9_.:@/-]{1,128}$"
"""What a thread may be called."""
ThreadId = Annotated[str, Field(pattern=THREAD)]


class Metadata(BaseModel):
    """A client's labels; `thread_id` names the run, the others are not read."""

    model_config = ConfigDict(extra="allow")

    thread_id: ThreadId | None = None
    """A new name starts a run; a known one resumes its run, or replays it if it has ended."""


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    include_usage: StrictBool | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What a request asks for, whichever protocol it came by."""

    model: str
    turns: Sequence[Turn]
    turns_field: str
    """The request's field that holds the turns, for refusals."""
    sampling: Mapping[str, object]
    """Fields of `PDRConfig` for which the protocol has its own names; None counts as not given."""
    pdr: Mapping[str, object]
    """Settings of `PDRConfig` for this request alone."""
    seed: int | None
    thread_id: str | None
    """None where the client names none."""
    stops: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    stored: bool = True
    """Whether a run without a name may be kept."""


def document(schema: dict[str, Any], without_effect: frozenset[str]) -> None:
    """Say in a request's schema what `refuse_unsupported` refuses, and what `pdr` may hold."""
    schema["additionalProperties"] = False
    schema["properties"] |= {name: {} for name in sorted(without_effect)}
    schema["properties"]["pdr"] = {"anyOf": [PDRConfig.model_json_schema(), {"type": "null"}]}


def _no_text(value: object) -> object:
    """Refuse text that pydantic would turn into a number."""
    if isinstance(value, str | bool):
        raise ValueError("a number is needed here")
    return value


Whole = Annotated[int, BeforeValidator(_no_text)]
"""A whole number, which is not written as text."""
Real = Annotated[float, BeforeValidator(_no_text)]
"""A number, which is not written as text."""


class AnswerRequest(BaseModel):
    """A request for one answer."""

    without_effect: ClassVar[frozenset[str]]
    """Fields that change what a call costs or where it is kept, not what is asked."""
    neutral: ClassVar[Mapping[str, tuple[object, ...]]]
    """Known fields that are not honoured, each with the values that have no effect and are
    allowed."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    model: str = Field(min_length=1, max_length=MOST_OF_A_MODEL)
    """A preset; settings of `PDRConfig` may follow, as in `pdr?widths=8,4&kappa=1024`."""
    stream: StrictBool | None = None
    temperature: Real | None = Field(None, ge=0, le=2)
    """Sampling temperature of drafts and refinement."""
    top_p: Real | None = Field(None, gt=0, le=1)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**64)
    """Seed of the run. A repeat of the request is a new sample with a seed of its own, unless the
    server is started with `--repeatable`. `pdr.seed` is always taken as it is."""
    metadata: Metadata | None = None
    pdr: dict[str, JsonValue] | None = None
    """Settings of `PDRConfig` for this request alone."""

    @property
    def thread_id(self) -> str | None:
        """The run's name; None where the client names none."""
        return self.metadata.thread_id if self.metadata else None

    def refuse_unsupported(self) -> None:
        """Refuse what would have to be dropped.

        Raises:
            RefusalError: 400, with the name of the field.
        """
        extra: dict[str, Any] = self.model_extra or {}  # Any: JSON
        for name, value in extra.items():
            asks_nothing = value is None or value in self.neutral.get(name, ())
            if name in self.without_effect or asks_nothing:
                continue
            if name in self.neutral:
                message = f"{name} is not supported here; leave it out"
            else:
                message = f"unknown field {name!r}; settings of a run go into 'pdr'"
            raise RefusalError(400, message, param=name, code="unsupported_parameter")


_COMPONENTS = "#/components/schemas/{model}"


def body_of(kind: type[AnswerRequest]) -> dict[str, Any]:
    """Describe a body that we read ourselves: FastAPI would read it in the event loop."""
    schema = {"$ref": _COMPONENTS.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def components_of(kind: type[AnswerRequest]) -> dict[str, Any]:
    """Return the schema of a request, and those of its parts, by name."""
    schema = kind.model_json_schema(ref_template=_COMPONENTS)
    parts = schema.pop("$defs", {})
    return {kind.__name__: schema, **parts}


MOST_FIELDS = 256
"""Fields that a request may have."""
MOST_ITEMS = 4096
"""Items that a field may hold, or a list in it; conversations are bounded by the guard alone."""

MOST_LEVELS = 64
"""Lists and objects within each other that a body may hold."""
MOST_CHARACTERS = 256
"""Length of a field's name."""

AnyRequest = TypeVar("AnyRequest", bound=AnswerRequest)


def read_request(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Read a body; called in a thread, as it may take a while.

    Sizes are checked first: pydantic would describe every fault, and only the first is reported.

    Raises:
        RefusalError: 400, it is no JSON, holds too much, or does not fit.
    """
    try:
        data = json.loads(
            body.decode("utf-8-sig"),
            parse_int=_whole,
            parse_constant=_Misfit,
            object_pairs_hook=_fields,
        )
    except (ValueError, RecursionError):
        raise RefusalError(400, "the body is not valid JSON", code="invalid_json") from None
    for place, why in _misfits(data):
        field = place or "the body"
        raise RefusalError(400, f"{field}: {why}", param=field, code="invalid_value")
    if isinstance(data, dict):
        for place, number, what, most in _sizes(data):
            if number > most:
                raise RefusalError(
                    400,
                    f"{place} has {number} {what}, and {most} are the most",
                    code="too_many_values",
                )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        fault = Fault.of(error)
        raise malformed(fault, fault.path) from None


class _Misfit(str):
    """A number that JSON or this server does not know, as it was written."""


class _Repeated(dict[str, Any]):
    """Fields of which one came twice: readers differ on which of the two counts."""

    name: str


def _whole(text: str) -> int | _Misfit:
    # A longer number takes long to read, and fits no field.
    return int(text) if len(text) <= 20 and -(2**63) <= int(text) < 2**64 else _Misfit(text)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeated = _Repeated(fields)
    counts = Counter(name for name, _ in pairs)
    repeated.name = next(name for name, count in counts.items() if count > 1)
    return repeated


def _misfits(data: Any) -> Iterator[tuple[str, str]]:  # Any: JSON
    """Yield the place of each unusable value, and the reason; one level after the other."""
    level: list[tuple[str, Any]] = [("", data)]
    for depth in range(MOST_LEVELS + 1):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, _Misfit):
                yield place, "the number is none that this server can hold"
            elif isinstance(value, float) and not math.isfinite(value):
                yield place, "the number is too large"
            elif isinstance(value, str) and (at := _half_character(value)) is not None:
                yield place, f"character {at} is half of a pair (a lone surrogate); send the whole"
            elif isinstance(value, dict):
                if isinstance(value, _Repeated):
                    yield place, f"the field {_shown(value.name)} is there twice; send it once"
                if any(_half_character(name) is not None for name in value):
                    yield place, "a name holds half of a pair of characters (a lone surrogate)"
                below += [
                    (f"{place}.{_shown(name)}".lstrip("."), each) for name, each in value.items()
                ]
            elif isinstance(value, list):
                below += [
                    (f"{place}.{index}".lstrip("."), each) for index, each in enumerate(value)
                ]
        if not below:
            return
        if depth == MOST_LEVELS:
            yield below[0][0].partition(".")[0], f"it is nested deeper than {MOST_LEVELS} levels"
        level = below


def _shown(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:64]


def _half_character(text: str) -> int | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _sizes(data: Mapping[str, Any]) -> Iterator[tuple[str, int, str, int]]:
    """Yield for each bounded part its place, its number, the noun of that, and its bound."""
    yield "the body", len(data), "fields", MOST_FIELDS
    for name, value in data.items():
        yield "the name of a field", len(name), "characters", MOST_CHARACTERS
        if name in {"messages", "input"} or not isinstance(value, dict | list):
            continue
        yield name, len(value), "items", MOST_ITEMS
        for inner, more in value.items() if isinstance(value, dict) else ():
            yield f"a name in {name}", len(inner), "characters", MOST_CHARACTERS
            if isinstance(more, dict | list):
                yield f"{name}.{inner}", len(more), "items", MOST_ITEMS


_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts that hold text, by type, and the field that holds it."""
_UNSAID_PARTS = frozenset(
    {"function_call", "reasoning", "reasoning_text", "redacted_thinking", "summary_text"}
    | {"thinking", "tool_call", "tool_use"}
)
"""Parts of an assistant's turn that are no part of what it said: its thought, and its calls."""

CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "null"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"enum": [*_TEXT_PARTS, *sorted(_UNSAID_PARTS)]},
                    **{name: {"type": "string"} for name in dict.fromkeys(_TEXT_PARTS.values())},
                },
                "required": ["type"],
            },
        },
    ]
}
"""JSON schema of a message's content."""


def text_of(content: JsonValue, place: str) -> str:
    """Return the text of a message's content; empty where it says nothing.

    Args:
        content: Text, a list of parts, or None.
        place: Where it is in the request, for refusals.

    Raises:
        RefusalError: it holds something else than text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RefusalError(400, f"{place} must be text or a list of text parts", param=place)
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: JsonValue, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise RefusalError(400, f"{place} must be a part with a type, such as 'text'", param=place)
    if kind in _UNSAID_PARTS:
        return ""
    if kind not in _TEXT_PARTS:
        raise only_text(kind, place)
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        field = f"{place}.{_TEXT_PARTS[kind]}"
        raise RefusalError(400, f"{field} must be text", param=field)
    return text


def only_text(kind: str, place: str) -> RefusalError:
    """Return the refusal of a part that is an image, a sound, a file or the like."""
    return RefusalError(
        400,
        f"{place} is of type {kind[:64]!r}, and this server takes only text; leave it out, or put "
        "it in words",
        param=place,
        code="unsupported_content",
    )


class ToolCalls:
    """The tool calls of a conversation, so that a tool's result is shown with its call.

    Calls by themselves are read past: this server has no tools. Their results are part of what the
    user's question stands on, and become turns.
    """

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}

    def note(self, call_id: JsonValue, name: JsonValue, arguments: JsonValue) -> None:
        """Remember a call; a malformed call is shown with no result."""
        if isinstance(call_id, str) and isinstance(name, str):
            self._asked[call_id] = f"{name}({arguments if isinstance(arguments, str) else ''})"

    def result(self, call_id: JsonValue, name: JsonValue, text: str) -> Turn:
        """Return the turn of a tool that answers."""
        asked = self._asked.get(call_id) if isinstance(call_id, str) else None
        asked = asked or (name if isinstance(name, str) else None)
        return Turn("tool", f"{asked} returned {text}" if asked and text.strip() else text)


class Error(BaseModel):
    """OpenAI's error object."""

    error: ErrorObject


class PDRUsage(BaseModel):
    """Tokens of the whole run: all calls, and those on the critical path."""

    b_total: int
    b_seq: int
    b_total_nominal: int
    b_seq_nominal: int
    calls: int
    failed: int
    aborted: int


class Report(BaseModel):
    """The run: thread, short answer, verdict, notes, ledger per node and round."""

    model_config = ConfigDict(extra="allow")

    thread_id: str
    preset: str
    answer: str | None
    verdict: dict[str, JsonValue]
    notes: list[str]
    ledger: dict[str, Any]  # Any: as `pdr-graph solve --json` prints it
    seconds: float


class PresetModel(Model):
    """One preset."""

    max_model_len: int | None
    """Context window of the model behind it, in tokens; None if it does not tell."""
    pdr: dict[str, JsonValue]
    """Its settings."""


class PresetList(BaseModel):
    """All presets on offer."""

    object: Literal["list"]
    data: list[PresetModel]


class HealthBody(BaseModel):
    """Whether this server takes requests."""

    status: Literal["ok", "draining"]
    model: str
    running: int
    waiting: int

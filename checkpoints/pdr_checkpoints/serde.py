"""The saver's serializer: LangGraph's, which here builds objects of listed types only.

A stored value may name any Python callable, and LangGraph's serializer calls it unless it is told
otherwise. Here a name that is not listed is refused before it is imported, and the refusal is an
error: LangGraph's own strict mode would hand out the object's arguments in its place.

Few bytes can become many objects: a byte of msgpack may be an empty dict, which takes 64. So what a
value will take is counted before it is built, and counted against an `Allowance`.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Final, Literal, NoReturn

import ormsgpack
from langchain_core.load.mapping import SERIALIZABLE_MAPPING
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_NUMPY_ARRAY,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
    JsonPlusSerializer,
)
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from pdr_checkpoints.connect import redact
from pdr_checkpoints.errors import (
    MissingDependencyError,
    SaverError,
    StoreConfigError,
    TooLargeError,
    TypeNotAllowedError,
)

logger = logging.getLogger(__name__)

Allowed = type | tuple[str, str]
"""A class, or the names of its module and of itself."""

_CORE: Final = {
    "builtins": "set frozenset",
    "collections": "deque",
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "ipaddress": "IPv4Address IPv4Interface IPv4Network IPv6Address IPv6Interface IPv6Network",
    "pathlib": "Path PosixPath WindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath",  # where Python 3.13 has them
    "re": "compile",
    "uuid": "UUID",
    "zoneinfo": "ZoneInfo",
    "langchain_core.agents": "AgentAction AgentActionMessageLog AgentFinish AgentStep",
    "langchain_core.documents.base": "Document",
    "langchain_core.messages.ai": "AIMessage AIMessageChunk",
    "langchain_core.messages.base": "BaseMessage BaseMessageChunk",
    "langchain_core.messages.chat": "ChatMessage ChatMessageChunk",
    "langchain_core.messages.function": "FunctionMessage FunctionMessageChunk",
    "langchain_core.messages.human": "HumanMessage HumanMessageChunk",
    "langchain_core.messages.modifier": "RemoveMessage",
    "langchain_core.messages.system": "SystemMessage SystemMessageChunk",
    "langchain_core.messages.tool": "ToolMessage ToolMessageChunk",
    "langchain_core.outputs.chat_generation": "ChatGeneration ChatGenerationChunk",
    "langchain_core.outputs.chat_result": "ChatResult",
    "langchain_core.outputs.generation": "Generation GenerationChunk",
    "langchain_core.outputs.llm_result": "LLMResult",
    "langchain_core.outputs.run_info": "RunInfo",
    "langchain_core.prompt_values": "StringPromptValue ChatPromptValue ChatPromptValueConcrete",
    "langgraph.store.base": "Item GetOp",
    "langgraph.types": "Command Interrupt Overwrite PregelTask Send StateSnapshot TimeoutPolicy",
}
ORDINARY: Final = frozenset(
    (module, name) for module, names in _CORE.items() for name in names.split()
)
"""What needs no listing: plain data of the standard library, of LangChain and of LangGraph, whose
construction runs nothing. It has all that LangGraph itself calls safe."""
PARSER: Final = "fromisoformat"
"""The one method whose name LangGraph stores, of dates."""
OPTION: Final = ormsgpack.OPT_NON_STR_KEYS
VALUE: Final = "a stored value"
NAMELESS: Final = "an object has no name"
MOST_NESTED: Final = 64
"""Objects inside each other. Each is cut out of the one around it, so that its bytes are copied."""
MAX_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
"""Memory that a checkpoint may take by default. Runs take some megabytes."""
MOST_PER_BYTE: Final = 80
"""Bytes of memory that a byte of msgpack takes at most: three make a dict of one item, of 235."""
MOST_PER_BYTE_OF_JSON: Final = 32


class AllowlistSerializer(JsonPlusSerializer):
    """LangGraph's serializer, which builds objects of ordinary and listed types, and no others."""

    def __init__(self, allowed: Iterable[Allowed] = ()) -> None:
        listed = {_named(each) for each in allowed}
        # The same list for the form of early LangGraph, JSON, which it builds itself.
        super().__init__(
            allowed_msgpack_modules=ORDINARY | listed,
            allowed_json_modules=[(*module.split("."), name) for module, name in ORDINARY | listed],
        )
        self.allowed = ORDINARY | listed
        """Module and name of every type that is built."""

    def with_msgpack_allowlist(
        self, extra_allowlist: Iterable[tuple[str, ...] | type]
    ) -> "AllowlistSerializer":
        """Return a serializer that builds objects of more types."""
        extra = {_named(each) for each in extra_allowlist}
        return self if extra <= self.allowed else type(self)(self.allowed | extra)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:  # Any: what was dumped
        """Build a value.

        Raises:
            TypeNotAllowedError: It names a type that is not listed; nothing of it was run.
            MissingDependencyError: It holds a NumPy array, and NumPy is not installed.
            NotImplementedError: It was serialised in a way that LangGraph does not read.
            ValueError: It is cut or altered.
        """
        kind, body = data
        if kind == "msgpack":
            builder = _Builder(self.allowed)
            try:
                return ormsgpack.unpackb(body, ext_hook=builder, option=OPTION)
            except ValueError:
                # ormsgpack replaces what its hook raises.
                if builder.refusal is not None:
                    raise builder.refusal from None
                raise
        if kind == "json":
            json.loads(body, object_hook=self._check_json)
        return super().loads_typed(data)

    def _check_json(self, value: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        if "lc" in value and value.get("type") == "constructor":
            path = value.get("id")
            if not isinstance(path, list) or not all(isinstance(part, str) for part in path):
                raise ValueError(NAMELESS)
            path = SERIALIZABLE_MAPPING.get(tuple(path), tuple(path))
            module, name = ".".join(path[:-1]), path[-1] if path else ""
            if (module, name) not in self.allowed:
                raise TypeNotAllowedError(VALUE, module, name)
        return value


class _Builder:
    """Builds the objects of one value; msgpack calls it for each, the inner ones first."""

    __slots__ = ("allowed", "changed", "depth", "refusal")

    def __init__(self, allowed: frozenset[tuple[str, str]]) -> None:
        self.allowed = allowed
        self.refusal: SaverError | ValueError | None = None
        """Why the value is refused."""
        self.changed: set[tuple[str, str]] = set()
        """Types that do not take what is stored of them."""
        self.depth = 0

    def __call__(self, code: int, data: bytes) -> Any:  # Any: the object
        if self.depth == MOST_NESTED:
            self._refuse(ValueError(f"more than {MOST_NESTED} objects are inside each other"))
        self.depth += 1
        content = ormsgpack.unpackb(data, ext_hook=self, option=OPTION)
        self.depth -= 1
        if code == EXT_DELTA_SNAPSHOT:
            return _DeltaSnapshot(content)
        if code == EXT_NUMPY_ARRAY:
            return self._array(*content)
        if not isinstance(content, list) or len(content) < 3:
            self._refuse(ValueError(NAMELESS))
        module, name, argument = content[:3]
        # Of text first: anything else need not have a hash.
        if type(module) is not str or type(name) is not str:
            self._refuse(ValueError(NAMELESS))
        if (module, name) not in self.allowed:
            self._refuse(TypeNotAllowedError(VALUE, module, name))
        if code == EXT_METHOD_SINGLE_ARG and content[3:] != [PARSER]:
            self._refuse(ValueError("an object names a method that is not called"))
        if (build := BUILDERS.get(code)) is None:
            self._refuse(
                ValueError(f"an object is of kind {code}, which this release does not know")
            )
        try:
            return build(getattr(import_module(module), name), argument)
        except Exception as error:  # noqa: BLE001 - a class that has changed may raise anything
            # As LangGraph does: the run goes on with what the object was made of.
            if (module, name) not in self.changed:
                self.changed.add((module, name))
                what = "object.not_rebuilt type=%s.%s error=%s: its content is read instead"
                logger.warning(what, module, name, type(error).__name__)
            return argument

    def _array(
        self, kind: str, shape: Sequence[int], order: Literal["C", "F"], data: bytes
    ) -> object:
        try:
            import numpy as np
        except ImportError:
            self._refuse(MissingDependencyError("reading a stored array", "numpy"))
        return np.frombuffer(data, dtype=np.dtype(kind)).reshape(shape, order=order)

    def _refuse(self, refusal: SaverError | ValueError) -> NoReturn:
        self.refusal = refusal
        raise refusal


def _from_arguments(kind: Any, arguments: Any) -> object:  # Any: a listed type, what it takes
    if len(arguments) == 3:
        from langgraph.types import Send  # late: it loads most of LangGraph

        if kind is Send:
            return Send(*arguments[:2], timeout=arguments[2])
    return kind(*arguments)


def _model(kind: Any, fields: Any, unchecked: str) -> object:  # Any: as above
    try:
        return kind(**fields)
    except Exception:  # noqa: BLE001 - what was valid once need not be now
        return getattr(kind, unchecked)(**fields)


# Any: as above
BUILDERS: Final[dict[int, Callable[[Any, Any], object]]] = {
    EXT_CONSTRUCTOR_SINGLE_ARG: lambda kind, argument: kind(argument),
    EXT_CONSTRUCTOR_POS_ARGS: _from_arguments,
    EXT_CONSTRUCTOR_KW_ARGS: lambda kind, fields: kind(**fields),
    EXT_METHOD_SINGLE_ARG: lambda kind, text: getattr(kind, PARSER)(text),
    EXT_PYDANTIC_V1: lambda kind, fields: _model(kind, fields, "construct"),
    EXT_PYDANTIC_V2: lambda kind, fields: _model(kind, fields, "model_construct"),
}
"""How an object is made of what is stored of it, by LangGraph's kinds of extension."""


def serializer(
    url: str, serde: SerializerProtocol | None, allowed: Iterable[Allowed]
) -> SerializerProtocol:
    """Choose the serializer of a saver, and warn of one that runs what stored bytes name.

    Raises:
        StoreConfigError: Types are listed for a serializer that has rules of its own.
    """
    allowed = list(allowed)
    if serde is None:
        return AllowlistSerializer(allowed)
    if allowed:
        raise StoreConfigError(
            f"allowed is a list for the saver's own serializer, and serde is another one "
            f"({type(serde).__name__}): name one of them"
        )
    if isinstance(serde, JsonPlusSerializer) and (
        serde.pickle_fallback or _rebuilds_anything(serde)
    ):
        logger.warning(
            "serde=%s(…) runs whatever the bytes at %s name: use it only where nobody else can "
            "write, or leave it out and list your types in allowed",
            type(serde).__name__,
            redact(url),
        )
    return serde


def _rebuilds_anything(serde: JsonPlusSerializer) -> bool:
    # It returns itself when one more type changes nothing, even one that nobody can have listed.
    return serde.with_msgpack_allowlist([("pdr_checkpoints", "no such type")]) is serde


def _named(each: Allowed | tuple[str, ...]) -> tuple[str, str]:
    if isinstance(each, type):
        return each.__module__, each.__name__
    if (
        isinstance(each, tuple)
        and len(each) == 2
        and all(isinstance(part, str) and part for part in each)
    ):
        return each[0], each[1]
    raise StoreConfigError(
        f"allowed has {each!r}, it takes classes and pairs of a module's and a class's name"
    )


class Allowance:
    """The memory that values may still take while they are read."""

    __slots__ = ("_half", "left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit
        self._half = limit // 2

    def take(self, size: int, what: str) -> None:
        """Count bytes of memory; `what` names the value in a message.

        Raises:
            TooLargeError: There is no room for them.
        """
        self.left -= size
        if self.left < 0:
            raise TooLargeError(what, self.limit - self.left, self.limit)

    def surely_takes(self, body: bytes) -> bool:
        """Count a serialised value by an upper bound, if there is room for that.

        Half of the limit may be used this way, so that ordinary values need not be looked into.
        """
        most = MOST_PER_BYTE * len(body)
        if most > self.left - self._half:
            return False
        self.left -= most
        return True

    def take_value(self, body: bytes, what: str, kind: str = "msgpack") -> None:
        """Count what a serialised value will take once it is built; raises what `take` does."""
        if kind == "msgpack":
            self.take(_memory_of(body, self.left), what)
        else:
            self.take((MOST_PER_BYTE_OF_JSON if kind == "json" else 1) * len(body), what)


_FIXED: Final = {
    **dict.fromkeys((0xCC, 0xD0), (1, 32)),
    **dict.fromkeys((0xCD, 0xD1), (2, 32)),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), (4, 32)),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), (8, 32)),
    **{0xD4 + power: (1, 512 + (1 << power)) for power in range(5)},
}
"""Bytes that follow a code of msgpack, less those of an object, and memory of what they make."""
_SIZED: Final = {
    **{0xC4 + power: (1 << power, "bytes") for power in range(3)},
    **{0xC7 + power: (1 << power, "object") for power in range(3)},
    **{0xD9 + power: (1 << power, "text") for power in range(3)},
    **{0xDC + power: (2 << power, "list") for power in range(2)},
    **{0xDE + power: (2 << power, "dict") for power in range(2)},
}
"""Bytes of the length that follows a code, and what it is the length of."""


def _memory_of(body: bytes, most: int) -> int:
    """Return the memory that the objects of a msgpack take; stop counting above `most`.

    An upper bound. Bytes that are no msgpack give any number: they will not be built.
    """
    memory, at, end = 0, 0, len(body)
    while at < end and memory <= most:
        code = body[at]
        at += 1
        if code < 0x80 or code >= 0xE0 or 0xC0 <= code <= 0xC3:
            continue  # a small number, None or a bool: there is only one of each
        if code < 0xC0:
            length, kind = (
                (code & 31, "text")
                if code >= 0xA0
                else (code & 15, "list" if code >= 0x90 else "dict")
            )
        elif (fixed := _FIXED.get(code)) is not None:
            at += fixed[0]
            memory += fixed[1]
            continue
        else:
            size, kind = _SIZED[code]
            length = int.from_bytes(body[at : at + size], "big")
            at += size
        if kind == "list":
            memory += 64 + 16 * length
        elif kind == "dict":
            memory += 64 + 128 * max(length, 2)
        elif kind == "object":
            memory += 512 + length  # its bytes are cut out; what it is made of comes next
            at += 1
        else:
            memory += 80 + length
            if kind == "text" and not body[at : at + length].isascii():
                memory += 3 * length  # of text with one emoji, every character takes four bytes
            at += length
    return memory

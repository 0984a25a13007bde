"""The saver's serializer: LangGraph's, which here builds objects of listed types only.

A stored value may name any Python callable, and LangGraph's serializer calls it unless it is told
otherwise. Here a name that is not listed is refused before it is imported, and the refusal is an
error: LangGraph's own strict mode would hand out the object's arguments in its place.
"""

import json
import logging
from collections.abc import Iterable
from typing import Any, Final, NoReturn
from uuid import uuid4

import ormsgpack
from langchain_core.load.mapping import SERIALIZABLE_MAPPING
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import (
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_NUMPY_ARRAY,
    JsonPlusSerializer,
)

from pdr_checkpoints.connect import redact
from pdr_checkpoints.errors import StoreConfigError, TypeNotAllowedError

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
WITHOUT_NAME: Final = (EXT_NUMPY_ARRAY, EXT_DELTA_SNAPSHOT)
"""Extensions that hold a value alone."""
NAMELESS: Final = "an object has no name"


class AllowlistSerializer(JsonPlusSerializer):
    """LangGraph's serializer, which builds objects of ordinary and listed types, and no others."""

    def __init__(self, allowed: Iterable[Allowed] = ()) -> None:
        listed = {_named(each) for each in allowed}
        # LangGraph's own check holds as well, so that no gap between the two lets a name through.
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
            NotImplementedError: It was serialised in a way that LangGraph does not read.
            ValueError: It is cut or altered.
        """
        kind, body = data
        if kind not in ("msgpack", "json"):
            return super().loads_typed(data)
        gate = _Gate(self.allowed)
        try:
            if kind == "json":
                plain = json.loads(body, object_hook=gate.check_json)
            else:
                plain = ormsgpack.unpackb(body, ext_hook=gate.check_extension, option=OPTION)
        except ValueError:
            # ormsgpack replaces what its hook raises.
            if gate.refusal is not None:
                raise gate.refusal from None
            raise
        return super().loads_typed(data) if gate.found else plain


class _Gate:
    """Looks at every name in one value before anything is built."""

    __slots__ = ("allowed", "found", "refusal")

    def __init__(self, allowed: frozenset[tuple[str, str]]) -> None:
        self.allowed = allowed
        self.found = False
        """Whether the value holds anything that must be built."""
        self.refusal: ValueError | None = None

    def check_extension(self, code: int, data: bytes) -> None:
        """Check one extension of msgpack, and those in it."""
        self.found = True
        if not 0 <= code <= EXT_DELTA_SNAPSHOT:
            # Of a later LangGraph, whose own list decides, or of nobody: then it is None.
            return
        content = ormsgpack.unpackb(data, ext_hook=self.check_extension, option=OPTION)
        if code in WITHOUT_NAME:
            return
        if not isinstance(content, list) or len(content) < 3:
            self._refuse(ValueError(NAMELESS))
        self._check(content[0], content[1])
        if code == EXT_METHOD_SINGLE_ARG and content[3:] != [PARSER]:
            self._refuse(ValueError("an object names a method that is not called"))

    def check_json(self, value: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        """Check one object of JSON; those in it come first."""
        if "lc" in value and "id" in value:
            self.found = True
            if value.get("type") == "constructor":
                path = value["id"]
                if not isinstance(path, list) or not all(isinstance(part, str) for part in path):
                    self._refuse(ValueError(NAMELESS))
                path = SERIALIZABLE_MAPPING.get(tuple(path), tuple(path))
                self._check(".".join(path[:-1]), path[-1] if path else "")
        return value

    def _check(self, module: object, name: object) -> None:
        # Of text first: anything else need not have a hash.
        if type(module) is not str or type(name) is not str:
            self._refuse(ValueError(NAMELESS))
        elif (module, name) not in self.allowed:
            self._refuse(TypeNotAllowedError("a stored value", module, name))

    def _refuse(self, refusal: ValueError) -> NoReturn:
        self.refusal = refusal
        raise refusal


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
    # It returns itself when more types change nothing: all are allowed, or this one is.
    probe = ("pdr_checkpoints", uuid4().hex)
    return serde.with_msgpack_allowlist([probe]) is serde


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

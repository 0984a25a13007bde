"""Reading what somebody else wrote builds ordinary and listed types, and runs nothing."""

import asyncio
import decimal
import enum
import ipaddress
import json
import logging
import pathlib
import pickle
import re
import sys
import time
import uuid
import zoneinfo
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import numpy as np
import ormsgpack
import pytest
from langchain_core import agents, documents, messages, outputs, prompt_values
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES  # LangGraph shows it nowhere
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Command, Interrupt, Overwrite, Send, TimeoutPolicy
from pdr_checkpoints import (
    AllowlistSerializer,
    CorruptCheckpointError,
    MissingDependencyError,
    RedisSaver,
    SaverOptions,
    StoreConfigError,
    TypeNotAllowedError,
    UnknownSerializationError,
    open_checkpointer,
)
from pydantic import BaseModel
from pydantic import v1 as pydantic_v1
from test_saver import put

CONFIG = {"configurable": {"thread_id": "t"}}
ran: list[object] = []
"""What code of the attacks below has been run."""


class Trap:
    """Does something when it is made, and when it is unpickled."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        ran.append(("made", args, kwargs))

    @classmethod
    def spring(cls, argument: object) -> None:
        ran.append(("sprung", argument))

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return ran.append, ("unpickled",)


@dataclass
class Plan:
    """A dataclass of a user."""

    steps: list[str]
    trap: object = None


class Report(BaseModel):
    """A pydantic model of a user."""

    city: str
    degrees: float


class Mood(enum.Enum):
    """An enum of a user."""

    GOOD = "good"


class Point(NamedTuple):
    """A named tuple of a user."""

    x: int
    y: int


@pytest.fixture(autouse=True)
def no_code() -> Iterator[None]:
    """Forget what ran before."""
    ran.clear()
    yield
    ran.clear()


def extension(code: int, *content: object) -> bytes:
    return ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(content)))


def inside(data: bytes, wrap: Callable[[ormsgpack.Ext], object]) -> bytes:
    """Put an extension into a larger value."""
    caught: list[ormsgpack.Ext] = []
    ormsgpack.unpackb(data, ext_hook=lambda code, body: caught.append(ormsgpack.Ext(code, body)))
    return ormsgpack.packb(wrap(caught[0]))


ME = __name__
SIMPLE = {
    "one argument": extension(0, ME, "Trap", "x"),
    "arguments": extension(1, ME, "Trap", ["x"]),
    "keywords": extension(2, ME, "Trap", {"x": 1}),
    "pydantic 1": extension(4, ME, "Trap", {"x": 1}),
    "pydantic 2": extension(5, ME, "Trap", {"x": 1}, "model_validate_json"),
    "eval": extension(0, "builtins", "eval", f"__import__('sys').modules['{ME}'].ran.append(1)"),
    "import": extension(0, "trapped_module", "anything", 1),
}
NESTED = {
    "in a list": inside(SIMPLE["eval"], lambda ext: [1, {"a": [ext]}]),
    "in a message": inside(
        SIMPLE["eval"],
        lambda ext: ormsgpack.Ext(
            5,
            ormsgpack.packb(
                (
                    "langchain_core.messages.human",
                    "HumanMessage",
                    {"content": "hi", "additional_kwargs": {"a": ext}},
                    "model_validate_json",
                )
            ),
        ),
    ),
    "in a set": inside(
        SIMPLE["eval"], lambda ext: ormsgpack.Ext(0, ormsgpack.packb(("builtins", "set", [ext])))
    ),
    "in a delta snapshot": inside(
        SIMPLE["eval"], lambda ext: ormsgpack.Ext(7, ormsgpack.packb([ext]))
    ),
    "as a name": inside(
        SIMPLE["eval"], lambda ext: ormsgpack.Ext(0, ormsgpack.packb((ext, "Trap", "x")))
    ),
}
ATTACKS = {**SIMPLE, **NESTED}


@pytest.fixture
def trapped_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module on the path that does something when it is imported."""
    (tmp_path / "trapped_module.py").write_text(
        f"import sys\nsys.modules[{ME!r}].ran.append('imported')\nanything = str\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("trapped_module", None)


@dataclass
class Forger:
    """Serialises as LangGraph does, but puts an attack in the place of some values."""

    chosen: Callable[[object], bool]
    kind: str
    body: bytes

    def dumps_typed(self, obj: object) -> tuple[str, bytes]:
        return (self.kind, self.body) if self.chosen(obj) else JsonPlusSerializer().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> object:
        raise AssertionError("a forger does not read")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("trapped_module")
@pytest.mark.security
def test_the_attacks_are_real(attack: str) -> None:
    """LangGraph's serializer as it comes runs every one of them."""
    JsonPlusSerializer().loads_typed(("msgpack", ATTACKS[attack]))
    assert ran


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("trapped_module")
@pytest.mark.security
def test_an_attack_is_refused_before_anything_runs(attack: str) -> None:
    """It is not even imported, and the refusal says which type it is."""
    named = {"import": "trapped_module"}.get(attack, "Trap" if attack in SIMPLE else "eval")
    named = "eval" if attack == "eval" else named
    with pytest.raises(TypeNotAllowedError, match=named):
        AllowlistSerializer().loads_typed(("msgpack", ATTACKS[attack]))
    assert ran == []
    assert "trapped_module" not in sys.modules


@pytest.mark.security
def test_a_method_of_an_allowed_type_is_not_called() -> None:
    """Allowing a class allows making it, and nothing else of it."""
    serde = AllowlistSerializer([Trap])
    for data in (extension(3, ME, "Trap", "x", "spring"), extension(3, ME, "Trap", "x")):
        with pytest.raises(ValueError, match="method"):
            serde.loads_typed(("msgpack", data))
    assert ran == []


@pytest.mark.security
def test_an_object_without_a_name_is_refused() -> None:
    """So that no name is made of something else later."""
    for content in ((), ("os",), ("os", "system"), (1, 2, 3), (None, "system", "true"), {"a": 1}):
        data = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(content)))
        with pytest.raises(ValueError, match="an object has no name"):
            AllowlistSerializer().loads_typed(("msgpack", data))


@pytest.mark.security
def test_a_tower_of_objects_is_refused() -> None:
    """Depth is an error, not a crash."""
    data = ormsgpack.packb("x")
    for _ in range(5000):
        data = ormsgpack.packb(ormsgpack.Ext(7, data))
    with pytest.raises(ValueError, match="more than 64 objects are inside each other"):
        AllowlistSerializer().loads_typed(("msgpack", data))


JSON_ATTACKS = {
    "function": {"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["true"]},
    "class": {"lc": 2, "type": "constructor", "id": [ME, "Trap"], "kwargs": {"x": 1}},
    "runnable": {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "runnable", "RunnableSequence"],
        "kwargs": {},
    },
    "template": {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "prompts", "prompt", "PromptTemplate"],
        "kwargs": {"template": "{{x}}", "template_format": "jinja2", "input_variables": ["x"]},
    },
}


@pytest.mark.parametrize("attack", JSON_ATTACKS)
@pytest.mark.security
def test_json_names_no_other_types_either(attack: str) -> None:
    """The form of early LangGraph."""
    body = json.dumps({"a": [JSON_ATTACKS[attack]]}).encode()
    with pytest.raises(TypeNotAllowedError):
        AllowlistSerializer().loads_typed(("json", body))
    assert ran == []


def test_messages_in_json_are_read() -> None:
    """Early LangGraph stored them so, by either name."""
    for path in (["langchain", "schema", "messages"], ["langchain_core", "messages", "human"]):
        name = {"lc": 1, "type": "constructor", "id": [*path, "HumanMessage"]}
        body = json.dumps([{**name, "kwargs": {"content": "hi"}}, {"lc": 3}]).encode()
        found = AllowlistSerializer().loads_typed(("json", body))
        assert found == [messages.HumanMessage("hi"), {"lc": 3}]


@pytest.mark.security
async def test_pickle_is_not_read(open_saver: Callable[..., RedisSaver]) -> None:
    """Whoever could write it could write code."""
    forger = Forger(lambda obj: obj == "here", "pickle", pickle.dumps(Trap()))
    ran.clear()
    await put(open_saver(serde=forger), "t", {"a": "here"})
    with pytest.raises(UnknownSerializationError, match="pickle"):
        await open_saver().aget_tuple(CONFIG)
    assert ran == []


PLACES: dict[str, tuple[Callable[[object], bool], str]] = {
    "value": (lambda obj: obj == "here", r"channel 'a' of checkpoint '.+' of thread 't'"),
    "item": (lambda obj: obj == "item", r"channel 'b' of checkpoint '.+' of thread 't'"),
    "write": (lambda obj: obj == "written", r"pending write to channel 'a' of checkpoint '.+'"),
    "metadata": (lambda obj: isinstance(obj, dict) and "step" in obj, r"metadata of checkpoint"),
    "checkpoint": (lambda obj: isinstance(obj, dict) and "v" in obj, r"checkpoint '.+' of thread"),
}
LARGE = inside(SIMPLE["eval"], lambda ext: ["x" * 5000, ext])


async def forged(saver: RedisSaver) -> None:
    config = await put(saver, "t", {"a": "here", "b": ["item", "x"]})
    await saver.aput_writes(config, [("a", "written")], "task")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("body", [SIMPLE["eval"], LARGE], ids=["small", "large"])
@pytest.mark.security
async def test_no_way_of_reading_runs_code(
    open_saver: Callable[..., RedisSaver], redis_url: str, prefix: str, place: str, body: bytes
) -> None:
    """Wherever the attack is: by the async methods, the sync ones, pruning and an import."""
    chosen, where = PLACES[place]
    await forged(open_saver(serde=Forger(chosen, "msgpack", body)))
    saver = open_saver()
    refusal = rf"{where}.* type 'builtins\.eval'.+ allowed=\[\('builtins', 'eval'\)\]"
    with pytest.raises(TypeNotAllowedError, match=refusal):
        await saver.aget_tuple(CONFIG)
    with pytest.raises(TypeNotAllowedError, match=refusal):
        [found async for found in saver.alist(CONFIG)]
    readers: list[Callable[[], Any]] = [
        lambda: anext(saver.alist(None)),
        lambda: anext(saver.alist(CONFIG, filter={"step": 1})),
        lambda: saver.aget_delta_channel_history(config=CONFIG, channels=["a", "b"]),
        lambda: saver.aprune(["t"], strategy="keep_latest"),
        lambda: saver.adelete_for_runs(["some-run"]),
    ]
    for read in readers:
        with suppress(CorruptCheckpointError, StopAsyncIteration):
            await read()
    await put(open_saver(), "t", {"c": 1})  # the channels of the former checkpoint go on
    exported = b"".join([chunk async for chunk in saver.export_thread("t")])

    async def chunks() -> Any:
        yield exported

    await saver.import_thread(chunks(), thread_id="u")
    await saver.acopy_thread("t", "v")
    assert {info.thread_id for info in await saver.threads()} >= {"t", "u", "v"}
    for thread in ("u", "v"):
        with pytest.raises(TypeNotAllowedError, match=f"thread '{thread}'"):
            [found async for found in saver.alist({"configurable": {"thread_id": thread}})]

    def blocked() -> None:
        with RedisSaver(redis_url, options=SaverOptions(prefix=prefix)) as sync:
            with pytest.raises(TypeNotAllowedError, match="eval"):
                list(sync.list(CONFIG))
            with pytest.raises(TypeNotAllowedError, match="eval"):
                list(sync.list(None))

    await asyncio.to_thread(blocked)
    assert ran == []


@pytest.mark.security
async def test_a_name_cannot_write_to_a_terminal(saver: RedisSaver) -> None:
    """Whoever wrote the bytes chose the name, of any length."""
    with pytest.raises(TypeNotAllowedError) as caught:
        saver.serde.loads_typed(("msgpack", extension(0, "\x1b[2J" + "m" * 10**6, "\u202en\n", 1)))
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 700


def test_what_langgraph_calls_safe_is_built() -> None:
    """Our list has all of LangGraph's, also after an upgrade."""
    assert AllowlistSerializer().allowed >= SAFE_MSGPACK_TYPES


ORDINARY = [
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    datetime(2026, 1, 2, 3, 4).time(),
    timedelta(days=1, seconds=2),
    timezone(timedelta(hours=2)),
    zoneinfo.ZoneInfo("UTC"),
    uuid.uuid5(uuid.NAMESPACE_URL, "x"),
    decimal.Decimal("1.50"),
    {1, 2},
    frozenset({"a"}),
    deque([1, 2]),
    ipaddress.ip_address("::1"),
    ipaddress.ip_network("10.0.0.0/8"),
    pathlib.Path("/tmp/x"),
    re.compile("a+", re.IGNORECASE),
    b"bytes",
    {1: "a", None: [1.5, True]},
    messages.HumanMessage("hi", id="1"),
    messages.AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}]),
    messages.AIMessageChunk("hi"),
    messages.SystemMessage("hi"),
    messages.ToolMessage("hi", tool_call_id="1", artifact={"when": date(2026, 1, 2)}),
    messages.FunctionMessage("hi", name="f"),
    messages.ChatMessage("hi", role="r"),
    messages.RemoveMessage("1"),
    documents.Document("text", metadata={"page": 1}),
    agents.AgentAction("tool", "input", "log"),
    agents.AgentFinish({"a": 1}, "log"),
    outputs.Generation(text="x"),
    outputs.ChatGeneration(message=messages.AIMessage("x")),
    prompt_values.StringPromptValue(text="x"),
    prompt_values.ChatPromptValue(messages=[messages.HumanMessage("hi")]),
    Send("node", {"a": {1, 2}}),
    Interrupt({"question": "?"}, id="1"),
    Command(goto="a", update={"x": 1}),
    Overwrite([]),
    _DeltaSnapshot([messages.HumanMessage("hi")]),
]


async def test_ordinary_states_are_read(saver: RedisSaver) -> None:
    """What LangGraph, LangChain and the standard library have comes back as LangGraph builds it."""
    values = {f"c{number}": value for number, value in enumerate(ORDINARY)}
    config = await put(saver, "t", values)
    await saver.aput_writes(config, list(values.items()), "task")
    found = await saver.aget_tuple(CONFIG)
    assert found is not None
    read = found.checkpoint["channel_values"]
    assert [type(read[name]) for name in values] == [type(value) for value in ORDINARY]
    langgraphs = JsonPlusSerializer()
    # It makes a plain message of one inside a generation or a prompt.
    same = {
        name: langgraphs.loads_typed(langgraphs.dumps_typed(value))
        for name, value in values.items()
    }
    assert read == same
    assert [value for _, _, value in found.pending_writes or []] == list(same.values())
    assert [name for name in values if read[name] != values[name]] == ["c29", "c31"]


OWN = [
    Plan(["a"]),
    Report(city="Rome", degrees=21.5),
    Mood.GOOD,
    Point(1, 2),
    [Plan(["b"]), messages.HumanMessage("hi")],
]


async def test_types_of_the_user_are_listed(open_saver: Callable[..., RedisSaver]) -> None:
    """As classes or by name; what is stored already becomes readable, and nothing else does."""
    values = {f"c{number}": value for number, value in enumerate(OWN)}
    await put(open_saver(), "t", values)
    for allowed in ([Plan, Report, Mood, Point], [(ME, "Plan"), (ME, "Report"), Mood, Point]):
        found = await open_saver(allowed=allowed).aget_tuple(CONFIG)
        assert found is not None
        assert found.checkpoint["channel_values"] == values
    with pytest.raises(TypeNotAllowedError, match=rf"allowed=\[\('{ME}', 'Point'\)\]"):
        await open_saver(allowed=[Plan, Report, Mood]).aget_tuple(CONFIG)


class Moment(datetime):
    """A kind of date of a user."""


class Narrow(BaseModel):
    """A pydantic model that has become stricter since it was stored."""

    number: int


class Former(pydantic_v1.BaseModel):
    """A model of pydantic 1."""

    city: str


def read_back(value: object, *allowed: type) -> object:
    serde = AllowlistSerializer(allowed)
    return serde.loads_typed(serde.dumps_typed(value))


def test_every_form_of_object_is_built() -> None:
    """Those that the states above do not have."""
    array = np.arange(6, dtype="<i4").reshape((2, 3), order="F")
    assert np.array_equal(read_back([array])[0], array)
    assert read_back(Moment(2026, 1, 2), Moment) == Moment(2026, 1, 2)
    assert type(read_back(Moment(2026, 1, 2), Moment)) is Moment
    assert read_back(Former(city="Rome"), Former) == Former(city="Rome")
    timed = Send("node", {"a": 1}, timeout=TimeoutPolicy(run_timeout=3.0))
    assert read_back(timed) == timed


def test_an_array_where_numpy_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is not damaged: a package is missing."""
    stored = AllowlistSerializer().dumps_typed([np.arange(2)])
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingDependencyError, match="needs numpy: pip install numpy"):
        AllowlistSerializer().loads_typed(stored)


def test_a_type_that_has_changed_gives_its_content(caplog: pytest.LogCaptureFixture) -> None:
    """As LangGraph does it: unchecked, or as plain data and a warning."""
    stored = extension(5, ME, "Narrow", {"number": "x"}, "model_validate_json")
    found = AllowlistSerializer([Narrow]).loads_typed(("msgpack", stored))
    assert isinstance(found, Narrow)
    assert found.number == "x"
    assert caplog.messages == []
    former = extension(2, ME, "Plan", {"stages": ["a"]})
    twice = inside(former, lambda ext: [ext, ext])
    assert AllowlistSerializer([Plan]).loads_typed(("msgpack", twice)) == [{"stages": ["a"]}] * 2
    (line,) = caplog.messages
    assert f"type={ME}.Plan error=TypeError" in line


@pytest.mark.security
def test_an_object_of_an_unknown_kind_is_refused() -> None:
    """A later LangGraph's, perhaps: nothing is left out in silence."""
    with pytest.raises(ValueError, match="of kind 9"):
        AllowlistSerializer().loads_typed(("msgpack", extension(9, "builtins", "set", [1])))


@pytest.mark.security
def test_a_listed_type_does_not_bring_others_in() -> None:
    """Each object in it is looked at by itself."""
    hidden = inside(
        SIMPLE["eval"],
        lambda ext: ormsgpack.Ext(2, ormsgpack.packb((ME, "Plan", {"steps": [], "trap": ext}))),
    )
    with pytest.raises(TypeNotAllowedError, match="eval"):
        AllowlistSerializer([Plan]).loads_typed(("msgpack", hidden))
    assert ran == []


async def test_langgraph_may_list_more(saver: RedisSaver) -> None:
    """With LANGGRAPH_STRICT_MSGPACK it lists what a graph's state names, when it is compiled."""
    clone = saver.with_allowlist([(ME, "Plan"), ("uuid", "UUID")])
    assert clone.serde.loads_typed(saver.serde.dumps_typed(Plan(["a"]))) == Plan(["a"])
    with pytest.raises(TypeNotAllowedError):
        clone.serde.loads_typed(saver.serde.dumps_typed(Mood.GOOD))
    assert saver.with_allowlist([("uuid", "UUID")]) is saver


async def test_anything_is_read_only_where_it_is_asked_for(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the argument that names LangGraph's serializer; a warning says what that means."""
    with caplog.at_level(logging.WARNING, logger="pdr_checkpoints"):
        async with open_checkpointer(redis_url, prefix=prefix, serde=JsonPlusSerializer()) as saver:
            await put(saver, "t", {"a": Plan(["a"])})
            found = await saver.aget_tuple(CONFIG)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": Plan(["a"])}
        assert [line for line in caplog.messages if "runs whatever the bytes" in line]
        caplog.clear()
        for serde in (
            JsonPlusSerializer(allowed_msgpack_modules=[Plan]),
            AllowlistSerializer([Plan]),
            None,
        ):
            RedisSaver(redis_url, serde=serde)
        assert caplog.messages == []
        RedisSaver(redis_url, serde=JsonPlusSerializer(pickle_fallback=True))
        assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"allowed": ["Plan"]}, "allowed has 'Plan', it takes classes and pairs"),
        ({"allowed": [("a", "b", "c")]}, "allowed has"),
        ({"allowed": [Plan(["a"])]}, "allowed has Plan"),
        ({"allowed": [Plan], "serde": JsonPlusSerializer()}, "JsonPlusSerializer.+name one"),
    ],
)
def test_lists_that_cannot_work_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    """One sentence names the entry."""
    with pytest.raises(StoreConfigError, match=sentence):
        RedisSaver("redis://127.0.0.1", **arguments)


@pytest.mark.parametrize("body", [b"\xc1", b"\x91", b"\xc7\x05\x00ab", b"\xc7\x01\x00\xc1", b""])
@pytest.mark.security
async def test_other_bytes_are_named(open_saver: Callable[..., RedisSaver], body: bytes) -> None:
    """A value that is no msgpack is an error of the saver."""
    await put(
        open_saver(serde=Forger(lambda obj: obj == "here", "msgpack", body)), "t", {"a": "here"}
    )
    with pytest.raises(CorruptCheckpointError, match=r"channel 'a'.+ does not read as 'msgpack'"):
        await open_saver().aget_tuple(CONFIG)


def test_the_list_costs_little() -> None:
    """A state of 300 messages is read within a quarter of the time more than by LangGraph's own."""
    value = [messages.HumanMessage("text " * 50, id=str(number)) for number in range(300)]
    own, langgraphs = AllowlistSerializer(), JsonPlusSerializer(allowed_msgpack_modules=None)
    data = own.dumps_typed(value)
    best = {own: float("inf"), langgraphs: float("inf")}
    for _ in range(15):
        for serde in best:
            began = time.process_time()
            serde.loads_typed(data)
            best[serde] = min(best[serde], time.process_time() - began)
    assert best[own] < 1.25 * best[langgraphs] + 0.001, best

"""A store, or a file from one, that somebody else wrote runs nothing in who reads it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import openai
import ormsgpack
import pytest
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pdr_checkpoints import RedisSaver, TypeNotAllowedError, open_checkpointer

from pdr_graph import history
from pdr_graph.cli.store import open_redis
from pdr_graph.servers import embedded_valkey
from tests.cli.conftest import SMALL

pytestmark = pytest.mark.redis


@dataclass
class Forger:
    """Serialises as LangGraph does, but a chosen value as a call of `os.system`."""

    victim: str
    command: str

    def dumps_typed(self, obj: object) -> tuple[str, bytes]:
        chosen = {
            "value": obj == "forged",
            "write": obj == "written",
            "metadata": isinstance(obj, dict) and "source" in obj,
            "checkpoint": isinstance(obj, dict) and "channel_versions" in obj,
        }
        if not chosen[self.victim]:
            return JsonPlusSerializer().dumps_typed(obj)
        call = ormsgpack.packb(("os", "system", self.command))
        return "msgpack", ormsgpack.packb(ormsgpack.Ext(0, call))

    def loads_typed(self, data: tuple[str, bytes]) -> object:
        return JsonPlusSerializer(allowed_msgpack_modules=None).loads_typed(data)


async def forge(url: str, thread: str, victim: str, command: str) -> None:
    """Put a call of a command into the latest checkpoint of a run."""
    config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    async with open_checkpointer(url, serde=Forger(victim, command)) as saver:
        found = await saver.aget_tuple(config)
        assert found is not None
        version = saver.get_next_version(found.checkpoint["channel_versions"]["problem"], None)
        checkpoint: Checkpoint = {
            **found.checkpoint,
            "id": found.checkpoint["id"][:-4] + "ffff",
            "channel_values": {**found.checkpoint["channel_values"], "problem": "forged"},
            "channel_versions": {**found.checkpoint["channel_versions"], "problem": version},
        }
        placed = await saver.aput(found.config, checkpoint, found.metadata, {"problem": version})
        if victim == "write":
            await saver.aput_writes(placed, [("problem", "written")], "task")


async def read_by_the_permissive(url: str, thread: str) -> None:
    async with RedisSaver(url, serde=JsonPlusSerializer()) as saver:
        await saver.aget_tuple({"configurable": {"thread_id": thread}})


@pytest.fixture
def hostile(stored, data_dir, clean):
    """Returns a function that makes a run of somebody else, and says what it would write."""
    made: list[str] = []

    def make(victim: str) -> Path:
        proof = clean / "proof"

        async def write() -> None:
            async with embedded_valkey(data_dir) as url:
                await forge(url, "hostile", victim, f"touch {proof}")

        stored("solve", "What is 6 x 7?", *SMALL, "--thread", "hostile")
        made.append("hostile")
        asyncio.run(write())
        return proof

    yield make
    for thread in {*made, "copy"}:
        stored("threads", thread, "--delete")


@pytest.mark.parametrize("victim", ["value", "write", "metadata", "checkpoint"])
@pytest.mark.security
def test_no_command_runs_what_a_store_names(hostile, stored, data_dir, victim):
    """Listing goes on, showing and resuming refuse in a sentence; so does what is imported."""
    proof = hostile(victim)
    assert stored("threads", "hostile", "--export", "run.bin").code == 0
    assert stored("threads", "copy", "--import", "run.bin").code == 0
    listed = {each["thread_id"]: each for each in stored("threads", "--json").json()}
    assert {listed[thread]["state"] for thread in ("hostile", "copy")} == {"unreadable"}
    for thread in ("hostile", "copy"):
        for words in (["inspect", thread], ["inspect", thread, "--json"], ["resume", thread]):
            outcome = stored(*words)
            assert outcome.code == 1
            (line,) = outcome.err.splitlines()[-1:]
            assert line.startswith("error: ")
            assert "Traceback" not in outcome.err
            assert "allowed=[('os', 'system')]" in " ".join(outcome.err.split())
    stored("threads", "hostile", "--prune")

    async def by_python() -> None:
        async with embedded_valkey(data_dir) as url, open_redis(url) as saver:
            with pytest.raises(TypeNotAllowedError, match=r"os\.system"):
                await history("hostile", checkpointer=saver)

    asyncio.run(by_python())
    assert not proof.exists()


@pytest.mark.security
def test_the_attack_is_real(hostile, data_dir):
    """Read by LangGraph's own serializer the same store runs the command."""
    proof = hostile("value")

    async def read() -> None:
        async with embedded_valkey(data_dir) as url:
            await read_by_the_permissive(url, "hostile")

    asyncio.run(read())
    assert proof.exists()


@pytest.mark.security
def test_a_server_runs_nothing_either(hostile, spawn, mock):
    """A client that names such a run is refused, and the server goes on."""
    proof = hostile("value")
    process = spawn("serve", "--port", "0")
    address = process.stdout.readline().strip()
    assert address, process.stderr.read()
    body = {
        "model": "pdr?widths=3,2",
        "messages": [{"role": "user", "content": "What is 6 x 7?"}],
    }
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.ConflictError, match="'hostile' cannot be read") as refused:
            client.chat.completions.create(**body, metadata={"thread_id": "hostile"})
        assert "system" not in str(refused.value)
        assert client.chat.completions.create(**body).choices[0].message.content
    process.terminate()
    _, log = process.communicate()
    assert "os.system" in log
    assert "Traceback" not in log
    assert not proof.exists()

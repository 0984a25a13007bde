"""One run that cannot be read, by what it holds or by its size, breaks no list and no server."""

import asyncio
import json
import os
import re
import subprocess
import sys

import openai
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from pdr_checkpoints import RedisSaver

from pdr_graph import history
from pdr_graph.cli.store import open_redis
from pdr_graph.errors import DamagedRunError
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import Settings
from pdr_graph.state import PDRState
from tests.cli.conftest import SMALL

pytestmark = [pytest.mark.redis, pytest.mark.security]

ODD = ("x", 7, -1, 1.5, [], ["x"], {"a": 1}, [{"round": "x"}], [None], {"text": 1}, "\udc80")
"""Values of which at least one fits no field."""


async def alter(saver: RedisSaver, thread: str, fields: dict[str, object], name: str) -> None:
    """Make a run of another name, as it was but for some fields of its state."""
    await saver.acopy_thread(thread, name)
    found = await saver.aget_tuple({"configurable": {"thread_id": name}})
    assert found is not None
    versions = {field: saver.get_next_version("9", None) for field in fields}
    checkpoint = {
        **found.checkpoint,
        "id": found.checkpoint["id"][:-4] + "ffff",
        "channel_values": {**found.checkpoint["channel_values"], **fields},
        "channel_versions": {**found.checkpoint["channel_versions"], **versions},
    }
    await saver.aput(found.config, checkpoint, found.metadata, versions)


@pytest.fixture
def store(stored, data_dir, mock):
    """A finished run, `good`, and a function that does something with the saver of its store."""
    mock.configure(answers=["42"])
    stored("solve", "What is 6 x 7?", *SMALL, "--thread", "good")
    made: set[str] = set()

    def work(do):
        async def go():
            async with embedded_valkey(data_dir) as url, open_redis(url) as saver:
                result = await do(saver)
                made.update(info.thread_id for info in await saver.threads())
                return result

        return asyncio.run(go())

    yield work

    async def clear(saver: RedisSaver) -> None:
        for thread in made:
            await saver.adelete_thread(thread)

    work(clear)


async def none_but_named(call, *arguments, **options) -> str | None:
    """Return the reason of the named error, None without one; any other fails the test."""
    try:
        await call(*arguments, **options)
    except DamagedRunError as error:
        return error.why
    return None


def test_every_field_of_another_form_is_named(store, stored):
    """Read back, resumed and listed: no field of any form gives anything but one named error."""

    async def forge(saver: RedisSaver) -> dict[str, str]:
        reasons = {}
        for field in PDRState.__annotations__:
            for number, value in enumerate(ODD):
                name = f"{field}-{number}"
                await alter(saver, "good", {field: value}, name)
                why = await none_but_named(history, name, checkpointer=saver)
                if why is not None:
                    reasons[name] = why
                else:
                    await saver.adelete_thread(name)
        return reasons

    reasons = store(forge)
    assert {name.rpartition("-")[0] for name in reasons} == set(PDRState.__annotations__)
    assert all(name.rpartition("-")[0] in why for name, why in reasons.items())
    outcome = stored("threads", "--json", "--limit", "500")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "cannot be read" in outcome.err
    listed = {each["thread_id"]: each for each in outcome.json()}
    assert (listed["good"]["state"], listed["good"]["reason"]) == ("finished", None)
    for name, why in reasons.items():
        if "its config" not in why:
            assert (listed[name]["state"], listed[name]["reason"]) == ("unreadable", why)


def test_odd_pending_writes_are_named(store, stored, mock):
    """What a step has written before its super-step is complete meets our reducers first."""

    async def forge(saver: RedisSaver) -> None:
        found = await saver.aget_tuple({"configurable": {"thread_id": "good"}})
        for number, (channel, value) in enumerate(
            [("drafts", ["x"]), ("drafts", 7), ("ledger", [{"step": "x"}]), ("ledger", {"a": 1})]
        ):
            name = f"pending-{number}"
            await saver.acopy_thread("good", name)
            where = {"configurable": {**found.config["configurable"], "thread_id": name}}
            await saver.aput_writes(
                where, [(channel, value)], "00000000-0000-0000-0000-000000000000"
            )
            await none_but_named(history, name, checkpointer=saver)

    store(forge)
    assert "Traceback" not in stored("threads", "--json").err


@pytest.fixture
def odd(store, stored):
    """Runs that are odd each in another way, beside one that is not."""

    async def forge(saver: RedisSaver) -> None:
        await alter(saver, "good", {"solution": "x"}, "odd-solution")
        await alter(saver, "good", {"config": {"widths": "many"}}, "odd-config")
        await saver.acopy_thread("good", "odd-head")
        names = saver._session.store.thread
        call = saver._session.store.call
        await call("HSET", names("odd-head").data, "m", "9 \x1b[31m")
        await saver.acopy_thread("good", "odd-time")
        await call("HSET", names("odd-time").data, "u", "yesterday")
        await saver.acopy_thread("good", "odd-type")
        await call("DEL", names("odd-type").data)
        await call("SET", names("odd-type").data, "text")
        foreign = {**empty_checkpoint(), "channel_values": {"config": {"a": 1}}}
        where = {"configurable": {"thread_id": "foreign", "checkpoint_ns": ""}}
        await saver.aput(where, foreign, {"step": 0}, {})

    store(forge)
    return stored


def test_the_others_are_listed(odd, monkeypatch):
    """For programs and for people; exit status 1 says that the list is not whole."""
    outcome = odd("threads", "--json")
    listed = {each["thread_id"]: each for each in outcome.json()}
    assert outcome.code == 1
    assert listed["good"]["state"] == "finished"
    for name, why in {
        "odd-solution": "solution 'x': input should be",
        "odd-head": "its head is",
        "odd-time": "its times are none",
        "odd-type": "its keys hold something else",
    }.items():
        assert listed[name]["state"] == "unreadable"
        assert listed[name]["reason"].startswith(why)
    monkeypatch.setenv("COLUMNS", "200")
    people = odd("threads")
    assert people.code == 1
    assert "\x1b[31m" not in people.out
    (line,) = [line for line in people.out.splitlines() if line.startswith("odd-solution")]
    assert "unreadable" in line
    assert "solution 'x'" in line
    assert "`pdr-graph inspect THREAD` says why" in people.err
    for name, value in {
        "COLUMNS": "60",
        "LINES": "9",
        "TERM": "dumb",
        "TTY_COMPATIBLE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    lines = odd("threads").out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(re.match(r"odd-solution +unreadable", line) for line in lines)


def test_an_odd_run_is_refused_in_a_sentence_and_can_be_deleted(odd):
    """To show and to resume it fails with its reason; pruning all passes it over."""
    for name in ("odd-solution", "odd-config"):
        for command in ("inspect", "resume"):
            outcome = odd(command, name)
            assert outcome.code == 1
            assert outcome.err.splitlines()[-1].startswith("error: ")
            assert f"the run of thread '{name}' cannot be read" in " ".join(outcome.err.split())
            assert "Traceback" not in outcome.err
    pruned = odd("threads", "--prune")
    assert "pruned thread good" in pruned.err
    assert "odd-head" in pruned.err
    for name in ("odd-solution", "odd-config", "odd-head", "odd-time", "odd-type"):
        assert odd("threads", name, "--delete").code == 0
    after = odd("threads", "--json")
    assert after.code == 0
    assert {"good", "foreign"} <= {each["thread_id"] for each in after.json()}


def test_a_server_refuses_an_odd_run_and_goes_on(odd, spawn, mock):
    """A client that names it gets 409, the next one its answer."""
    process = spawn("serve", "--port", "0")
    address = process.stdout.readline().strip()
    assert address, process.stderr.read()
    body = {
        "model": "pdr?widths=3,2",
        "messages": [{"role": "user", "content": "What is 6 x 7?"}],
    }
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        for name in ("odd-solution", "odd-config"):
            with pytest.raises(openai.ConflictError, match="cannot be read"):
                client.chat.completions.create(**body, metadata={"thread_id": name})
        assert client.chat.completions.create(**body).choices[0].message.content
    process.terminate()
    _, log = process.communicate()
    assert "Traceback" not in log


def test_a_small_file_takes_little_memory(store, stored, data_dir, clean):
    """Imported and listed in a process of 700 MB; before, a file of 173 kB took 2.65 GB."""

    async def forge(saver: RedisSaver) -> None:
        await alter(saver, "good", {"notes": ["x" * 50_000_000] * 8}, "huge")

    store(forge)
    assert stored("threads", "huge", "--export", "huge.bin").code == 0
    assert (clean / "huge.bin").stat().st_size < 200_000
    stored("threads", "huge", "--delete")

    def limited(*words: str) -> subprocess.CompletedProcess[str]:
        bound = "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (700_000_000,) * 2)"
        run = "from pdr_graph.cli import run; sys.exit(run(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", f"{bound}; {run}", *words],
            env={**os.environ, "PDR_DATA_DIR": str(data_dir)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert limited("threads", "huge", "--import", "huge.bin").returncode == 0
    outcome = limited("threads", "--json")
    assert outcome.returncode == 1, outcome.stderr
    listed = {each["thread_id"]: each for each in json.loads(outcome.stdout)}
    assert "max_checkpoint_bytes allows 268,435,456" in listed["huge"]["reason"]
    assert listed["good"]["state"] == "finished"
    larger = stored("threads", "--json", "--max-bytes", "4000000000")
    assert {each["thread_id"]: each["reason"] for each in larger.json()}["huge"] is None


def test_the_setting_has_the_default_of_the_saver():
    """One limit, whoever opens the store."""
    assert Settings.model_fields["max_bytes"].default == (
        RedisSaver("redis://127.0.0.1:1").options.max_checkpoint_bytes
    )

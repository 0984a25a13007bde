"""The embedded Valkey: one server for all processes, there as long as any of them is."""

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from psutil import Process
from redis.asyncio import Redis

from pdr_graph.errors import LocalError
from pdr_graph.servers import embedded_valkey
from pdr_graph.servers.server import answers
from pdr_graph.servers.valkey import LINGER_S, SOCKET_PATH_LIMIT, noted_address
from tests.servers.processes import Holder, eventually, servers

pytestmark = pytest.mark.redis

Hold = Callable[[str, Path], Holder]


async def write(url: str, key: str, value: str) -> None:
    async with Redis.from_url(url) as redis:
        await redis.set(key, value)


async def read(url: str, key: str) -> str | None:
    async with Redis.from_url(url, decode_responses=True) as redis:
        return await redis.get(key)


def valkeys(data_dir: Path) -> list[Process]:
    return servers(data_dir, lambda process: process.name() == "valkey-server")


def guards(data_dir: Path) -> list[Process]:
    return servers(data_dir, lambda process: "process_guard.py" in " ".join(process.cmdline()))


def supervisors(data_dir: Path) -> list[Process]:
    return servers(
        data_dir, lambda process: "pdr_graph.servers.valkey" in " ".join(process.cmdline())
    )


PARTIES = {"server": valkeys, "guard": guards, "supervisor": supervisors}


async def kill(*processes: Process | subprocess.Popen[str]) -> None:
    """Kill them with SIGKILL and wait until they are gone, their locks with them."""
    for process in processes:
        process.kill()
    for process in processes:
        await asyncio.to_thread(process.wait, 10)


async def test_data_survives_a_restart(data_dir: Path) -> None:
    """What one server was given, the next one has, without a wait in between."""
    async with embedded_valkey(data_dir) as url:
        await write(url, "run", "kept")
    eventually(lambda: not servers(data_dir))
    async with embedded_valkey(data_dir) as url:
        assert await read(url, "run") == "kept"


async def test_it_is_a_durable_store(data_dir: Path) -> None:
    """Every write reaches the disk, nothing is evicted, and no port is open."""
    said: list[str] = []
    async with embedded_valkey(data_dir, announce=said.append) as url, Redis.from_url(url) as redis:
        options = await redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "port")
    assert options == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "port": "0",
    }
    assert said == [f"store: embedded Valkey, kept in {data_dir / 'valkey'}"]


async def test_two_processes_that_start_at_once_share_one_server(
    data_dir: Path, hold: Hold
) -> None:
    """Neither starts a second one, and neither fails."""
    first, second, third = [hold("valkey", data_dir) for _ in range(3)]
    assert first.where() == second.where() == third.where()
    assert len(valkeys(data_dir)) == len(supervisors(data_dir)) == 1


async def test_the_server_survives_the_first_of_two_clients(data_dir: Path, hold: Hold) -> None:
    """It ends after its last client, even when that one is killed."""
    first, second = hold("valkey", data_dir), hold("valkey", data_dir)
    url = first.where()
    second.where()
    first.end()
    await asyncio.sleep(4 * LINGER_S)
    await write(url, "still", "there")
    second.kill()
    eventually(lambda: not servers(data_dir))


async def test_a_client_that_comes_while_the_server_ends_is_served(data_dir: Path) -> None:
    """Coming and going never meets a server that is about to end."""
    async with asyncio.timeout(20):
        for turn in range(4):
            async with embedded_valkey(data_dir) as url:
                await write(url, "turn", str(turn))
            await asyncio.sleep(LINGER_S - 0.02 + 0.01 * turn)  # about when the supervisor looks


@pytest.mark.parametrize(
    "killed",
    [["server"], ["guard"], ["supervisor"], ["supervisor", "guard", "server"]],
    ids="+".join,
)
async def test_whoever_is_killed_the_store_comes_back(data_dir: Path, killed: list[str]) -> None:
    """With its data, at the same address, while a client needs it; and it ends with the client."""
    async with embedded_valkey(data_dir) as url:
        await write(url, "key", "value")
        await asyncio.sleep(1.1)  # appendfsync everysec
        before = valkeys(data_dir)
        await kill(*(process for name in killed for process in PARTIES[name](data_dir)))
        await asyncio.to_thread(eventually, lambda: valkeys(data_dir) not in ([], before))
        await asyncio.to_thread(eventually, lambda: answers(url))
        assert await read(url, "key") == "value"
        assert [len(party(data_dir)) for party in PARTIES.values()] == [1, 1, 1]
    eventually(lambda: not servers(data_dir))


async def test_a_client_whose_supervisor_was_killed_leaves_no_server(data_dir: Path) -> None:
    """The server ends with its supervisor, though nobody is left to look after it."""
    async with embedded_valkey(data_dir):
        await kill(*supervisors(data_dir))
    eventually(lambda: not servers(data_dir))


async def test_client_and_supervisor_killed_at_once_leave_no_server(
    data_dir: Path, hold: Hold
) -> None:
    """Nobody who could end the server gets to run, and it ends."""
    holder = hold("valkey", data_dir)
    holder.where()
    await kill(holder.process, *supervisors(data_dir))
    eventually(lambda: not servers(data_dir))


async def test_there_are_never_two_servers(data_dir: Path, hold: Hold) -> None:
    """Three clients come, and whoever is alive is killed at random moments, by a fixed seed."""
    chance = random.Random(7)
    most, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(await asyncio.to_thread(valkeys, data_dir)))

    counting = asyncio.create_task(count())
    holders = [hold("valkey", data_dir) for _ in range(3)]
    url = await asyncio.to_thread(holders[0].where)
    for _ in range(8):
        await asyncio.sleep(chance.uniform(0, 0.6))
        party = PARTIES[chance.choice(list(PARTIES))]
        for process in party(data_dir):
            process.kill()
    await asyncio.to_thread(eventually, lambda: answers(url))
    done.set()
    await counting
    assert most == 1
    for holder in holders:
        holder.kill()
    eventually(lambda: not servers(data_dir))


async def test_everything_killed_leaves_a_usable_store(data_dir: Path, hold: Hold) -> None:
    """Client, supervisor and server gone at once: only a stale socket is left, and the data."""
    holder = hold("valkey", data_dir)
    await write(holder.where(), "key", "value")
    await asyncio.sleep(1.1)  # appendfsync everysec
    await kill(holder.process, *supervisors(data_dir), *valkeys(data_dir))
    assert noted_address(data_dir / "valkey").endswith("valkey.sock")
    async with embedded_valkey(data_dir) as url:
        assert await read(url, "key") == "value"


async def test_a_torn_log_is_read_up_to_the_tear(data_dir: Path) -> None:
    """A machine that lost its power in mid-write loses that write only."""
    async with embedded_valkey(data_dir) as url:
        await write(url, "whole", "yes")
    eventually(lambda: not servers(data_dir))
    (log,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes() + b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    async with embedded_valkey(data_dir) as url:
        assert await read(url, "whole") == "yes"


async def test_a_corrupt_log_is_one_sentence(data_dir: Path) -> None:
    """What Valkey says about it is repeated, with the place of its log."""
    async with embedded_valkey(data_dir) as url:
        await write(url, "key", "value")
    eventually(lambda: not servers(data_dir))
    (log,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"garbage" + log.read_bytes())
    with pytest.raises(LocalError, match=r"ended with status 1 \(Bad file format") as caught:
        async with embedded_valkey(data_dir):
            pass
    assert str(data_dir / "valkey" / "valkey.log") in str(caught.value)


async def test_a_path_too_long_for_a_socket_falls_back(data_dir: Path) -> None:
    """The socket is then in the temporary folder, the data where it was asked for."""
    deep = data_dir / ("deep" * 20) / ("deeper" * 20)
    async with embedded_valkey(deep) as url:
        await write(url, "key", "value")
        assert str(deep) not in url
        assert len(url) < SOCKET_PATH_LIMIT
    eventually(lambda: not servers(data_dir))
    assert (deep / "valkey" / "appendonlydir").is_dir()


async def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """The sentence names it and what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(
        LocalError, match=r"file/valkey' cannot be made: .*; choose another by --data-dir"
    ):
        async with embedded_valkey(tmp_path / "file"):
            pass


async def test_the_store_may_vanish(data_dir: Path) -> None:
    """A user who removes the folder under a running server is left with no process."""
    async with embedded_valkey(data_dir):
        while (data_dir / "valkey").exists():  # the server may write while it is removed
            shutil.rmtree(data_dir / "valkey", ignore_errors=True)
    eventually(lambda: not servers(data_dir))

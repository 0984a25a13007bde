"""The embedded Valkey: one server for all processes, there as long as any of them is."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from psutil import Process
from redis.asyncio import Redis

from pdr_graph.errors import LocalError
from pdr_graph.servers import embedded_valkey
from pdr_graph.servers.valkey import SOCKET_PATH_LIMIT, ask, socket_path
from pdr_graph.servers.valkey_supervisor import POLL_S, STABLE_S
from tests.local.processes import Holder, eventually, servers

pytestmark = pytest.mark.redis

Hold = Callable[[str, Path], Holder]


async def write(url: str, key: str, value: str) -> None:
    async with Redis.from_url(url) as redis:
        await redis.set(key, value)


async def read(url: str, key: str) -> str | None:
    async with Redis.from_url(url, decode_responses=True) as redis:
        return await redis.get(key)


def valkeys(data_dir: Path) -> list[Process]:
    return [process for process in servers(data_dir) if process.name() == "valkey-server"]


def supervisors(data_dir: Path) -> list[Process]:
    return [process for process in servers(data_dir) if process.name() != "valkey-server"]


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
    await asyncio.sleep(4 * POLL_S)
    await write(url, "still", "there")
    second.kill()
    eventually(lambda: not servers(data_dir))


async def test_a_client_that_comes_while_the_server_ends_is_served(data_dir: Path) -> None:
    """Coming and going never meets a server that is about to end."""
    async with asyncio.timeout(20):
        for turn in range(4):
            async with embedded_valkey(data_dir) as url:
                await write(url, "turn", str(turn))
            await asyncio.sleep(POLL_S - 0.02 + 0.01 * turn)  # about when the supervisor looks


async def test_a_server_without_supervisor_is_taken_over(data_dir: Path, hold: Hold) -> None:
    """The next client finds it alive, and it still ends after the last one."""
    holder = hold("valkey", data_dir)
    await write(holder.where(), "key", "value")
    before = valkeys(data_dir)
    await kill(*supervisors(data_dir))
    async with embedded_valkey(data_dir) as url:
        assert await read(url, "key") == "value"
        assert valkeys(data_dir) == before
        assert len(supervisors(data_dir)) == 1
    holder.kill()
    eventually(lambda: not servers(data_dir))


async def test_a_client_whose_supervisor_was_killed_leaves_no_server(data_dir: Path) -> None:
    """The last one to leave sees to it."""
    async with embedded_valkey(data_dir):
        await kill(*supervisors(data_dir))
    eventually(lambda: not servers(data_dir))


async def test_everything_killed_leaves_a_usable_store(data_dir: Path, hold: Hold) -> None:
    """Client, supervisor and server gone at once: only a stale socket is left, and the data."""
    holder = hold("valkey", data_dir)
    await write(holder.where(), "key", "value")
    await asyncio.sleep(1.1)  # appendfsync everysec
    await kill(holder.process, *supervisors(data_dir), *valkeys(data_dir))
    assert (data_dir / "valkey" / "valkey.sock").exists()
    async with embedded_valkey(data_dir) as url:
        assert await read(url, "key") == "value"


async def test_a_server_that_is_killed_is_started_again(data_dir: Path) -> None:
    """Clients that reconnect go on, at the same address."""
    async with embedded_valkey(data_dir) as url:
        await write(url, "key", "value")
        await asyncio.sleep(STABLE_S)
        before = valkeys(data_dir)
        await kill(*before)
        socket = str(data_dir / "valkey" / "valkey.sock")
        await asyncio.to_thread(eventually, lambda: ask(socket, "PING") == "+PONG")
        assert await read(url, "key") == "value"
        assert len(valkeys(data_dir)) == 1
        assert valkeys(data_dir) != before


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
    with pytest.raises(LocalError, match="did not start: Bad file format") as caught:
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
    with pytest.raises(LocalError, match=r"file/valkey cannot be made: .*; choose another one"):
        async with embedded_valkey(tmp_path / "file"):
            pass


async def test_the_store_may_vanish(data_dir: Path) -> None:
    """A user who removes the folder under a running server is left with no process."""
    async with embedded_valkey(data_dir):
        while (data_dir / "valkey").exists():  # the server may write while it is removed
            shutil.rmtree(data_dir / "valkey", ignore_errors=True)
    eventually(lambda: not servers(data_dir))


def test_a_stale_socket_is_no_obstacle(tmp_path: Path) -> None:
    """A file that a killed server left behind is replaced."""
    (tmp_path / "valkey.sock").touch()
    assert socket_path(tmp_path) == str(tmp_path / "valkey.sock")

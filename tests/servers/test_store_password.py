"""A Redis that `up` starts on a port: it has a password, which only its owner reads."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest
from pdr_checkpoints import StoreConfigError
from redis import Redis
from redis.exceptions import AuthenticationError

from pdr_graph.cli.store import open_redis
from pdr_graph.cli.up import standings
from pdr_graph.errors import LocalError
from pdr_graph.servers.choice import unanswered_port
from pdr_graph.servers.keeper import end
from pdr_graph.servers.record import Shelf, without_password
from pdr_graph.servers.valkey import noted_password, own_password
from tests.servers.processes import servers
from tests.servers.test_up import _redis, unused_port

__all__ = ["_redis"]
pytestmark = pytest.mark.redis


@pytest.fixture
def store(up, mock):
    """Runs `up` for the store alone."""
    return lambda *words: up("up", "--base-url", mock.url, *words)


async def opened(url: str) -> bool:
    async with open_redis(url) as saver:
        return bool((await saver.health()).persistent)


@pytest.mark.security
def test_a_redis_on_a_port_has_a_password(store, up, data_dir, clean):
    """Who does not have it does nothing; it is on no command line, screen, log or open file."""
    port = unused_port()
    (clean / ".env").write_text("# mine\n")
    (clean / ".env").chmod(0o644)
    started = store("--redis-port", str(port), "--env-file", ".env")
    assert started.code == 0, started.err
    url = started.out.partition("PDR_REDIS_URL=")[2].strip()
    password = noted_password(data_dir / "redis")
    assert len(password) >= 32
    assert url == f"redis://:{password}@127.0.0.1:{port}"

    with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
        stranger.set("a", "b")
    with pytest.raises(StoreConfigError):
        asyncio.run(opened(f"redis://:wrong@127.0.0.1:{port}"))
    assert asyncio.run(opened(url))

    running = psutil.process_iter(["cmdline"])
    words = [" ".join(each.info["cmdline"] or ()) for each in running]
    logs = [each.read_text() for each in data_dir.rglob("*.log")]
    status = [up("up", "--status").out, up("up", "--status", "--json").out, up("doctor").out]
    other = [store("--redis-port", "1").err]
    assert not any(password in text for text in [*words, *logs, started.err, *status, *other])
    holders = [
        each
        for each in [*data_dir.rglob("*"), clean / ".env"]
        if each.is_file() and password in each.read_text(errors="replace")
    ]
    assert {each.name for each in holders} == {"password.conf", "store.json", ".env"}
    assert {each.stat().st_mode & 0o777 for each in holders} == {0o600}

    # After a reboot the file names a Redis of ours that is gone: the same one is started.
    assert up("down", "store").code == 0
    again = up("up", "--json")
    assert again.code == 0, again.err
    assert again.json()["store"]["url"] == url
    assert up("down").code == 0


@pytest.mark.security
def test_a_screen_does_not_show_it(store, up, data_dir, monkeypatch):
    """What a shell reads is whole; a terminal gets the command that sets it."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    outcome = store("--redis-port", str(unused_port()))
    assert noted_password(data_dir / "redis") not in outcome.out + outcome.err
    assert 'eval "$(pdr-graph up)"' in outcome.err
    assert up("down").code == 0


def test_a_socket_stays_the_default(store, up, data_dir):
    """It has no password, and no port."""
    outcome = store("--json")
    assert outcome.json()["store"]["url"].startswith("unix://")
    assert noted_password(data_dir / "redis") == ""
    assert up("down").code == 0


def test_a_record_from_before_stays_usable(up, data_dir, mock):
    """A Redis on a port without a password, kept by an earlier version, is found and ended."""
    port = unused_port()
    own_password(data_dir / "redis")  # as if another `up` had been here since
    outcome = up("up", "--base-url", mock.url, "--redis-port", str(port), "--json")
    assert outcome.code == 0, outcome.err
    shelf = Shelf(data_dir)
    with Redis.from_url(outcome.json()["store"]["url"]) as client:
        client.config_set("requirepass", "")
    file = data_dir / "stack/store.json"
    old = json.loads(file.read_text()) | {"url": f"redis://127.0.0.1:{port}"}
    file.write_text(json.dumps(old))
    assert [each.state for each in standings(shelf)] == ["ready"]
    again = up("up", "--base-url", mock.url, "--json").json()["store"]
    assert (again["how"], again["url"]) == ("running", f"redis://127.0.0.1:{port}")
    assert end(shelf, "store") is not None
    assert not servers(data_dir)


def test_an_address_without_its_password_is_told(store, up, data_dir, monkeypatch):
    """A Redis that had none gets one, and the user is told to set the address anew."""
    monkeypatch.setenv("PDR_REDIS_URL", f"redis://127.0.0.1:{unused_port()}")
    outcome = store()
    assert outcome.code == 0, outcome.err
    assert "PDR_REDIS_URL" in outcome.err
    assert "password" in outcome.err
    assert up("down").code == 0


@pytest.mark.security
def test_the_password_is_made_once(tmp_path):
    """It is the owner's from its first instant; a file that others could read is replaced."""
    before = os.umask(0)
    try:
        first = own_password(tmp_path / "redis")
    finally:
        os.umask(before)
    file = tmp_path / "redis/password.conf"
    assert file.stat().st_mode & 0o777 == 0o600
    assert own_password(tmp_path / "redis") == first == noted_password(tmp_path / "redis")
    file.chmod(0o644)
    assert own_password(tmp_path / "redis") != first
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("nonsense\n")
    assert len(own_password(tmp_path / "redis")) >= 32
    with pytest.raises(LocalError):
        own_password(Path("/proc/none"))


def test_whose_port_it_is():
    """A password of somebody else's is a server that somebody has set up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert unanswered_port(f"redis://:mine@127.0.0.1:{port}", 6379, "mine") == port
    assert unanswered_port(f"redis://:other@127.0.0.1:{port}", 6379, "mine") is None
    assert unanswered_port(f"redis://:other@127.0.0.1:{port}", 6379) is None
    assert unanswered_port(f"redis://127.0.0.1:{port}", 6379, "mine") == port


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@127.0.0.1:1/0", "redis://:***@127.0.0.1:1/0"),
        ("redis://me:sec@ret@h", "redis://me:***@h"),
        ("redis://h/0?password=secret", "redis://h/0?password=***"),
        (
            "redis+sentinel://a:1,b:2/m?db=1&sentinel_password=x%26y&ssl_password=z&retry_for_s=5",
            "redis+sentinel://a:1,b:2/m?db=1&sentinel_password=***&ssl_password=***&retry_for_s=5",
        ),
        ("unix://:secret@/a/b.sock?password=secret", "unix://:***@/a/b.sock?password=***"),
        ("redis://h:1", "redis://h:1"),
        ("unix:///a/b.sock", "unix:///a/b.sock"),
    ],
)
@pytest.mark.security
def test_addresses_as_they_are_shown(url, shown):
    """Passwords are left out, and nothing else."""
    assert without_password(url) == shown

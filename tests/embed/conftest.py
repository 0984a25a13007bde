"""A store for the trials of embedding."""

import asyncio
from collections.abc import Iterator

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers import embedded_valkey


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an embedded Valkey, which all tests of a module share."""
    loop = asyncio.new_event_loop()
    server = embedded_valkey(tmp_path_factory.mktemp("valkey"))
    try:
        url = loop.run_until_complete(server.__aenter__())
    except LocalError as error:
        pytest.skip(str(error))
    yield url
    loop.run_until_complete(server.__aexit__(None, None, None))
    loop.close()

"""What the tests of `up` and `down` share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import clean, cli  # fixtures
from tests.local.conftest import model_data_dir  # a fixture
from tests.local.processes import eventually, servers
from tests.stack.stand_in import StandIn


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory with a space in its name, of whose servers none outlives the test."""
    folder = tmp_path / "data dir"
    monkeypatch.setenv("PDR_DATA_DIR", str(folder))
    yield folder
    for process in servers(folder):
        process.kill()
    eventually(lambda: not servers(folder))


@pytest.fixture
def up(clean, data_dir, request, monkeypatch) -> Callable:  # noqa: F811
    """Runs a command in this process, with the data directory of the test."""
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PDR_CACHE_DIR", str(clean / "no cache"))
    return request.getfixturevalue("cli")


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """An interpreter whose vLLM is a stand-in."""
    return StandIn.make(tmp_path / "engine")

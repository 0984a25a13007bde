"""What the tests of the servers share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pdr_graph.servers import default_data_dir, find_weights
from tests.cli.conftest import clean, cli  # fixtures
from tests.servers.processes import Holder, eventually, servers
from tests.servers.stand_in import StandIn


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory with a space in its name, whose servers all end with the test."""
    folder = tmp_path / "data dir"
    monkeypatch.setenv("PDR_DATA_DIR", str(folder))
    yield folder
    try:
        eventually(lambda: not servers(folder), within_s=30)
    finally:
        for process in servers(folder):
            process.kill()


@pytest.fixture
def hold(data_dir: Path) -> Iterator[Callable[[str, Path], Holder]]:
    """Makes processes that hold a part; none outlives the test."""
    holders: list[Holder] = []

    def start(part: str, folder: Path) -> Holder:
        holders.append(Holder(part, folder))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()


@pytest.fixture(scope="session")
def model_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that has the weights."""
    found = find_weights(default_data_dir())
    if found is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    folder = tmp_path_factory.mktemp("with weights")
    (folder / "weights").mkdir()
    (folder / "weights" / found.name).symlink_to(found)
    return folder


@pytest.fixture
def up(clean, data_dir, request, monkeypatch) -> Callable:  # noqa: F811
    """Runs a command in this process, with the data directory of the test."""
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    monkeypatch.setenv("XDG_DATA_HOME", str(clean / "home"))  # notes of trust
    monkeypatch.setenv("PDR_CACHE_DIR", str(clean / "no cache"))
    return request.getfixturevalue("cli")


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """An interpreter whose vLLM is a stand-in."""
    return StandIn.make(tmp_path / "engine")

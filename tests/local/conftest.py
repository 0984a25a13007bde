"""What the tests of the embedded parts share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pdr_graph.servers import default_data_dir, find_weights
from tests.local.processes import Holder, eventually, servers


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory with a space in its name, whose servers all end with the test."""
    folder = tmp_path / "data dir"
    folder.mkdir()
    yield folder
    eventually(lambda: not servers(folder))


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

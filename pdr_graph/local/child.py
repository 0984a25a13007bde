"""How a module of this package is run as a process of its own."""

import os
import sys
from pathlib import Path

import pdr_graph


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` in this interpreter.

    `-P` keeps the current directory out of the child's imports: it is the user's, and may hold
    anything.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment, with the package where the child will find it.

    A package that is run from a source tree is on the parent's path only.
    """
    root = str(Path(pdr_graph.__file__).parents[1])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

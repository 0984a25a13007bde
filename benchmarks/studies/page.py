"""The page of a study: the tables and plots of its runs, each under the command that made it."""

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pdr_graph.eval.records import read_header


@dataclass(frozen=True, slots=True)
class Part:
    """One run, compared."""

    out: Path
    """Its folder, with `table.md` and `plots/`."""
    words: Sequence[str]
    """What followed `pdr-graph`."""


def page(parts: Sequence[Part]) -> str:
    """Join the tables of all runs; plots are linked from the folder above the runs'."""
    model = read_header(parts[0].out)["model"]
    texts = [
        f"# Strategies at matched budgets\n\nModel `{model}`, "
        f"pdr-graph {version('pdr-graph')}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}.\n"
    ]
    for part in parts:
        name = part.out.name
        plots = sorted((part.out / "plots").glob("*.png"))
        texts += [
            f"## {name}\n\n```console\n$ pdr-graph {shlex.join(part.words)}\n```\n",
            (part.out / "table.md").read_text("utf-8"),
            *(f"![{name}: {each.stem}]({name}/plots/{each.name})\n" for each in plots),
        ]
    return "\n".join(texts)

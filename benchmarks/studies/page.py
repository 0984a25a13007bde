"""The page of a study: the tables and plots of its runs, each under the command that made it."""

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pdr_graph.eval.records import read_header

COMMAND = "command.txt"


def keep_command(out: Path, words: Sequence[str]) -> None:
    """Write down what made a run, which puts it on the page.

    Args:
        out: The run's folder, with `table.md` and `plots/`.
        words: What followed `pdr-graph`.
    """
    (out / COMMAND).write_text(f"pdr-graph {shlex.join(words)}\n", "utf-8")


def page(folder: Path) -> str:
    """Join the tables of all runs in a folder; plots are linked from there."""
    runs = [file.parent for file in sorted(folder.glob(f"*/{COMMAND}"))]
    models = dict.fromkeys(read_header(run)["model"] for run in runs)
    texts = [
        f"# Strategies at matched budgets\n\nModel {', '.join(f'`{each}`' for each in models)}, "
        f"pdr-graph {version('pdr-graph')}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}.\n"
    ]
    for run in runs:
        plots = sorted((run / "plots").glob("*.png"))
        texts += [
            f"## {run.name}\n\n```console\n$ {(run / COMMAND).read_text('utf-8')}```\n",
            (run / "table.md").read_text("utf-8"),
            *(f"![{run.name}: {each.stem}]({run.name}/plots/{each.name})\n" for each in plots),
        ]
    return "\n".join(texts)

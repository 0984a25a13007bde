"""What came of a training run: its first figures beside its last."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from pdr_graph.cli.output import Output
from pdr_graph.cli.tables import plain_table
from pdr_graph.cli.text import one_line
from pdr_graph.train.metrics import METRICS, Line, read_metrics
from pdr_graph.train.run_folder import TrainFolder

SHARE = 10
"""A tenth of the updates is the beginning, and a tenth is the end."""
_SHOWN = ("reward/", "policy/entropy", "groups/flat", "loss", "mean_token_accuracy", "drift/mean")


def show_summary(folder: TrainFolder, output: Output) -> None:
    """Show how the figures of a finished run changed, and where its model is."""
    lines = list(read_metrics(folder.path / METRICS))
    stages = {stage: [line for line in lines if line["stage"] == stage] for stage in _stages(lines)}
    ends = {stage: first_and_last(of_stage) for stage, of_stage in stages.items()}
    if output.json:
        output.show_json(
            {
                "out": str(folder.path),
                "model": str(folder.model),
                "stages": {
                    stage: {
                        "updates": of_stage[-1]["update"],
                        "seconds": of_stage[-1]["seconds"],
                        "first": ends[stage][0],
                        "last": ends[stage][1],
                    }
                    for stage, of_stage in stages.items()
                },
            }
        )
        return
    for stage, (first, last) in ends.items():
        updates = stages[stage][-1]["update"]
        output.show(_table(stage, updates, first, last), Text(""))
    output.show(
        Text("to measure it: ", "dim")
        + Text(one_line(f"pdr-graph eval DATA --arm pdr --model {folder.model} --out runs/after"))
    )


def first_and_last(lines: Sequence[Line]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean of each figure over the first tenth of the updates, and over the last."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(_SHOWN))
    first, last = {}, {}
    for name in names:
        values = [float(line[name]) for line in lines if name in line]
        number = max(1, len(values) // SHARE)
        first[name], last[name] = fmean(values[:number]), fmean(values[-number:])
    return first, last


def _stages(lines: Sequence[Line]) -> list[Any]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def _table(stage: str, updates: int, first: dict[str, float], last: dict[str, float]) -> Table:
    table = plain_table()
    named = {"rl": "training", "warm_start": "warm start"}[stage]
    table.add_column(f"{named}, {updates} update{'s' * (updates != 1)}")
    table.add_column("first tenth", justify="right")
    table.add_column("last tenth", justify="right")
    for name in first:
        table.add_row(name.replace("/", " "), f"{first[name]:.4g}", f"{last[name]:.4g}")
    return table

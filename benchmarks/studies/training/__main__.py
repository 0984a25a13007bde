"""Runs the study, or goes on with it: `python -m benchmarks.studies.training`."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.studies.training.commands import say
from benchmarks.studies.training.pipeline import Pipeline
from benchmarks.studies.training.plots import draw_accuracy, draw_training
from benchmarks.studies.training.report import write_page
from benchmarks.studies.training.scale import Scale, quick
from benchmarks.studies.training.study import study_of


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    scale = quick() if asked.quick else Scale()
    if asked.seeds:
        scale = replace(scale, seeds=tuple(asked.seeds), replication=())
    out = asked.out or Path("runs/training-quick" if asked.quick else "runs/training")
    pipeline = Pipeline(out, scale, asked.jobs)
    began = time.monotonic()
    if not asked.report:
        out.mkdir(parents=True, exist_ok=True)
        pipeline.run(ablations=not asked.no_ablations)
    study = study_of(pipeline)
    if not study.models:
        say(f"nothing has been evaluated in {out} yet")
        return 1
    draw_accuracy(study, out / "training-accuracy.png")
    draw_training(pipeline, out / "training-curves.png")
    table = write_page(pipeline, study)
    sys.stdout.write(table.read_text("utf-8"))
    say(f"{table}, plots beside it; {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.training", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder of everything (runs/training, runs/training-quick)")
    add("--quick", action="store_true", help="minutes, to see that all works")
    add("--jobs", type=int, default=2, help="commands at once, a thread each (%(default)s)")
    add("--seeds", type=int, nargs="+", metavar="SEED", help="in the place of 1 to 8")
    add("--no-ablations", action="store_true", help="the main arms alone")
    add("--report", action="store_true", help="table and plots of what is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The adaptive study: what `pdr_adaptive` saves against `pdr` and a majority vote, and loses.

`make study-adaptive` runs `pdr-graph eval` and then `pdr-graph compare` on each source of problems,
and compares all sources of its folder in one table. The plan was fixed before any of the problems
was seen:

- Arms: `pdr_adaptive` as in the library; `pdr` at the library's default widths, which are cheaper
  than the preset's 16, 8, 4; a majority vote of 16. Sampling is the same for all.
- Problems: two procedural tasks of seed 31 (the preset was chosen on seeds 77 and 2026), and GSM8K
  if a file of it is given. One sample of each arm at each problem. Arms share the drafts of their
  first rounds, and each arm is charged for them, so differences by problem come from the strategies
  and not from the luck of the drafts.
- Success, for either contrast: the other arm spends at least 1.4 times the tokens (B_total), and
  the interval of the difference in accuracy reaches above zero.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.commands import (
    add_endpoint,
    compare_words,
    endpoint_words,
    run,
    say,
    task_sources,
)
from benchmarks.studies.endpoint import run_study

SEED = 31
ARMS = ("pdr_adaptive", "pdr=pdr@widths=8,4", "majority")
PAIRS = ("pdr:pdr_adaptive", "majority:pdr_adaptive")
SAMPLING = ("--max-tokens", "256", "--solution-tokens", "256", "--kappa", "600")


def sources(asked: argparse.Namespace) -> Mapping[str, str]:
    """Return the problems by name, as `pdr-graph eval` takes them."""
    tasks = task_sources(asked.problems, SEED)
    named = {asked.data.stem: str(asked.data)} if asked.data else tasks
    return {**named, **({"gsm8k": str(asked.gsm8k)} if asked.gsm8k else {})}


def eval_words(asked: argparse.Namespace, source: str, out: Path) -> list[str]:
    """Return the arguments of `pdr-graph` that measure the arms on one source."""
    return [
        *("eval", source, "--out", str(out), "--limit", str(asked.problems), "--seed", str(SEED)),
        *(word for arm in ARMS for word in ("--arm", arm)),
        *(*SAMPLING, "--temperature", "0.8", "--share-first-round"),
        *endpoint_words(asked),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    return run_study(_parser().parse_args(arguments), _measure)


def _measure(asked: argparse.Namespace) -> None:
    for name, source in sources(asked).items():
        if asked.only in {None, name}:
            out = asked.out / name
            run(eval_words(asked, source, out))
            run(compare_words([out], out, PAIRS))
            say(f"table: {out}/table.md; plots: {out}/plots")
    measured = sorted(file.parent for file in asked.out.glob("*/table.md"))
    if len(measured) > 1:
        run(compare_words(measured, asked.out, _pairs_of(measured)))
        say(f"all sources: {asked.out}/table.md; plots: {asked.out}/plots")


def _pairs_of(runs: Sequence[Path]) -> list[str]:
    """Return the pairs of arms as they are named when several runs are compared."""
    sides = [pair.split(":") for pair in PAIRS]
    return [":".join(f"{run.name}/{arm}" for arm in each) for run in runs for each in sides]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.adaptive", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/adaptive"), help="folder of all runs (%(default)s)")
    add("--data", type=Path, metavar="FILE", help="JSON lines instead of the tasks")
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines, in addition")
    add("--only", metavar="NAME", help="only this source")
    add("--problems", type=int, default=120, help="of each source (%(default)s)")
    add_endpoint(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

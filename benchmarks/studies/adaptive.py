"""The adaptive study: what `pdr_adaptive` saves beside `pdr` and a majority vote, at what loss.

`make study-adaptive` runs `pdr-graph eval` and then `pdr-graph compare` on each source of problems,
and lays those of its folder out beside each other.
The plan, made before any of its problems was looked at:

- Arms: `pdr_adaptive` as it is in the library, `pdr` at the library's default widths (which cost it
  less than its preset's 16, 8, 4), a majority vote of 16; the same sampling for all.
- Problems: two procedural tasks of seed 31 (the preset was chosen on those of seeds 77 and 2026),
  and GSM8K where a file of it is given. One sample of each arm at each problem. Arms share the
  drafts of their first rounds, each charged to every arm that uses it: the differences by problem
  are then those of the strategies, and not of the drafts' luck.
- Success, of either contrast: the other arm spends at least 1.4 times the tokens (B_total), and the
  interval of the difference in accuracy reaches above zero.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.commands import (
    TASKS,
    add_endpoint,
    compare_words,
    endpoint_words,
    run,
    say,
)
from benchmarks.studies.serving import endpoint
from pdr_graph.errors import LocalError

SEED = 31
ARMS = ("pdr_adaptive", "pdr=pdr@widths=8,4", "majority")
PAIRS = ("pdr:pdr_adaptive", "majority:pdr_adaptive")
SAMPLING = ("--max-tokens", "256", "--solution-tokens", "256", "--kappa", "600")


def sources(asked: argparse.Namespace) -> Mapping[str, str]:
    """Return the problems by name, as `pdr-graph eval` takes them."""
    tasks = {
        name: f"reasoning-gym:{name}?size={asked.problems}&seed={SEED}&{knobs}"
        for name, knobs in TASKS.items()
    }
    named = {asked.data.stem: str(asked.data)} if asked.data else tasks
    return {**named, **({"gsm8k": str(asked.gsm8k)} if asked.gsm8k else {})}


def eval_words(asked: argparse.Namespace, source: str, out: Path) -> list[str]:
    """Return the words after `pdr-graph` that measure the arms on one source."""
    return [
        *("eval", source, "--out", str(out), "--limit", str(asked.problems), "--seed", str(SEED)),
        *(word for arm in ARMS for word in ("--arm", arm)),
        *(*SAMPLING, "--temperature", "0.8", "--share-first-round"),
        *endpoint_words(asked),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    try:
        with endpoint(asked):
            _measure(asked)
    except LocalError as error:
        say(f"error: {error}")
        return 1
    return 0


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
    """Return the pairs as they are called where several runs are compared."""
    sides = [pair.split(":") for pair in PAIRS]
    return [":".join(f"{run.name}/{arm}" for arm in each) for run in runs for each in sides]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.adaptive", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/adaptive"), help="folder of all runs (%(default)s)")
    add("--data", type=Path, metavar="FILE", help="JSON lines in the place of the tasks")
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines, in addition")
    add("--only", metavar="NAME", help="one source of them")
    add("--problems", type=int, default=120, help="of each source (%(default)s)")
    add_endpoint(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The measured study: strategies and distillers on a small model, at matched budgets.

`make study` runs `pdr-graph eval` and then `pdr-graph compare` for every source of problems, at a
matched B_seq, at a matched B_total, and over kappa, rounds and widths, and joins the tables with
the failure decomposition and the plots in one page. Arms share the drafts of their first rounds
where these are the same calls, each charged to every arm. Stopped at any instant, the same command
goes on; what is finished is not asked again.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.studies.commands import (
    TASKS,
    add_endpoint,
    compare_words,
    endpoint_words,
    run,
    say,
)
from benchmarks.studies.figures import draw_outcomes, draw_sweeps
from benchmarks.studies.page import keep_command, page
from benchmarks.studies.serving import endpoint
from benchmarks.studies.settings import KAPPA, Comparison, comparisons
from pdr_graph.errors import LocalError
from pdr_graph.eval.comparison import compare
from pdr_graph.eval.records import read_run

QUICK_PROBLEMS = 4


def eval_words(
    asked: argparse.Namespace, source: str, comparison: Comparison, out: Path
) -> list[str]:
    """Return the words after `pdr-graph` that measure one source in one comparison."""
    return [
        *("eval", source, "--out", str(out), "--limit", str(asked.problems)),
        *("--samples", str(asked.samples), "--seed", str(asked.seed)),
        *("--kappa", str(asked.kappa), *comparison.budget_words(asked.call_tokens)),
        *(word for arm in comparison.arms for word in ("--arm", arm)),
        *("--share-first-round", "--forget"),
        *endpoint_words(asked),
    ]


def sources(asked: argparse.Namespace) -> Mapping[str, str]:
    """Return the problems by name, as `pdr-graph eval` takes them."""
    tasks = {
        name: f"reasoning-gym:{name}?size={asked.problems}&seed={asked.seed}&{knobs}"
        for name, knobs in TASKS.items()
    }
    given = dict(each.split("=", 1) for each in asked.data)
    named = given or tasks
    return {**named, **({"gsm8k": str(asked.gsm8k)} if asked.gsm8k else {})}


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    if asked.quick:
        asked.problems, asked.samples = min(asked.problems, QUICK_PROBLEMS), 1
    try:
        with endpoint(asked):
            _measure(asked)
    except LocalError as error:
        say(f"error: {error}")
        return 1
    written = asked.out / "study.md"
    written.write_text(page(asked.out), "utf-8")
    say(f"all tables and plots: {written}")
    return 0


def _measure(asked: argparse.Namespace) -> None:
    for name, source in sources(asked).items():
        for comparison in comparisons(asked.call_tokens, quick=asked.quick):
            if asked.only in {None, comparison.name}:
                out = asked.out / f"{name}-{comparison.name}"
                words = eval_words(asked, source, comparison, out)
                run(words)
                run(compare_words([out], out, comparison.pairs))
                _draw(out, swept=comparison.name == "sweeps")
                keep_command(out, words)


def _draw(out: Path, *, swept: bool) -> None:
    compared = asyncio.run(compare([read_run(out)]))
    draw_outcomes(compared.decompositions, out / "plots" / "outcomes.png")
    if swept:
        accuracies = {arm.name: arm.accuracy for arm in compared.arms}
        draw_sweeps(accuracies, out / "plots" / "sweeps.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.evaluation", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/study"), help="folder of all runs (%(default)s)")
    add("--data", action="append", default=[], metavar="NAME=SOURCE", type=_named,
        help="problems in the place of the procedural tasks; repeat it for more")  # fmt: skip
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines, in addition")
    add("--problems", type=int, default=60, help="of each source (%(default)s)")
    add("--samples", type=int, default=1, help="of each arm at each problem (%(default)s)")
    add("--seed", type=int, default=1, help="of problems and samples (%(default)s)")
    add("--call-tokens", type=int, default=256, help="length of a call of pdr (%(default)s)")
    add("--kappa", type=int, default=KAPPA, help="tokens of a workspace (%(default)s)")
    add_endpoint(parser)
    add("--only", choices=("b_seq", "b_total", "sweeps"), help="one of the comparisons")
    add("--quick", action="store_true", help="few problems and arms, to see that all works")
    return parser


def _named(text: str) -> str:
    if not all(text.partition("=")):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SOURCE")
    return text


if __name__ == "__main__":
    sys.exit(main())

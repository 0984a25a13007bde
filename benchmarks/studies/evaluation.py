"""The study of strategies: strategies and distillers on a small model, at matched budgets.

`make study` runs `pdr-graph eval` and then `pdr-graph compare` for every source of problems: at a
matched B_seq, at a matched B_total, and over kappa, rounds and widths. It joins all tables and
plots in one page. Arms whose first drafts are the same calls share them, and each arm is charged
for them. If the study is stopped, the same command goes on and repeats nothing that is finished.
"""

import argparse
import asyncio
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
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
from benchmarks.studies.figures import draw_outcomes, draw_sweeps
from benchmarks.studies.settings import KAPPA, Comparison, comparisons
from pdr_graph.eval.comparison import compare
from pdr_graph.eval.records import read_header, read_run

QUICK_PROBLEMS = 4
COMMAND = "command.txt"
"""In a run's folder: the command that made it."""


def eval_words(
    asked: argparse.Namespace, source: str, comparison: Comparison, out: Path
) -> list[str]:
    """Return the arguments of `pdr-graph` that measure one source in one comparison."""
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
    given = dict(each.split("=", 1) for each in asked.data)
    named = given or task_sources(asked.problems, asked.seed)
    return {**named, **({"gsm8k": str(asked.gsm8k)} if asked.gsm8k else {})}


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    if asked.quick:
        asked.problems, asked.samples = min(asked.problems, QUICK_PROBLEMS), 1
    if code := run_study(asked, _measure):
        return code
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


def keep_command(out: Path, words: Sequence[str]) -> None:
    """Write down the command that made a run, which puts the run on the page.

    Args:
        out: The run's folder, with `table.md` and `plots/`.
        words: What followed `pdr-graph`.
    """
    (out / COMMAND).write_text(f"pdr-graph {shlex.join(words)}\n", "utf-8")


def page(folder: Path) -> str:
    """Join the tables of all runs in a folder; plots are linked from there."""
    runs = [file.parent for file in sorted(folder.glob(f"*/{COMMAND}"))]
    models = dict.fromkeys(read_header(out)["model"] for out in runs)
    texts = [
        f"# Strategies at matched budgets\n\nModel {', '.join(f'`{each}`' for each in models)}, "
        f"pdr-graph {version('pdr-graph')}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}.\n"
    ]
    for out in runs:
        plots = sorted((out / "plots").glob("*.png"))
        texts += [
            f"## {out.name}\n\n```console\n$ {(out / COMMAND).read_text('utf-8')}```\n",
            (out / "table.md").read_text("utf-8"),
            *(f"![{out.name}: {each.stem}]({out.name}/plots/{each.name})\n" for each in plots),
        ]
    return "\n".join(texts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.evaluation", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/study"), help="folder of all runs (%(default)s)")
    add("--data", action="append", default=[], metavar="NAME=SOURCE", type=_named,
        help="problems instead of the procedural tasks; repeat it for more")  # fmt: skip
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines, in addition")
    add("--problems", type=int, default=60, help="of each source (%(default)s)")
    add("--samples", type=int, default=1, help="of each arm at each problem (%(default)s)")
    add("--seed", type=int, default=1, help="of problems and samples (%(default)s)")
    add("--call-tokens", type=int, default=256, help="length of a call of pdr (%(default)s)")
    add("--kappa", type=int, default=KAPPA, help="tokens of a workspace (%(default)s)")
    add_endpoint(parser)
    add("--only", choices=("b_seq", "b_total", "sweeps"), help="only this comparison")
    add("--quick", action="store_true", help="few problems and arms, to check that all works")
    return parser


def _named(text: str) -> str:
    if not all(text.partition("=")):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SOURCE")
    return text


if __name__ == "__main__":
    sys.exit(main())

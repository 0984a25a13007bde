"""`make study-selection`: samples the drafts, fits the judge, and applies the rule.

    sample   the drafts of both halves, by `pdr-graph eval`; a stopped run goes on
    fit      the judge, by `pdr-graph judge fit`, on the fitting half alone
    report   every policy on the drafts of the judging half: tables, plots, the rule

Without a step all three are taken. `report --kept` reads the drafts that the repository keeps.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.studies.commands import add_endpoint, endpoint_words, run, say
from benchmarks.studies.endpoint import run_study
from benchmarks.studies.selection.pool import PooledProblem, load, pooled, save
from benchmarks.studies.selection.report import STOP, WIDTH, WIDTHS, draw, measure, tables
from benchmarks.studies.selection.sources import FITTING, JUDGING, Half, sources
from pdr_graph.answers import answer_kind
from pdr_graph.eval.records import read_run

CALL_TOKENS = 320
"""Limit of a draft."""
DRAFTS, LONG = "drafts", "long_cot"
"""Arms of every run: the pool, and the single attempt."""
KEPT = Path(__file__).with_name("drafts")
"""What was sampled for the results page."""
STEPS = ("sample", "fit", "report")


def eval_words(asked: argparse.Namespace, half: Half, source: Path, out: Path) -> list[str]:
    """Return the arguments of `pdr-graph` that sample the drafts of one source."""
    arms = [f"{DRAFTS}=majority@widths={WIDTH};finish=weighted_vote"]
    if half is JUDGING:
        # As many tokens as the rounds of the preset may take one after another.
        arms.append(f"{LONG}=long_cot@max_tokens={CALL_TOKENS * len(WIDTHS)}")
    return [
        *("eval", str(source), "--out", str(out), "--seed", str(half.seed)),
        *(word for arm in arms for word in ("--arm", arm)),
        *("--max-tokens", str(CALL_TOKENS), "--temperature", "0.7", "--keep-drafts", "--forget"),
        *endpoint_words(asked),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or a step of it."""
    asked = _parser().parse_args(arguments)
    if "sample" in asked.steps and (code := run_study(asked, _sample)):
        return code
    if "fit" in asked.steps:
        _fit(asked)
    if "report" in asked.steps:
        _report(asked)
    return 0


def _sample(asked: argparse.Namespace) -> None:
    for half in (FITTING, JUDGING):
        if asked.half in {None, half.name}:
            for name, source in _sources(asked, half).items():
                run(eval_words(asked, half, source, _folder(asked, half, name)))


def _fit(asked: argparse.Namespace) -> None:
    for name in _sources(asked, FITTING):
        words = ["judge", "fit", str(_folder(asked, FITTING, name)), "--kind", asked.judge]
        run(
            [*words, "--out", str(_judge(asked, name)), "--plots", str(asked.out / f"judge-{name}")]
        )


def _report(asked: argparse.Namespace) -> None:
    pools = _kept(asked) if asked.kept else _sampled(asked)
    results = []
    for name, problems in pools.items():
        whole = [each for each in problems if len(each.drafts) == WIDTH]
        say(f"{name}: {len(whole)} problems with {WIDTH} drafts")
        results.append(asyncio.run(measure(name, whole, answer_kind("math"))))
    asked.out.mkdir(parents=True, exist_ok=True)
    page = asked.out / "tables.md"
    page.write_text(tables(results), "utf-8")
    draw(results, asked.out / "selection.png")
    sys.stdout.write(page.read_text("utf-8"))
    say(f"tables: {page}; plot: {asked.out / 'selection.png'}; preset {WIDTHS}, stop {STOP}")


def _sampled(asked: argparse.Namespace) -> dict[str, list[PooledProblem]]:
    found = {}
    for name in _sources(asked, JUDGING):
        run_folder = read_run(_folder(asked, JUDGING, name))
        found[name] = pooled(run_folder, DRAFTS, LONG)
        if asked.save:
            save(found[name], KEPT / f"{name}.jsonl.gz")
    return found


def _kept(asked: argparse.Namespace) -> dict[str, list[PooledProblem]]:
    files = sorted(KEPT.glob("*.jsonl.gz"))
    named = {file.name.partition(".")[0]: load(file) for file in files}
    return {name: each for name, each in named.items() if asked.only in {None, name}}


def _sources(asked: argparse.Namespace, half: Half) -> Mapping[str, Path]:
    found = sources(half, asked.problems, asked.gsm8k, asked.out)
    return {name: each for name, each in found.items() if asked.only in {None, name}}


def _folder(asked: argparse.Namespace, half: Half, name: str) -> Path:
    return Path(asked.out, half.name, name)


def _judge(asked: argparse.Namespace, name: str) -> Path:
    return Path(asked.out, f"judge-{name}.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.selection", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("steps", nargs="*", metavar="STEP", default=STEPS, choices=STEPS,
        help="sample, fit, report; all of them without one")  # fmt: skip
    add("--out", type=Path, default=Path("runs/selection"), help="folder of runs (%(default)s)")
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K's train.jsonl, for that source")
    add("--only", metavar="NAME", help="only this source")
    add("--half", choices=("fitting", "judging"), help="sample only this half")
    add("--problems", type=int, help="of each source and half, instead of the plan's")
    add("--judge", default="best", metavar="KIND", help="what judge fit makes (%(default)s)")
    add("--kept", action="store_true", help="report on the drafts that the repository keeps")
    add("--save", action="store_true", help="keep the drafts beside this program")
    add_endpoint(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

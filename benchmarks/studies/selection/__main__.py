"""`make study-selection`: samples drafts, fits a judge, and applies the rule.

    fit      samples the fitting part by `pdr-graph eval`, and fits a judge of each source on it
    sample   samples the judging part, weighed by the judges that are better than the vote
    report   tries every policy on these drafts: tables, plot, the rule
    rounds   compares what a second round may read, and a refinement, on other sums
    pairwise compares the vote with comparisons of its answers in pairs, on other sums
    judges   measures each kind of judge by folds over the fitting and the judging part
    confirm  samples further problems, for what was chosen after the judging part was seen;
             `report --part judging --part confirming` tells the outcome

Without a step all are taken but the last two. What was stopped goes on by the same command.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.commands import add_endpoint, compare_words, endpoint_words, run, say
from benchmarks.studies.endpoint import run_study
from benchmarks.studies.selection.pool import PooledProblem, load, pooled, save
from benchmarks.studies.selection.report import WIDTH, WIDTHS, draw, measure, tables
from benchmarks.studies.selection.sources import (
    CONFIRMING,
    FITTING,
    JUDGING,
    TASKS,
    Part,
    sources,
)
from pdr_graph.answers import answer_kind
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import read_run
from pdr_graph.judge import read_judge

CALL_TOKENS = 320
"""Limit of a draft."""
DRAFTS, LONG = "drafts", "long_cot"
"""Arms of the runs: the pool, and the single attempt."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Arms that share their first round, on sums that are in no part."""

    arms: Mapping[str, str]
    """By name; the others are compared with the first."""
    seed: int
    num_problems: int


TRIALS: Mapping[str, Trial] = {
    # The recommended preset with two rounds, or with one and a refinement.
    "rounds": Trial(
        {
            "fresh": "vote_first@widths=4,4",
            "evidence": "vote_first@widths=4,4;distiller=evidence",
            "contested": "vote_first@widths=4,4;distiller=contested",
            "tail": "vote_first@widths=4,4;distiller=tail",
            "refined": "vote_first@widths=4;distiller=evidence;finish=guarded",
        },
        seed=19,
        num_problems=100,
    ),
    "pairwise": Trial(
        {
            "vote": "majority@widths=8;finish=weighted_vote",
            "pairwise": "majority@widths=8;finish=pairwise_vote",
        },
        seed=20,
        num_problems=60,
    ),
}
"""Steps of the study, each with what it compares."""
TRIAL_TASK = "chain_sum"
JUDGES: Mapping[str, tuple[str, ...]] = {
    "self-check": ("--with", "self_check"),
    "hidden": (
        "--kind",
        "hidden",
        *(word for n in (8, 12, 16, 20, 24) for word in ("--layer", str(n))),
    ),
    "adapter": ("--kind", "adapter", "--epochs", "2", "--first-layer", "12"),
}
"""Options of `judge fit` for the step `judges`; those but the first need the model's weights."""
DEFAULT_STEPS = ("fit", "sample", "report", *TRIALS)
STEPS = (*DEFAULT_STEPS, "judges", "confirm")


def eval_words(asked: argparse.Namespace, part: Part, source: Path, out: Path) -> list[str]:
    """Return the arguments of `pdr-graph` that sample the drafts of one source."""
    arms, judge = [f"{DRAFTS}=majority@widths={WIDTH};finish=weighted_vote"], None
    if part is not FITTING:
        # As many tokens as the rounds of the preset may take one after another.
        arms.append(f"{LONG}=long_cot@max_tokens={CALL_TOKENS * len(WIDTHS)}")
        judge = _judge(asked, out.name)
    weighed = judge is not None and judge.exists() and is_better(judge)
    return [
        *("eval", str(source), "--out", str(out), "--seed", str(part.seed)),
        *(word for arm in arms for word in ("--arm", arm)),
        *("--max-tokens", str(CALL_TOKENS), "--temperature", "0.7", "--forget"),
        *(("--judge", str(judge), *_places(asked)) if weighed else ()),
        *endpoint_words(asked),
    ]


def fit_words(asked: argparse.Namespace, name: str) -> list[str]:
    """Return the arguments of `pdr-graph` that fit the judge of one source."""
    kind = "best" if asked.judge_weights else "signals"
    return [
        *("judge", "fit", str(_folder(asked, FITTING, name)), "--kind", kind, *_places(asked)),
        *("--out", str(_judge(asked, name)), "--plots", str(asked.out / f"judge-{name}")),
    ]


def judges_words(asked: argparse.Namespace, name: str, kind: str) -> list[str]:
    """Return the arguments of `pdr-graph` that measure one kind of judge on both parts."""
    file = asked.out / "judges" / name / (kind if kind == "adapter" else f"{kind}.json")
    folders = (str(_folder(asked, part, name)) for part in (FITTING, JUDGING))
    return [
        *("judge", "fit", *folders, *JUDGES[kind], "--out", str(file)),
        *("--plots", str(file.with_name(f"{kind}-plots"))),
        *(_places(asked) if kind != "self-check" else endpoint_words(asked)),
    ]


def trial_words(asked: argparse.Namespace, trial: Trial, out: Path) -> list[str]:
    """Return the arguments of `pdr-graph` that try every arm on the drafts of one first round."""
    size, task = asked.problems or trial.num_problems, TASKS[TRIAL_TASK]
    return [
        *("eval", f"reasoning-gym:{TRIAL_TASK}?size={size}&seed={trial.seed}&{task}"),
        *(word for name, each in trial.arms.items() for word in ("--arm", f"{name}={each}")),
        *("--share-first-round", "--out", str(out), "--seed", str(trial.seed)),
        *("--max-tokens", str(CALL_TOKENS), "--temperature", "0.7", "--forget"),
        *endpoint_words(asked),
    ]


def is_better(judge: Path) -> bool:
    """Tell whether a judge was better than the vote on the problems that it was fitted on."""
    gain = read_judge(judge).report["gain"]
    return gain["low"] is not None and gain["low"] > 0


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or steps of it."""
    asked = _parser().parse_args(arguments)
    try:
        if set(asked.steps) - {"report"} and (code := run_study(asked, _measure)):
            return code
        if "report" in asked.steps:
            _report(asked)
    except ConfigError as error:
        say(f"error: {error}")
        return 2
    return 0


def _measure(asked: argparse.Namespace) -> None:
    for part, step in ((FITTING, "fit"), (JUDGING, "sample"), (CONFIRMING, "confirm")):
        if step in asked.steps:
            for name, source in _sources(asked, part).items():
                run(eval_words(asked, part, source, _folder(asked, part, name)))
                if part is FITTING:
                    run(fit_words(asked, name))
    for step, trial in TRIALS.items():
        if step in asked.steps and asked.only in {None, TRIAL_TASK}:
            out, (first, *others) = asked.out / step, trial.arms
            run(trial_words(asked, trial, out))
            run(compare_words([out], out, [f"{first}:{name}" for name in others]))
    if "judges" in asked.steps:
        for name in _sources(asked, JUDGING):
            for kind in JUDGES if asked.judge_weights else ("self-check",):
                run(judges_words(asked, name, kind))


def _report(asked: argparse.Namespace) -> None:
    results = []
    for name, problems in _pools(asked).items():
        whole = [each for each in problems if len(each.drafts) == WIDTH]
        if whole:
            say(f"{name}: {len(whole)} problems with {WIDTH} drafts")
            results.append(asyncio.run(measure(name, whole, answer_kind("math"))))
    if not results:
        raise ConfigError(
            f"{str(asked.kept or asked.out)!r} holds no drafts to report on; sample them first: "
            "python -m benchmarks.studies.selection fit sample, or confirm"
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    page, plot = asked.out / "tables.md", asked.out / "selection.png"
    page.write_text(tables(results), "utf-8")
    draw(results, plot)
    sys.stdout.write(page.read_text("utf-8"))
    say(f"tables: {page}; plot: {plot}")


def _pools(asked: argparse.Namespace) -> dict[str, list[PooledProblem]]:
    if asked.kept is not None:
        return {file.name.partition(".")[0]: load(file) for file in asked.kept.glob("*.jsonl.gz")}
    found = {}
    for part in asked.part or [JUDGING.name]:
        for folder in sorted((asked.out / part).glob("*/")):
            if asked.only in {None, folder.name}:
                name = folder.name if part == JUDGING.name else f"{folder.name}, {part}"
                found[name] = pooled(read_run(folder), DRAFTS, LONG)
                if asked.keep is not None:
                    save(found[name], asked.keep / f"{name}.jsonl.gz")
    return found


def _places(asked: argparse.Namespace) -> tuple[str, ...]:
    return ("--judge-weights", str(asked.judge_weights)) if asked.judge_weights else ()


def _sources(asked: argparse.Namespace, part: Part) -> Mapping[str, Path]:
    found = sources(part, asked.problems, asked.gsm8k, asked.out)
    return {name: each for name, each in found.items() if asked.only in {None, name}}


def _folder(asked: argparse.Namespace, part: Part, name: str) -> Path:
    return Path(asked.out, part.name, name)


def _judge(asked: argparse.Namespace, name: str) -> Path:
    return Path(asked.out, f"judge-{name}.json")


def _step(word: str) -> str:
    # With `choices`, argparse would refuse that no step is named.
    if word not in STEPS:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(STEPS)}")
    return word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.selection", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("steps", nargs="*", metavar="STEP", type=_step, default=DEFAULT_STEPS,
        help=f"{', '.join(STEPS)}; all but the last two without one")  # fmt: skip
    add("--out", type=Path, default=Path("runs/selection"), help="folder of runs (%(default)s)")
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K's train.jsonl, for that source")
    add("--only", metavar="NAME", help="only this source")
    add("--problems", type=int, help="of each source and part, instead of the plan's")
    add("--part", action="append", choices=[JUDGING.name, CONFIRMING.name],
        help="problems that are reported on; repeat it for both (judging)")  # fmt: skip
    add("--judge-weights", type=Path, metavar="PATH",
        help="the model's folder, for judges of hidden states; --vllm knows its own")  # fmt: skip
    add("--keep", type=Path, metavar="FOLDER", help="write the drafts there, without texts")
    add("--kept", type=Path, metavar="FOLDER", help="report on drafts that --keep has written")
    add_endpoint(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

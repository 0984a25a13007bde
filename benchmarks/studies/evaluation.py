"""The measured study: strategies and distillers on a small model, at matched budgets.

`make study` runs `pdr-graph eval` and then `pdr-graph compare` for every source of problems, at a
matched B_seq, at a matched B_total, and over kappa, rounds and widths, and joins the tables with
the failure decomposition and the plots in one page. Arms share the drafts of their first rounds
where these are the same calls, each charged to every arm. Stopped at any instant, the same command
goes on; what is finished is not asked again.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.commands import (
    TASKS,
    add_endpoint,
    compare_words,
    endpoint_words,
    run,
    say,
)
from benchmarks.studies.page import Part, page
from benchmarks.studies.serving import endpoint
from pdr_graph.errors import LocalError

WIDTH = 4
"""Drafts of the one parallel round of every PDR arm, but in the sweep of widths."""
DISTILLERS = ("summary", "top_k", "top_k_per_sample", "random_k", "consensus", "answers")
ORACLES = ("oracle_correct", "oracle_wrong")
KAPPAS = (64, 192)
"""Bounds on the workspace beside the study's own."""
QUICK_PROBLEMS = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms that are measured together, and what is held equal between them."""

    name: str
    """`b_seq`, `b_total`, or `sweeps`, where calls have one length and what is spent differs."""
    arms: tuple[str, ...]

    def budget(self, call_tokens: int) -> int:
        """Return the budget that gives `pdr` with its summary calls of this length."""
        sequential, total = 3, WIDTH + 2  # drafts, summary, refinement
        return call_tokens * (sequential if self.name == "b_seq" else total)

    def budget_words(self, call_tokens: int) -> tuple[str, str]:
        """Return the option that sets the length of the calls."""
        if self.name == "sweeps":
            return "--max-tokens", str(call_tokens)
        return f"--{self.name.replace('_', '-')}", str(self.budget(call_tokens))


def comparisons(call_tokens: int, *, quick: bool) -> tuple[Comparison, ...]:
    """Return what is measured on each source.

    Args:
        call_tokens: Length of a call of `pdr`, and in the comparison at B_total of every arm that
            may spend its budget on more calls instead of longer ones.
        quick: Few arms, to see that all works.
    """
    distillers = DISTILLERS[:1] if quick else DISTILLERS + ORACLES
    at_b_seq = (
        "long_cot",
        "sr=sr@widths=1,1",
        *(f"pdr_{each}=pdr@widths={WIDTH};distiller={each}" for each in distillers),
        f"pdr_adaptive=pdr_adaptive@widths={WIDTH},{WIDTH},{WIDTH}",
        f"majority=majority@widths={WIDTH}",
    )
    at_b_total = (
        "long_cot",
        f"sr=sr@max_tokens={call_tokens}",
        f"pdr_summary=pdr@widths={WIDTH}",
        "pdr_adaptive=pdr_adaptive@widths=2,2,2",
        f"majority=majority@max_tokens={call_tokens}",
        f"genselect=genselect@max_tokens={call_tokens}",
    )
    return (
        Comparison("b_seq", at_b_seq),
        Comparison("b_total", at_b_total),
        *(() if quick else (Comparison("sweeps", swept()),)),
    )


def swept() -> tuple[str, ...]:
    """Return `pdr` of one round of four, and what differs from it in one number."""
    return (
        f"pdr=pdr@widths={WIDTH}",
        *(f"kappa_{each}=pdr@widths={WIDTH};kappa={each}" for each in KAPPAS),
        *(f"rounds_{each}=pdr@widths={','.join([str(WIDTH)] * each)}" for each in (2, 3)),
        *(f"width_{each}=pdr@widths={each}" for each in (2, 8)),
    )


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
            parts = list(_measure(asked))
    except LocalError as error:
        say(f"error: {error}")
        return 1
    written = asked.out / "study.md"
    written.write_text(page(parts), "utf-8")
    say(f"all tables and plots: {written}")
    return 0


def _measure(asked: argparse.Namespace) -> Iterator[Part]:
    for name, source in sources(asked).items():
        for comparison in comparisons(asked.call_tokens, quick=asked.quick):
            if asked.only in {None, comparison.name}:
                out = asked.out / f"{name}-{comparison.name}"
                words = eval_words(asked, source, comparison, out)
                run(words)
                run(compare_words(out))
                yield Part(out, words)


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
    add("--kappa", type=int, default=768, help="tokens of a workspace (%(default)s)")
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

"""The measured study: strategies and distillers on a small model, at matched budgets.

`make study` runs `pdr-graph eval` and then `pdr-graph compare` for every source of problems, once
at a matched B_seq and once at a matched B_total, and joins the tables in one page. Stopped at any
instant, the same command goes on; what is finished is not asked again.
"""

import argparse
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.studies import weights
from pdr_graph.errors import LocalError
from pdr_graph.eval.records import read_header
from pdr_graph.local.data_dir import default_data_dir
from pdr_graph.local.weights import fetch_weights, find_weights

WIDTH = 4
"""Drafts of the one parallel round of every PDR arm."""
DISTILLERS = ("summary", "top_k", "top_k_per_sample", "random_k", "consensus", "answers")
ORACLES = ("oracle_correct", "oracle_wrong")
TASKS = {
    "chain_sum": "min_terms=3&max_terms=5&min_digits=1&max_digits=2",
    "basic_arithmetic": "min_terms=2&max_terms=4&min_digits=1&max_digits=1",
}
"""Procedural tasks that a model of half a billion parameters can partly do, and their knobs."""
QUICK_PROBLEMS = 4


@dataclass(frozen=True, slots=True)
class Matching:
    """What is held equal between the arms."""

    name: str
    """`b_seq` or `b_total`."""
    arms: tuple[str, ...]

    def budget(self, call_tokens: int) -> int:
        """Return the budget that gives `pdr` with its summary calls of this length."""
        sequential, total = 3, WIDTH + 2  # drafts, summary, refinement
        return call_tokens * (sequential if self.name == "b_seq" else total)


def matchings(call_tokens: int, *, quick: bool) -> tuple[Matching, Matching]:
    """Return the two comparisons.

    Args:
        call_tokens: Length of a call of `pdr`, and in the comparison at B_total of every arm that
            may spend its budget on more calls instead of longer ones.
        quick: Few arms, to see that all works.
    """
    distillers = DISTILLERS[:1] if quick else DISTILLERS + ORACLES
    pdr = tuple(f"pdr_{each}=pdr@widths={WIDTH};distiller={each}" for each in distillers)
    at_b_seq = (
        "long_cot",
        "sr=sr@widths=1,1",
        *pdr,
        f"pdr_adaptive=pdr_adaptive@widths={WIDTH},{WIDTH},{WIDTH}",
        f"majority=majority@widths={WIDTH}",
    )
    at_b_total = (
        "long_cot",
        f"sr=sr@max_tokens={call_tokens}",
        *pdr,
        "pdr_adaptive=pdr_adaptive@widths=2,2,2",
        f"majority=majority@max_tokens={call_tokens}",
        f"genselect=genselect@max_tokens={call_tokens}",
    )
    return Matching("b_seq", at_b_seq), Matching("b_total", at_b_total)


def eval_words(asked: argparse.Namespace, source: str, matching: Matching, out: Path) -> list[str]:
    """Return the words after `pdr-graph` that measure one source at one matching."""
    budget = matching.budget(asked.call_tokens)
    return [
        *("eval", source, "--out", str(out), "--limit", str(asked.problems)),
        *("--samples", str(asked.samples), "--seed", str(asked.seed)),
        *("--kappa", str(asked.kappa), f"--{matching.name.replace('_', '-')}", str(budget)),
        *(word for arm in matching.arms for word in ("--arm", arm)),
        *("--forget", "--max-in-flight", str(asked.max_in_flight)),
        *(("--base-url", asked.base_url) if asked.base_url else ()),
        *(("--model", asked.model) if asked.model else ()),
    ]


def compare_words(out: Path) -> list[str]:
    """Return the words that lay the figures of one run out."""
    return ["compare", str(out), "--markdown", str(out / "table.md"), "--plots", str(out / "plots")]


def sources(asked: argparse.Namespace) -> Mapping[str, str]:
    """Return the problems by name, as `pdr-graph eval` takes them."""
    tasks = {
        name: f"reasoning-gym:{name}?size={asked.problems}&seed={asked.seed}&{knobs}"
        for name, knobs in TASKS.items()
    }
    given = dict(each.split("=", 1) for each in asked.data)
    named = given or tasks
    return {**named, **({"gsm8k": str(asked.gsm8k)} if asked.gsm8k else {})}


def run(words: Sequence[str]) -> None:
    """Run one command of ours, shown first, its output left to the terminal.

    Raises:
        SystemExit: it failed, or was stopped; with its exit code.
    """
    say(f"$ pdr-graph {shlex.join(words)}")
    process = subprocess.Popen([sys.executable, "-m", "pdr_graph.cli", *words])
    while process.poll() is None:
        # Ctrl-C reaches the command too, which then stops where it can be gone on with.
        with suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        raise SystemExit(process.returncode)


def page(asked: argparse.Namespace, commands: Mapping[Path, Sequence[str]]) -> str:
    """Join the tables of all runs, each under the command that made it."""
    model = read_header(next(iter(commands)))["model"]
    parts = [
        f"# Strategies at matched budgets\n\nModel `{model}`, "
        f"pdr-graph {version('pdr-graph')}, Python {platform.python_version()}, "
        f"{platform.system()} on {platform.machine()}; seed {asked.seed}, at most {asked.problems} "
        f"problems a source, samples of each arm at each: {asked.samples}.\n"
    ]
    for out, words in commands.items():
        table = (out / "table.md").read_text("utf-8")
        parts.append(
            f"## {out.name}\n\n```console\n$ pdr-graph {shlex.join(words)}\n```\n\n{table}"
        )
    return "\n".join(parts)


def say(line: str) -> None:
    """Tell what is being done."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    if asked.quick:
        asked.problems, asked.samples = min(asked.problems, QUICK_PROBLEMS), 1
    if not (asked.model or asked.base_url):
        try:
            asked.model = str(model_file())
        except LocalError as error:
            say(f"error: {error}")
            return 1
    commands: dict[Path, Sequence[str]] = {}
    for name, source in sources(asked).items():
        for matching in matchings(asked.call_tokens, quick=asked.quick):
            if asked.only in {None, matching.name}:
                out = asked.out / f"{name}-{matching.name}"
                commands[out] = eval_words(asked, source, matching, out)
    for out, words in commands.items():
        run(words)
        run(compare_words(out))
    written = asked.out / "study.md"
    written.write_text(page(asked, commands), "utf-8")
    say(f"all tables: {written}; plots: {asked.out}/*/plots")
    return 0


def model_file() -> Path:
    """Return the weights of the studies' model, fetched if they are not here yet.

    Raises:
        LocalError: they cannot be had.
    """
    folder = default_data_dir()
    return find_weights(folder, weights=weights.QWEN) or fetch_weights(
        folder, say, weights=weights.QWEN, download=weights.join_parts
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.evaluation", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/study"), help="folder of all runs (%(default)s)")
    add("--base-url", help="endpoint; without one the embedded server runs the model")
    add("--model", help="a .gguf file, or the endpoint's name (Qwen2.5-Coder-0.5B, fetched)")
    add("--data", action="append", default=[], metavar="NAME=SOURCE", type=_named,
        help="problems in the place of the procedural tasks; repeat it for more")  # fmt: skip
    add("--gsm8k", type=Path, metavar="FILE", help="GSM8K as JSON lines, in addition")
    add("--problems", type=int, default=100, help="of each source (%(default)s)")
    add("--samples", type=int, default=2, help="of each arm at each problem (%(default)s)")
    add("--seed", type=int, default=1, help="of problems and samples (%(default)s)")
    add("--call-tokens", type=int, default=384, help="length of a call of pdr (%(default)s)")
    add("--kappa", type=int, default=768, help="tokens of a workspace (%(default)s)")
    add("--max-in-flight", type=int, default=32, help="calls at once (%(default)s)")
    add("--only", choices=("b_seq", "b_total"), help="one of the two comparisons")
    add("--quick", action="store_true", help="few problems and arms, to see that all works")
    return parser


def _named(text: str) -> str:
    if not all(text.partition("=")):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SOURCE")
    return text


if __name__ == "__main__":
    sys.exit(main())

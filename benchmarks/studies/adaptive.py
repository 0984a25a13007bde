"""The adaptive study: what `pdr_adaptive` saves beside `pdr` and a majority vote, and at what loss.

`make study-adaptive` runs `pdr-graph eval` and then `pdr-graph compare`. The preset was chosen on
problems of seeds 77 and 2026; the study's own, of seed 31, were not looked at before. Its claim is
read off the table of differences: points of accuracy with their interval, the ratio of B_total.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.studies.evaluation import compare_words, model_file, run, say
from pdr_graph.errors import LocalError

SEED = 31
TASK = "chain_sum"
KNOBS = "min_terms=3&max_terms=5&min_digits=1&max_digits=2"
ARMS = ("pdr_adaptive", "pdr=pdr@widths=8,4", "majority")
"""`pdr` at the library's default widths, which cost it less than its preset's 16, 8, 4."""
PAIRS = ("pdr:pdr_adaptive", "majority:pdr_adaptive")
SAMPLING = ("--max-tokens", "256", "--solution-tokens", "256", "--kappa", "600")


def eval_words(asked: argparse.Namespace) -> list[str]:
    """Return the words after `pdr-graph` that measure the arms."""
    source = f"reasoning-gym:{TASK}?size={asked.problems}&seed={SEED}&{KNOBS}"
    return [
        *("eval", str(asked.data or source), "--out", str(asked.out), "--seed", str(SEED)),
        *(("--limit", str(asked.problems)) if asked.data else ()),
        *(word for arm in ARMS for word in ("--arm", arm)),
        *(*SAMPLING, "--temperature", "0.8"),
        *(("--base-url", asked.base_url) if asked.base_url else ()),
        *(("--model", asked.model) if asked.model else ()),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    asked = _parser().parse_args(arguments)
    if not (asked.model or asked.base_url):
        try:
            asked.model = str(model_file())
        except LocalError as error:
            say(f"error: {error}")
            return 1
    run(eval_words(asked))
    run([*compare_words(asked.out), *(word for pair in PAIRS for word in ("--pair", pair))])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.studies.adaptive", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/adaptive/chain_sum"), help="folder (%(default)s)")
    add("--base-url", help="endpoint; without one the embedded server runs the model")
    add("--model", help="a .gguf file, or the endpoint's name (Qwen2.5-Coder-0.5B, fetched)")
    add("--data", type=Path, metavar="FILE", help="JSON lines in the place of the sums: GSM8K")
    add("--problems", type=int, default=32, help="how many (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

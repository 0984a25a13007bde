"""Runs long CoT beside PDR at matched budgets on vLLM, with any model folder.

    python -m benchmarks.gpu --model DIR [--widths 8,4] [--tokens 2048] [--problems 8] [--json FILE]

Starts vLLM on this machine's GPUs (without one, vLLM for CPUs), and asks its own problems, nested
arithmetic with known answers, of three strategies:

- `pdr`: the widths asked for, a summary, a refinement; `--tokens` for each call;
- `long_cot`: one call, allotted what `pdr` is allotted on its critical path (B_seq);
- `majority`: as many calls of `--tokens` as `pdr` makes (B_total), and a vote.

It records for each: right answers, tokens, wall-clock per problem, completion tokens per second,
and the share of prompt tokens that vLLM's prefix cache served. A handful of problems tells speed
and cost; what a method gains in accuracy takes hundreds.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figures, tell
from benchmarks.gpu.arms import PROBLEM_TOKENS, SEED, make_problems, matched_arms, run_arm
from engine.cache import say
from engine.environment import vllm_environment
from engine.machine import describe_machine, gpu_count, vllm_version
from engine.server import ON_CPU, VLLMServer
from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.errors import ConfigError, LocalError


def model_window(folder: Path) -> int | None:
    """Return the context window that a model folder states, None if it states none.

    Raises:
        ConfigError: it is no model folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise ConfigError(
            f"{str(folder)!r} is no model folder: it has no config.json that can be read"
        ) from None
    stated = config.get("text_config", config).get("max_position_embeddings")
    return stated if isinstance(stated, int) else None


def serving_python(named: Path | None) -> Path:
    """Return an interpreter that has vLLM: the one named, this one, or vLLM for CPUs.

    Raises:
        LocalError: a GPU is there and no vLLM for it.
    """
    for python in [named] if named else [Path(sys.executable)]:
        if python.exists() and vllm_version(python):
            return python
    if named:
        raise LocalError(f"{named} cannot import vLLM; name one by --python that can")
    if gpu_count():
        raise LocalError(
            "this machine has a GPU, and this environment no vLLM: pip install vllm somewhere and "
            "name its interpreter by --python"
        )
    say("no GPU here: vLLM for CPUs serves")
    return vllm_environment()


def table(figures: Figures) -> str:
    """Lay the figures out for a terminal or a README."""
    arms = figures["arms"]
    assert isinstance(arms, dict)
    lines = [
        "| strategy | right | B_seq | B_total | allotted B_seq | s/problem | tokens/s | cached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        lines.append(
            f"| {name} | {row['right']} of {row['problems']} | {row['b_seq']:,.0f} "
            f"| {row['b_total']:,.0f} | {row['b_seq_nominal']:,.0f} "
            f"| {row['seconds_median']:.1f} | {row['completion_tokens_per_s']:,.0f} "
            f"| {row['prefix_cached_share']:.2f} |"
        )
    machine = figures["machine"]
    assert isinstance(machine, dict)
    where = ", ".join(f"{name}: {value}" for name, value in machine.items())
    return "\n".join([*lines, "", f"{figures['model']}; {figures['vllm']}; {where}"])


def measure(asked: argparse.Namespace) -> Figures:
    """Start vLLM, run the strategies one after another, and return the figures."""
    widths = tuple(int(width) for width in asked.widths.split(","))
    largest = model_window(asked.model) or sys.maxsize
    wanted = asked.tokens * (2 * len(widths) + 1) + PROBLEM_TOKENS + asked.kappa + TEMPLATE_TOKENS
    window = min(largest, wanted)
    arms = matched_arms(widths, asked.tokens, kappa=asked.kappa, window=window)
    if window < wanted:
        say(f"the model's window of {window} gives long_cot {arms['long_cot'].max_tokens} tokens")
    python, gpus = serving_python(asked.python), gpu_count()
    options = ["--max-model-len", str(window), *(asked.flag or [])]
    options += ["--tensor-parallel-size", str(gpus)] if gpus > 1 else []
    # The least that the CPU takes; its default of 128 shares no short problem.
    options += [] if gpus else [*ON_CPU, "--block-size", "32"]
    problems = make_problems(asked.problems)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(os.environ.get("PDR_VLLM_LOG") or Path(folder) / "vllm.log")
        say(f"starting vLLM on {asked.model}")
        environment = {} if gpus else {"VLLM_CPU_KVCACHE_SPACE": "2"}
        with VLLMServer(
            python, asked.model, log, options=options, environment=environment
        ) as server:
            say(f"up in {server.started_in_s:.0f} s")
            rows = {}
            for name, config in arms.items():
                say(f"{name}: {len(problems)} problems")
                rows[name] = asyncio.run(run_arm(server, config, problems, at_once=asked.at_once))
    return {
        "machine": describe_machine(),
        "vllm": vllm_version(python),
        "model": asked.model.resolve().name,
        "started_in_s": server.started_in_s,
        "settings": {
            "widths": widths, "tokens": asked.tokens, "kappa": asked.kappa, "window": window,
            "problems": asked.problems, "at_once": asked.at_once, "seed": SEED,
        },
        "arms": rows,
    }  # fmt: skip


def main() -> int:
    """Print the table, and write the figures where asked."""
    parser = argparse.ArgumentParser("benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--python", type=Path, help="an interpreter that has vLLM")
    parser.add_argument("--widths", default="8,4", help="PDR's drafts in each round")
    parser.add_argument("--tokens", type=int, default=2048, help="completion tokens of a call")
    parser.add_argument("--kappa", type=int, default=1024, help="bound on a workspace")
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=1, help="problems side by side")
    parser.add_argument("--flag", action="append", help="a further flag for vLLM, as --flag=--x")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    return tell(lambda: measure(asked), table, asked.json)


if __name__ == "__main__":
    sys.exit(main())

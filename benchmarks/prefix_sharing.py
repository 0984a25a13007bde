"""Measures how much of the prompts' shared prefixes real vLLM serves from its cache.

    python -m benchmarks.prefix_sharing [--widths 16,8] [--json FILE]

Runs the `pdr` strategy with a summary on a short, a middling and a long problem, each on an empty
cache, and compares the cached tokens that vLLM reports for each node and round with what an ideal
cache of the same block size would have shared (`engine/prefix_reference.py`): with the prompts of
the same round and with all that came before in the run. Prompts of one round are sent at one
instant. vLLM's own counters must agree with the sum.

SmolLM2 and short replies serve, because sharing depends on prompts alone. Blocks have 32 tokens,
the least that vLLM's CPU attention takes; on a GPU they have 16.
"""

import argparse
import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from benchmarks.figures import Figures, tell
from engine.machine import describe_machine, vllm_version
from engine.prefix_reference import PrefixReference
from engine.server import VLLMServer, smollm2_on_cpu
from pdr_graph import Parts, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.errors import PDRError
from pdr_graph.settings import load_settings
from pdr_graph.trace import TraceRecord

BLOCK = 32
_QUESTION = "How many apples are there in all the boxes together?"
PROBLEMS = {
    "short": "Tom has 3 boxes with 4 apples in each box. How many apples does Tom have?",
    "middling": " ".join(f"Box {n} holds {3 * n + 1} apples." for n in range(1, 13)) + _QUESTION,
    "long": " ".join(
        f"Box {n} came from orchard {n % 7} and holds {3 * n + 1} red and {n} green apples."
        for n in range(1, 31)
    )
    + _QUESTION,
}


@dataclass
class KeptCalls:
    """A trace that keeps the calls in memory, in the order in which they ended."""

    calls: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.calls.append(call)


def main() -> int:
    """Print the table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", default="16,8", help="drafts in each round")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    widths = tuple(int(width) for width in asked.widths.split(","))
    return tell(lambda: measure(widths), table, asked.json)


def measure(widths: tuple[int, ...]) -> Figures:
    """Run every problem on a server of its own making."""
    with smollm2_on_cpu("--max-model-len", "4096", "--block-size", str(BLOCK)) as server:
        rows = []
        for name, problem in PROBLEMS.items():
            sys.stderr.write(f"running the {name} problem\n")
            rows += asyncio.run(one_run(server, name, problem, widths))
    return {
        "command": f"make bench-prefix ARGS='--widths {','.join(map(str, widths))}'",
        "vllm": vllm_version(server.python),
        "machine": describe_machine(),
        "model": "SmolLM2-135M-Instruct, float32",
        "block_size": BLOCK,
        "widths": widths,
        "rows": rows,
    }


async def one_run(
    server: VLLMServer, name: str, problem: str, widths: tuple[int, ...]
) -> list[dict[str, object]]:
    """Run one problem on an empty cache and return a row for each node and round."""
    server.forget_prefixes()
    before = server.counters()
    kept = KeptCalls()
    config = preset(
        "pdr", widths=widths, kappa=128, max_tokens=48, solution_tokens=48, seed=11, min_success=0.1
    )
    async with open_client(load_settings(base_url=server.base_url)) as client:
        result = await solve(problem, config, model=client, parts=Parts(trace=kept))
    shared = _reference(server, kept.calls)
    await asyncio.sleep(1.0)  # vLLM counts a moment after it answers
    counted = server.counters() - before
    rows: list[dict[str, object]] = []
    for row in result.ledger.per_round_and_node():
        if not row["calls"]:
            continue
        prompts, shareable, common = shared[row["round"], row["node"]]
        if prompts != row["prompt_tokens"]:
            raise PDRError(f"prompts have {prompts} tokens, the ledger {row['prompt_tokens']}")
        rows.append(
            {
                "problem": name,
                "round": row["round"],
                "node": row["node"],
                "calls": row["calls"],
                "prompt_tokens": prompts,
                "common_prefix_tokens": common,
                "shareable_tokens": shareable,
                "cached_tokens": row["cached_tokens"],
                "share": row["cached_tokens"] / shareable if shareable else None,
            }
        )
    cached = sum(row["cached_tokens"] for row in result.ledger.rows)
    if counted.prefix_hits != cached:
        raise PDRError(f"vLLM counted {counted.prefix_hits} cached tokens, its replies {cached}")
    return rows


def _reference(
    server: VLLMServer, calls: list[TraceRecord]
) -> dict[tuple[int, str], tuple[int, int, int]]:
    """Return prompt, shareable and common prefix tokens of each round and node."""
    reference = PrefixReference(BLOCK)
    sums: dict[tuple[int, str], tuple[int, int, int]] = {}
    for call in calls:
        ids = _prompt_ids(server, call["prompt"])
        shareable, common = reference.shareable(ids)
        key = call["round"], call["node"]
        prompts, blocks, tokens = sums.get(key, (0, 0, 0))
        sums[key] = prompts + len(ids), blocks + shareable, tokens + common
    return sums


def _prompt_ids(server: VLLMServer, prompt: str) -> list[int]:
    """Return a prompt's ids with the chat template around it, as vLLM sees it."""
    body = {"model": server.name, "messages": [{"role": "user", "content": prompt}]}
    reply = httpx2.post(f"{server.root}/tokenize", json=body, timeout=30.0).raise_for_status()
    return [int(token) for token in reply.json()["tokens"]]


def table(figures: Figures) -> str:
    """Lay the rows out for a terminal or a README."""
    lines = [
        "| problem | round | node | calls | prompt | common prefix | in whole blocks | cached "
        "| share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = figures["rows"]
    assert isinstance(rows, list)
    for row in rows:
        share = "–" if row["share"] is None else f"{row['share']:.3f}"
        lines.append(
            f"| {row['problem']} | {row['round']} | {row['node']} | {row['calls']} "
            f"| {row['prompt_tokens']:,} | {row['common_prefix_tokens']:,} "
            f"| {row['shareable_tokens']:,} | {row['cached_tokens']:,} | {share} |"
        )
    return "\n".join([*lines, "", f"{figures['vllm']}, {figures['machine']}"])


if __name__ == "__main__":
    sys.exit(main())

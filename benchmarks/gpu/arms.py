"""What is compared: problems with known answers, and strategies that are allotted the same."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.cache import say
from engine.metrics import Counters
from engine.server import VLLMServer
from pdr_graph import ModelClient, PDRConfig, preset, solve
from pdr_graph.answers import answer_kind, clusters
from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.settings import load_settings

PROBLEM_TOKENS = 256
"""Room for a problem of ours, in any tokenizer."""
SEED = 20251001


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with its answer."""

    text: str
    answer: int


def make_problems(count: int, *, terms: int = 5, seed: int = SEED) -> list[Problem]:
    """Draw sums and products of small numbers in words; the same seed draws the same problems."""
    rng = random.Random(seed)
    problems = []
    for _ in range(count):
        total = rng.randint(10, 60)
        steps = [f"A shelf holds {total} books."]
        for _ in range(terms):
            number = rng.randint(2, 9)
            if rng.random() < 0.3:
                total *= number
                steps.append(f"Then their number becomes {number} times as large.")
            elif rng.random() < 0.5 and total > number:
                total -= number
                steps.append(f"Then {number} books are taken away.")
            else:
                total += number
                steps.append(f"Then {number} books are added.")
        problems.append(Problem(" ".join([*steps, "How many books are there now?"]), total))
    return problems


def matched_arms(widths: tuple[int, ...], tokens: int, *, kappa: int, window: int) -> dict[
    str, PDRConfig
]:  # fmt: skip
    """Return PDR and two strategies that are allotted what it is.

    Args:
        widths: PDR's drafts in each round.
        tokens: Completion tokens of each of its calls.
        kappa: Bound on its workspaces.
        window: The model's context window, which long CoT's single call must fit as well.

    Raises:
        ConfigError: PDR itself does not fit the window.
    """
    room = window - PROBLEM_TOKENS - kappa - TEMPLATE_TOKENS
    if tokens > room:
        raise ConfigError(
            f"a window of {window} leaves {room} tokens for a call, --tokens asks for {tokens}"
        )
    sequential = tokens * (2 * len(widths) + 1)  # a draft and a distiller each round, and the end
    calls = sum(widths) + len(widths) + 1
    drawn = {"kappa": kappa, "solution_tokens": max(16, min(2048, tokens)), "seed": SEED}
    return {
        "pdr": preset("pdr", widths=widths, max_tokens=tokens, min_success=0.1, **drawn),
        "long_cot": preset("long_cot", max_tokens=min(sequential, room), **drawn),
        "majority": preset(
            "majority", widths=(calls,), max_tokens=tokens, min_success=0.1, **drawn
        ),
    }


async def run_arm(
    server: VLLMServer, config: PDRConfig, problems: Sequence[Problem], *, at_once: int
) -> dict[str, object]:
    """Solve every problem by one strategy, on an empty prefix cache, and state what it took."""
    server.forget_prefixes()
    before, started = server.counters(), time.monotonic()
    async with open_client(load_settings(base_url=server.base_url)) as client:
        places = asyncio.Semaphore(at_once)
        rows = await asyncio.gather(
            *(_one(client, config, problem, places) for problem in problems)
        )
    wall = time.monotonic() - started
    await asyncio.sleep(1.0)  # vLLM counts a moment after it answers
    counted: Counters = server.counters() - before
    done = [row for row in rows if row is not None]
    if not done:
        raise PDRError(f"no problem was solved by {config.preset}; the lines above say why")
    return {
        "problems": len(problems),
        "failed": len(problems) - len(done),
        "right": sum(row["right"] for row in done),
        "max_tokens": config.max_tokens,
        "b_seq_nominal": statistics.mean(row["b_seq_nominal"] for row in done),
        "b_total_nominal": statistics.mean(row["b_total_nominal"] for row in done),
        "b_seq": statistics.mean(row["b_seq"] for row in done),
        "b_total": statistics.mean(row["b_total"] for row in done),
        "seconds_median": statistics.median(row["seconds"] for row in done),
        "seconds_max": max(row["seconds"] for row in done),
        "wall_s": wall,
        "completion_tokens_per_s": counted.generation_tokens / wall,
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.generation_tokens,
        "prefix_cached_share": counted.prefix_hits / max(1, counted.prefix_queries),
    }


async def _one(
    client: ModelClient, config: PDRConfig, problem: Problem, places: asyncio.Semaphore
) -> dict[str, float] | None:
    async with places:
        try:
            result = await solve(problem.text, config, model=client)
        except PDRError as error:
            say(f"  {config.preset}: lost a problem: {error}")
            return None
    ledger = result.to_json()["ledger"]
    assert isinstance(ledger, dict)
    groups = await clusters(answer_kind("math"), [result.answer, str(problem.answer)])
    right = result.answer is not None and len(groups) == 1 and len(groups[0]) == 2
    say(
        f"  {config.preset}: {result.answer} ({'right' if right else f'not {problem.answer}'}), "
        f"{result.seconds:.1f} s, B_seq {result.ledger.b_seq}, B_total {result.ledger.b_total}"
    )
    names = ("b_seq", "b_total", "b_seq_nominal", "b_total_nominal")
    return {**{name: ledger[name] for name in names}, "right": right, "seconds": result.seconds}

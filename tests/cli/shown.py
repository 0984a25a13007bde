"""Fixed data of all that the command line shows: one run, stored runs, servers, evaluations.

And checks, a demonstration, what a judge is worth, a training.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pdr_graph import preset
from pdr_graph.budget import Ledger, empty_row
from pdr_graph.cli.demo import PROBLEMS, STRATEGIES, DemoBoard, demo_config
from pdr_graph.cli.doctor_checks import Check
from pdr_graph.cli.threads import ListedRun
from pdr_graph.cli.up import Standing
from pdr_graph.config import RECOMMENDED
from pdr_graph.run import Result
from pdr_graph.run_history import RoundView, RunHistory
from pdr_graph.servers.record import Process, ServerRecord
from pdr_graph.types import Draft, LedgerRow, RunRecord, Solution, Verdict, Workspace
from tests.eval.recorded import draft as graded
from tests.eval.recorded import sample, workspace, write_run

if TYPE_CHECKING:
    from pdr_graph.eval.judge_fit import JudgeReport

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PROBLEM = "Tom has 3 boxes with 4 apples in each box. He gives 5 apples away. How many are left?"
SOLUTION = (
    "Tom starts with 3 boxes of 4 apples each, so he has 3 · 4 = 12 apples.\n\n"
    "He gives 5 of them away, and 12 − 5 = 7 are left. The answer is \\boxed{7}."
)


def row(round_number: int, node: str, step: int, **fields: object) -> LedgerRow:
    """Return a row of the ledger."""
    return {**empty_row(round_number, node, step), **fields}  # type: ignore[typeddict-item]  # by name


LEDGER = Ledger(
    (
        row(
            1,
            "drafter",
            1,
            calls=5,
            prompt_tokens=1_460,
            cached_tokens=1_120,
            completion_tokens=12_840,
            reasoning_tokens=9_312,
            failed=1,
            seconds=14.2,
            critical_tokens=4_101,
            nominal_tokens=40_960,
            critical_nominal=10_240,
        ),
        row(
            1,
            "distiller",
            2,
            calls=1,
            prompt_tokens=2_204,
            completion_tokens=611,
            seconds=2.9,
            critical_tokens=2_815,
            nominal_tokens=2_048,
            critical_nominal=2_048,
            estimated=True,
        ),
        row(
            1,
            "refiner",
            3,
            calls=1,
            prompt_tokens=1_020,
            completion_tokens=3_377,
            reasoning_tokens=2_700,
            seconds=11.8,
            critical_tokens=4_397,
            nominal_tokens=10_240,
            critical_nominal=10_240,
        ),
    )
)


def drafted(index: int, answer: str | None, **fields: object) -> Draft:
    """Return a draft of the first round."""
    return {  # type: ignore[typeddict-item]  # by name
        **Draft(
            round=1,
            index=index,
            solution="" if answer is None else f"12 − 5 = 7, so \\boxed{{{answer}}}",
            answer=answer,
            tokens=3_000 + 101 * index,
            truncated=False,
            error=None,
            detail="",
            seed=index,
            seconds=10.5 + index,
        ),
        **fields,
    }


DRAFTS = [
    drafted(0, "7"),
    drafted(1, "17", truncated=True),
    drafted(2, None, error="failed", detail="the endpoint answers HTTP 503 after 4 attempts"),
    drafted(3, "7.0"),
]
WORKSPACE = Workspace(
    text="Three drafts count 12 apples. Two take 5 away and find 7; one adds 5 and finds 17.",
    tokens=611,
    estimated=True,
    sources=[0, 3, 1],
)
VERDICT = Verdict(verifier="consensus", accepted=True, reason="2 of 3 drafts answer 7")
NOTE = "1 of 4 drafts has no solution (failed): the round went on with the others"
CONFIG = preset("pdr", widths=(4,), verifier="consensus", seed=7)
RESULT = Result(
    thread_id="9f3c2b1a7e4d",
    config=CONFIG,
    answer="7",
    solution=SOLUTION,
    verdict=VERDICT,
    ledger=LEDGER,
    notes=(NOTE,),
    seconds=28.9,
    state={"problem": PROBLEM, "drafts": DRAFTS},
)
HISTORY = RunHistory(
    thread_id=RESULT.thread_id,
    problem=PROBLEM,
    config=CONFIG,
    record=RunRecord(model="Qwen/Qwen3-8B", token_counts="server", prompts={}),
    rounds=[RoundView(1, 4, DRAFTS, [WORKSPACE])],
    solution=Solution(text=SOLUTION, answer="7", truncated=False, finish="refine"),
    verdict=VERDICT,
    notes=[NOTE],
    ledger=LEDGER,
    next=(),
    updated_at=NOW,
)


def listed(thread_id: str, state: str, minutes: int, **fields: object) -> ListedRun:
    """Return a stored run that was written so many minutes ago."""
    updated = datetime.fromtimestamp(NOW.timestamp() - 60 * minutes, UTC).isoformat()
    known = {
        "preset": "pdr",
        "node": None,
        "answer": None,
        "bytes": 48_200,
        "lease": None,
        "problem": f"{PROBLEM[:79]}…",
    }
    return ListedRun(
        thread_id=thread_id, state=state, updated=updated, created=updated, **{**known, **fields}
    )


RUNS = [
    listed("9f3c2b1a7e4d", "finished", 0, answer="7"),
    listed(
        "0b77aa915c02",
        "running",
        3,
        preset="pdr_adaptive",
        node="drafter",
        lease="host-17.example:40321",
        problem="Prove that the product of four consecutive integers is never a square.",
    ),
    listed(
        "olympiad-2026-day-2-problem-5",
        "stopped",
        150,
        preset="sr_error_analysis",
        node="distiller",
        problem="Find all functions f such that f(x + f(y)) = f(x) + y for all real x and y.",
    ),
    listed(
        "long-answer",
        "finished",
        2_900,
        preset="vote_first",
        answer="\\frac{3\\sqrt{2} + \\sqrt{7}}{4} \\text{ or } \\frac{3\\sqrt{2} - \\sqrt{7}}{4}",
        problem="Solve the equation 8x^2 - 12√2 x + 11/2 = 0 over the real numbers.",
    ),
    listed("other-graph", "other", 5_000, preset=None, problem=None, bytes=None),
    listed(
        "damaged",
        "unreadable",
        9_000,
        preset=None,
        problem=None,
        reason="checkpoint 1f0a… is damaged: its checksum does not fit",
    ),
]


def standing(part: str, state: str, kind: str, url: str, **fields: object) -> Standing:
    """Return how a server stands that was started two hours ago."""
    why = fields.pop("why", "")
    record = ServerRecord(
        part=part,
        kind=kind,
        state="ready",
        keeper=Process(pid=1, created=0.0),
        url=url,
        log=f"/home/u/.local/share/pdr-graph/{part}.log",
        since=NOW.timestamp() - 7_500,
        **fields,
    )
    return Standing(part=part, state=state, record=record, why=why)


SERVERS = [
    standing("model", "ready", "vllm", "http://127.0.0.1:8000/v1", model="Qwen/Qwen3-8B"),
    standing(
        "store",
        "failed",
        "redis",
        "unix:///home/u/.local/share/pdr-graph/redis/redis.sock",
        why="Redis ended with status 1: Can't open the append-only file: Permission denied",
    ),
]

ARMS: Mapping[str, float] = {
    "long_cot": 0.45,
    "majority": 0.6,
    "pdr": 0.7,
    "narrow=pdr@widths=8,4": 0.65,
    "pdr_adaptive": 0.75,
}


def evaluation(folder: Path, arms: Mapping[str, float] = ARMS) -> Path:
    """Write the run of an evaluation of 20 problems, and return its folder."""
    samples = [
        sample(
            arm,
            f"p{problem}",
            number,
            answer="7" if (7 * problem + 3 * number) % 20 < 20 * share else "8",
            b_total=1_000 * (place + 1) + 10 * problem,
            drafts=[graded(0, "7"), graded(1, "7" if problem % 3 else "9")] if place else [],
            workspaces=[workspace(problem % 4 > 0)] if place > 1 else [],
            finish="refine" if place > 1 else "vote" if place else "refine",
            rounds_run=min(place, 1),
        )
        for place, (arm, share) in enumerate(arms.items())
        for problem in range(20)
        for number in range(2)
    ]
    return write_run(folder, samples, arms=list(arms), num_samples=2)


CHECKS = [
    Check("python", "3.12.9"),
    Check(
        "packages",
        "pdr-graph 0.2.0, langgraph 1.2.22, langchain-core 1.7.0, langchain-openai 1.7.0, "
        "openai 3.50.0, pydantic 2.14.0, redis 8.0.0",
    ),
    Check("embedded model", "xllamacpp is not installed", "pip install 'pdr-graph[local]'"),
    Check("data directory", "/home/u/.local/share/pdr-graph"),
    Check(
        "disk of data directory", "612.4 MiB free of 252.0 GiB", "free some space before long runs"
    ),
    Check("endpoint", "http://127.0.0.1:8000/v1"),
    Check("model", "Qwen/Qwen3-8B"),
    Check(
        "context window",
        "8,192 tokens; the default budgets would need 10,432 beside the problem, so smaller ones "
        "follow the window",
        "serve a larger window for longer answers",
    ),
    Check("call", "answered in 0.4 s"),
    Check("trial calls", "6 calls, 912 tokens (--no-calls leaves them out)"),
    Check("store", "redis 8.0.0 at redis://10.0.0.7:6379/0"),
    Check(
        "store memory",
        "1.0 GiB used of 1.0 GiB (100%)",
        "raise maxmemory, or delete runs (`pdr-graph threads THREAD --delete`)",
        fails=True,
    ),
    Check(
        "encryption",
        "mixed: of 12 stored runs 7 encrypted, 4 not encrypted, 1 in part (a sample of values of "
        "12 of 40 runs); with keys, what is plain is refused",
        "`pdr-graph reseal --read-older`, if you trust who could write to the store",
    ),
]
"""Checks of every kind: well, to be mended, failed; some longer than a line."""


def demonstrated(*, over: bool = True) -> DemoBoard:
    """Return the board of the demonstration; where it is not over, of one that was stopped."""
    board = DemoBoard.of(PROBLEMS)
    shares = {"long_cot": 0.4, "sr": 0.5, "pdr": 0.7, RECOMMENDED: 0.8}
    for place, each in enumerate(board.strategies):
        each.seconds = 20.5 * (place + 1)
        for index, run in enumerate(each.runs):
            if not over and place > 1:
                run.latest = run.problem.answer if place == 2 and index < 3 else None
                continue
            is_right = (5 * index + place) % 8 < 8 * shares[each.name]
            answer = run.problem.answer if is_right else None if index == 6 else "1234567"
            run.result = replace(
                RESULT, config=each.config, answer=answer, ledger=_ledger(place + 1), seconds=4.5
            )
    return board


def _ledger(times: int) -> Ledger:
    return Ledger(
        (row(1, "drafter", 1, calls=times, prompt_tokens=240 * times, completion_tokens=70 * times,
             critical_tokens=310, seconds=4.5),)
    )  # fmt: skip


def one_problem() -> list[Result]:
    """Return the strategies of the demonstration on a problem of the user's."""
    return [
        replace(RESULT, config=demo_config(name, fields), answer=answer)
        for (name, fields), answer in zip(STRATEGIES.items(), ("7", None, "7", "17"), strict=True)
    ]


def judged(*, fitted: bool) -> "JudgeReport":
    """Return what a judge is worth: one that was fitted here, or one that is measured."""
    from pdr_graph.eval.judge_fit import Discrimination, JudgeReport, JudgeWorth, LearningPoint
    from pdr_graph.eval.stats import Estimate, Interval, PairedDifference

    def share(value: float) -> Estimate:
        return Estimate(value, value - 0.061, value + 0.058, 240)

    def worth(value: float, gain: float) -> JudgeWorth:
        ends = Interval(gain - 0.02, gain + 0.02)
        return JudgeWorth(
            share(value), PairedDifference(gain, ends.low, ends.high, 240, ends, 0.004)
        )

    judges = {"signals": worth(0.642, 0.034)}
    if fitted:
        judges |= {
            "hidden, layer 14": worth(0.629, 0.013),
            "a signal with a long name": worth(0.6, 0),
        }
    return JudgeReport(
        num_problems=240,
        num_ballots=480,
        num_drafts=3_840,
        discrimination={
            name: Discrimination(0.71, share(0.68), None if name == "signals" else 0.55)
            for name in [*judges, "length", "mean log-probability of the answer"]
        },
        vote=share(0.6),
        tie_break=share(0.608),
        best=share(0.81),
        judges=judges,
        main="signals",
        reliability=(),
        learning=tuple(
            LearningPoint(number, 0.62 + number / 4_000, number / 8_000) for number in (24, 96, 192)
        )
        if fitted
        else (),
        notes=("2 of 5 signals are left out, since drafts of some problems lack them",)
        if fitted
        else (),
    )


TRAINED: Mapping[str, tuple[float, float]] = {
    "reward/run": (0.2083, 0.4375),
    "reward/draft": (0.2083, 0.4219),
    "reward/summary": (0.25, 0.4688),
    "policy/entropy": (0.6127, 0.4511),
    "groups/flat": (0.5, 0.25),
    "drift/mean": (2.1e-05, 4.8e-05),
}
"""Figures of the first updates of a training, and of the last."""

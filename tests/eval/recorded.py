"""Run folders written by hand: all fields are there, and a test sets those that it needs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdr_graph import preset
from pdr_graph.eval.records import EvalRun, read_run

Sample = dict[str, Any]


def draft(index: int, answer: str | None, gold: str = "7", round_number: int = 1) -> dict[str, Any]:
    """Return the record of a draft."""
    correct = answer == gold
    return {
        "round": round_number,
        "index": index,
        "answer": answer,
        "correct": correct,
        "reason": "correct" if correct else "wrong" if answer else "no_answer",
        "truncated": False,
        "error": None,
    }


def workspace(
    holds_correct: bool, round_number: int = 1, sources: list[int] | None = None
) -> dict[str, Any]:
    """Return the record of a workspace."""
    return {
        "round": round_number,
        "index": 0,
        "tokens": 20,
        "holds_correct": holds_correct,
        "sources": sources,
    }


def sample(
    arm: str = "pdr",
    problem: str = "p0",
    number: int = 0,
    *,
    answer: str | None = "7",
    gold: str = "7",
    b_total: int = 1000,
    **fields: Any,
) -> Sample:
    """Return the record of a finished sample; the answer decides whether it is correct."""
    correct = answer == gold
    row = {
        "round": 1,
        "node": "drafter",
        "step": 1,
        "prompt_tokens": b_total // 4,
        "completion_tokens": b_total // 4,
        "estimated": False,
    }
    return {
        "schema": 1,
        "arm": arm,
        "problem_id": problem,
        "sample": number,
        "thread_id": f"{arm}-{problem}-{number}",
        "dependent": False,
        "answer": answer,
        "gold": gold,
        "correct": correct,
        "reason": "correct" if correct else "wrong" if answer else "no_answer",
        "truncated": False,
        "finish": "refine",
        "rounds_run": 1,
        "ledger": {
            "b_seq": b_total // 2,
            "b_total": b_total,
            "b_seq_nominal": b_total,
            "b_total_nominal": 2 * b_total,
            "rows": [row],
        },
        "seconds": b_total / 100,
        "drafts": [],
        "workspaces": [],
        "prompts_sha256": {},
        "data_sha256": "d" * 64,
        "versions": {},
        "seed": 1,
        "model": "m",
        "error": None,
        **fields,
    }


def header(
    arms: Sequence[str] = ("pdr", "majority"),
    *,
    num_problems: int = 1,
    num_samples: int = 1,
    model: str = "m",
    sha256: str = "d" * 64,
) -> dict[str, Any]:
    """Return the header of a run."""
    budget = {
        "max_tokens": 1,
        "sequential_calls": 1,
        "total_calls": 1,
        "b_seq_nominal": 1,
        "b_total_nominal": 1,
        "derived": "",
    }
    config = preset("pdr").model_dump(mode="json")
    return {
        "schema": 1,
        "run_id": "r",
        "created": "2026-01-01T00:00:00+00:00",
        "data": {
            "source": "quiz.jsonl",
            "sha256": sha256,
            "num_problems": num_problems,
            "scored_by": "equal answers",
        },
        "arms": {
            name: {"spec": name, "preset": "pdr", "config": config, "budget": budget}
            for name in arms
        },
        "samples": num_samples,
        "seed": 0,
        "model": model,
        "prompts_sha256": {},
        "versions": {},
        "share_first_round": False,
    }


def write_run(folder: Path, samples: Sequence[Sample], **fields: Any) -> Path:
    """Write a run folder and return it; the fields are those of `header`."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = {each["problem_id"] for each in samples}
    written = header(**{"num_problems": len(problems), **fields})
    (folder / "run.json").write_text(json.dumps(written))
    (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    return folder


def recorded(folder: Path, samples: Sequence[Sample], **fields: Any) -> EvalRun:
    """Write a run folder and read it back."""
    return read_run(write_run(folder, samples, **fields))

"""The drafts that all policies share: read from runs, and kept in one small file a source.

The file holds what a policy needs and no text: the answer, the verdict, the tokens and the signals
of each draft. So the tables can be made again without the model.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pdr_graph.eval.records import DraftRecord, EvalRun, SampleRecord
from pdr_graph.types import Draft


@dataclass(frozen=True, slots=True)
class PooledDraft:
    """One draft, judged."""

    answer: str | None
    correct: bool
    tokens: int
    """Completion tokens of its call."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """As in `Draft`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How sure each judge is that it is right, by the judge's name."""

    def as_draft(self, round_number: int, index: int, judge: str | None) -> Draft:
        """Return it as a run would hold it, weighed by a judge; None weighs nothing."""
        draft = Draft(
            round=round_number,
            index=index,
            solution="",
            answer=self.answer,
            tokens=self.tokens,
            truncated=False,
            error=None,
            detail="",
            seed=0,
            seconds=0.0,
            signals=dict(self.signals),
        )
        if judge is not None:
            draft["weight"] = self.weights[judge]
        return draft


@dataclass(frozen=True, slots=True)
class PooledProblem:
    """The drafts of one problem, in the order in which a policy takes them."""

    id: str
    prompt_tokens: int
    """Of each draft's call."""
    drafts: tuple[PooledDraft, ...]
    long_cot: PooledDraft
    """The one attempt with the longer limit."""


def pooled(run: EvalRun, drafts: str, long_cot: str) -> list[PooledProblem]:
    """Return the problems of a run that both arms have finished, in the order of their ids.

    Args:
        run: An evaluation.
        drafts: Name of the arm whose first round is the pool.
        long_cot: Name of the arm of single attempts.
    """
    alone = {each["problem_id"]: each for each in run.samples if each["arm"] == long_cot}
    pools = {each["problem_id"]: each for each in run.samples if each["arm"] == drafts}
    return [
        PooledProblem(
            id=name,
            prompt_tokens=_prompt_tokens(pools[name]),
            drafts=tuple(map(_draft, pools[name]["drafts"])),
            long_cot=_attempt(alone[name]),
        )
        for name in sorted(pools.keys() & alone.keys())
        if pools[name]["drafts"]
    ]


def _draft(record: DraftRecord) -> PooledDraft:
    usable = record["error"] is None
    return PooledDraft(
        answer=record["answer"] if usable else None,
        correct=usable and record["correct"],
        tokens=record.get("tokens", 0),
        signals=record.get("signals", {}),
    )


def _attempt(sample: SampleRecord) -> PooledDraft:
    rows = sample["ledger"]["rows"]
    return PooledDraft(
        answer=sample["answer"],
        correct=sample["correct"],
        tokens=sum(row["completion_tokens"] for row in rows),
    )


def _prompt_tokens(sample: SampleRecord) -> int:
    rows = [row for row in sample["ledger"]["rows"] if row["node"] == "drafter"]
    return round(sum(row["prompt_tokens"] for row in rows) / sum(row["calls"] for row in rows))


def save(problems: Iterable[PooledProblem], file: Path) -> None:
    """Write problems as compressed JSON lines; the same problems give the same bytes."""
    lines = (json.dumps(asdict(each), separators=(",", ":")) + "\n" for each in problems)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def load(file: Path) -> list[PooledProblem]:
    """Read what `save` has written."""
    text = gzip.decompress(file.read_bytes()).decode()
    return [_problem(json.loads(line)) for line in text.splitlines()]


def _problem(row: Mapping[str, Any]) -> PooledProblem:  # Any: plain JSON data
    drafts: Sequence[Mapping[str, Any]] = row["drafts"]
    return PooledProblem(
        id=row["id"],
        prompt_tokens=row["prompt_tokens"],
        drafts=tuple(PooledDraft(**each) for each in drafts),
        long_cot=PooledDraft(**row["long_cot"]),
    )

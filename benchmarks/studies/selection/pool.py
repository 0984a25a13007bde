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
    weight: float | None = None
    """How sure the judge is that it is right, 0 to 1; None where none has weighed it."""

    def as_draft(self, round_number: int, index: int, *, judged: bool) -> Draft:
        """Return it as a run would hold it, with its weight or without."""
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
        if judged and self.weight is not None:
            draft["weight"] = self.weight
        return draft


@dataclass(frozen=True, slots=True)
class PooledProblem:
    """The drafts of one problem, in the order in which a policy takes them."""

    id: str
    prompt_tokens: int
    """Of each draft's call."""
    read_tokens: int
    """Tokens that the judge has read for each draft; 0 without a judge, and for one that looks at
    log-probabilities alone."""
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
        _pooled(pools[name], alone[name])
        for name in sorted(pools.keys() & alone.keys())
        if pools[name]["drafts"]
    ]


def _pooled(pool: SampleRecord, attempt: SampleRecord) -> PooledProblem:
    # Without a workspace, a draft and the single attempt are asked alike.
    prompt_tokens, drafts = _prompt_tokens(attempt), pool["drafts"]
    return PooledProblem(
        id=pool["problem_id"],
        prompt_tokens=prompt_tokens,
        read_tokens=round(_prompt_tokens(pool) / len(drafts)) - prompt_tokens,
        drafts=tuple(map(_draft, drafts)),
        long_cot=_attempt(attempt),
    )


def _draft(record: DraftRecord) -> PooledDraft:
    usable = record["error"] is None
    return PooledDraft(
        answer=record["answer"] if usable else None,
        correct=usable and record["correct"],
        tokens=record.get("tokens", 0),
        signals=record.get("signals", {}),
        weight=record.get("weight"),
    )


def _attempt(sample: SampleRecord) -> PooledDraft:
    rows = sample["ledger"]["rows"]
    return PooledDraft(
        answer=sample["answer"],
        correct=sample["correct"],
        tokens=sum(row["completion_tokens"] for row in rows),
    )


def _prompt_tokens(sample: SampleRecord) -> int:
    return sum(row["prompt_tokens"] for row in sample["ledger"]["rows"])


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
        read_tokens=row["read_tokens"],
        drafts=tuple(PooledDraft(**each) for each in drafts),
        long_cot=PooledDraft(**row["long_cot"]),
    )

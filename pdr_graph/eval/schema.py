"""The fields of a run folder's records; `records.py` says where they are and reads them."""

from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = 1
"""Version of both files."""

Reason = Literal["correct", "wrong", "no_answer", "unparseable", "timeout", "truncated", "failed"]
"""What came of checking an answer: only the first is right, only the first two are judged.
`no_answer`: the solution states none. `truncated`: the same, of a solution that its token limit
cut. `unparseable`, `timeout`: the checker could not decide. `failed`: there is no solution."""


class DataRecord(TypedDict):
    """Which problems."""

    source: str
    """As given on the command line."""
    sha256: str
    """Of the file; of the problems, a line each, where there is no file."""
    num_problems: int
    scored_by: str
    """A sentence on how an answer is judged."""


class BudgetRecord(TypedDict):
    """How an arm's budget came about, in model tokens as allotted: prompts are not counted."""

    max_tokens: int
    """Allotted to each call."""
    sequential_calls: int
    """On the critical path, the final call included; the most that the arm can make."""
    total_calls: int
    """The most that the arm can make in all."""
    b_seq_nominal: int
    b_total_nominal: int
    derived: str
    """A sentence on what was derived to match which budget; empty where nothing was."""


class ArmRecord(TypedDict):
    """One arm."""

    spec: str
    """As given on the command line, sweeps included."""
    preset: str
    config: dict[str, Any]  # Any: PDRConfig as plain data
    """Its seed is None: every sample has its own."""
    budget: BudgetRecord


class HeaderRecord(TypedDict):
    """What was asked; `run.json`."""

    schema: int
    run_id: str
    """Drawn once; part of every thread id."""
    created: str
    """ISO 8601, in UTC."""
    data: DataRecord
    arms: dict[str, ArmRecord]
    samples: int
    """Attempts of each arm at each problem."""
    seed: int
    model: str
    prompts_sha256: dict[str, str]
    versions: dict[str, str]
    share_first_round: bool
    """Whether arms share the drafts of their first round; their samples are then dependent."""


class DraftRecord(TypedDict):
    """One draft and whether it was right."""

    round: int
    """1 for the first parallel round."""
    index: int
    """Position in its round, from 0."""
    answer: str | None
    correct: bool
    reason: Reason
    truncated: bool
    error: str | None
    """`failed`, `empty`, `truncated` or `cut`; None for a usable draft."""


class WorkspaceRecord(TypedDict):
    """One distilled workspace."""

    round: int
    """The round that it was distilled from."""
    index: int
    """Position among the workspaces of its round, from 0; draft i of the next round reads number
    i modulo their count."""
    tokens: int
    holds_correct: bool
    """Whether a correct answer stands in its text: the gold answer, or the answer of a correct
    draft, as a word of its own. A number that is there by chance counts."""
    sources: list[int] | None
    """Indices of the drafts admitted, best first; None if unknown."""


class SampleRecord(TypedDict):
    """One finished attempt of one arm at one problem; a line of `samples.jsonl`."""

    schema: int
    arm: str
    problem_id: str
    sample: int
    """From 0."""
    thread_id: str
    """Its checkpoints, for `pdr-graph inspect`."""
    dependent: bool
    """Whether it shares first-round drafts with another arm."""
    answer: str | None
    gold: str
    correct: bool
    reason: Reason
    truncated: bool
    """Whether the token limit cut the solution."""
    finish: str | None
    """How the run ended: `refine`, `vote`, `select` or a user's own; `consensus` where the drafts'
    agreement ended it early. None where it failed."""
    rounds_run: int
    ledger: dict[str, Any]  # Any: plain JSON data
    """`Ledger.to_json`: b_seq, b_total, b_seq_nominal, b_total_nominal, …, rows."""
    seconds: float
    """Of work; the time that a killed run lay still is left out."""
    drafts: list[DraftRecord]
    """All rounds, in order."""
    workspaces: list[WorkspaceRecord]
    prompts_sha256: dict[str, str]
    data_sha256: str
    versions: dict[str, str]
    seed: int
    """The sample's own."""
    model: str
    error: str | None
    """A sentence on why it failed."""
    notes: NotRequired[list[str]]
    """What the run did otherwise than planned, and why."""

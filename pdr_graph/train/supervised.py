r"""Supervised data from recorded runs: what was said in runs that ended in the right answer.

Read are folders of `pdr-graph eval` (their trace holds prompts and replies), and trajectories of
training. A line of the file, as TRL's SFTTrainer takes it::

    {"prompt": [{"role": "user", "content": "What is 6 x 7? …"}],
     "completion": [{"role": "assistant", "content": "<think>\n6 x 7 …\n</think>\n\n\\boxed{42}"}],
     "call": "draft", "problem_id": "q7", "source": "runs/first"}

Left out are calls of a judge, calls that the token limit cut, and runs that saw the gold answer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pdr_graph.train.recorded_calls import RunCount, Said, calls_of
from pdr_graph.train.trajectory import Role


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Example(TypedDict):
    """One line of the file."""

    prompt: list[Message]
    completion: list[Message]
    call: Role
    """What the call was for."""
    problem_id: str
    source: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which calls are taken."""

    roles: frozenset[Role] = frozenset({"direct", "draft", "refine"})
    per_problem: int | None = None
    """Calls of each role that a problem gives at most, the first; None is all."""
    duplicates: bool = False
    """Whether the same prompt with the same reply is taken more than once."""
    wrong_drafts: bool = False
    """Whether drafts count whose own answer is wrong, if the run's is right."""
    thoughts: bool = True
    """Whether the reasoning is part of the reply."""


@dataclass(slots=True)
class Tally:
    """What became of the calls that were read."""

    taken: Counter[Role] = field(default_factory=Counter)
    """By role."""
    problems: set[str] = field(default_factory=set)
    """Those that gave something."""
    runs: RunCount = field(default_factory=RunCount)
    left_out: Counter[str] = field(default_factory=Counter)
    """Calls of correct runs, by why."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "taken": dict(sorted(self.taken.items())),
            "problems": len(self.problems),
            "runs": self.runs.read,
            "correct_runs": self.runs.correct,
            "left_out": dict(sorted(self.left_out.items())),
        }


def examples_of(
    sources: Iterable[Path], choice: Choice, tally: Tally, model: Path | None = None
) -> Iterator[Example]:
    """Yield the examples that recorded runs give.

    Args:
        sources: Folders of `pdr-graph eval`, folders of `pdr-graph train`, or trajectory files.
        choice: Which calls.
        tally: Counts along.
        model: Folder whose tokenizer reads trajectories back.

    Raises:
        ConfigError: a source cannot be read, as for `calls_of`.
    """
    seen: set[tuple[str, str]] = set()
    per_problem: Counter[tuple[str, Role]] = Counter()
    for source in sources:
        for said in calls_of(source, tally.runs, thoughts=choice.thoughts, model=model):
            reason = _refusal(said, choice, seen, per_problem[said.problem_id, said.role])
            if reason:
                tally.left_out[reason] += 1
                continue
            seen.add((said.prompt, said.reply))
            per_problem[said.problem_id, said.role] += 1
            tally.taken[said.role] += 1
            tally.problems.add(said.problem_id)
            yield Example(
                prompt=[Message(role="user", content=said.prompt)],
                completion=[Message(role="assistant", content=said.reply)],
                call=said.role,
                problem_id=said.problem_id,
                source=said.source,
            )


def _refusal(said: Said, choice: Choice, seen: set[tuple[str, str]], so_far: int) -> str:
    """Say why a call is not taken; empty if it is."""
    if said.role not in choice.roles:
        return f"of role {said.role}"
    if said.cut:
        return "cut by the token limit"
    if said.role == "draft" and not (said.right or choice.wrong_drafts):
        return "drafts with a wrong answer"
    if not said.reply.strip():
        return "empty"
    if not choice.duplicates and (said.prompt, said.reply) in seen:
        return "said before"
    if choice.per_problem is not None and so_far >= choice.per_problem:
        return "above the limit of a problem"
    return ""

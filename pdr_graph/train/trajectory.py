r"""Trajectories: one run of the graph, each of its model calls with the tokens that it drew.

A file holds one trajectory a line::

    {"schema_version": 1, "thread_id": "4f1c", "problem_id": "q7", "problem": "What is 6 x 7?",
    "gold": "42", "preset": "pdr", "temperature": 1.0, "answer": "42", "reason": "correct",
    "reward": 1.0, "correct": true, "failed_calls": 0, "calls": [{"role": "draft", "round": 1,
    "rollout": "4f1c:0", "prompt_ids": [1, 15], "token_ids": [28, 2], "logprobs": [-0.1, -0.4],
    "text": "\\boxed{42}", "finish_reason": "stop", "seed": 7, "policy_version": 0,
    "reward": 1.0}], "stopped": ""}
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import Reason
from pdr_graph.files import append_lines
from pdr_graph.validation import Fault

SCHEMA: Final = 1
"""Version of a trajectory's fields."""

Role = Literal["direct", "draft", "distill", "refine", "select", "judge"]
"""What a call was for. `direct` is the answer of a run without a workspace (long CoT), `refine` an
answer that read one, `draft` what a distiller reads, in any round."""


class Call(BaseModel):
    """One model call of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    round: int = Field(ge=0)
    """0 in a run without rounds."""
    rollout: str
    """Name of the call, unique in a training run."""
    prompt_ids: tuple[int, ...] = Field(min_length=1)
    token_ids: tuple[int, ...]
    """Drawn tokens, with the one that ended the reply."""
    logprobs: tuple[FiniteFloat, ...]
    """Log-probability of each of `token_ids`, under the policy that drew it, at the run's
    temperature."""
    text: str
    """The solution part; the thought is only in the tokens."""
    finish_reason: str
    seed: int
    policy_version: int = Field(ge=0)
    """Weight updates before the policy that drew it."""
    reward: FiniteFloat | None
    """Reward of its own answer; None for a call that does not answer (a distiller's)."""

    @model_validator(mode="after")
    def _each_token_has_its_logprob(self) -> Self:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(
                f"{len(self.token_ids)} token ids and {len(self.logprobs)} log-probabilities"
            )
        return self


class Trajectory(BaseModel):
    """One run, judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA
    thread_id: str
    problem_id: str
    problem: str
    gold: str
    preset: str
    temperature: FiniteFloat = Field(gt=0)
    calls: tuple[Call, ...]
    """In the order of rounds; parallel calls by their index."""
    failed_calls: int = Field(ge=0)
    """Calls that failed or were cancelled, of which there is nothing to learn."""
    answer: str | None
    reason: Reason
    reward: FiniteFloat
    """Reward of the run's answer: 1 or -1."""
    correct: bool
    stopped: str = ""
    """Why the run ended without an answer; empty if it has one."""


def append_trajectories(file: Path, trajectories: Iterable[Trajectory]) -> None:
    """Append trajectories to a file, one line each, and sync it to the disk.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{each.model_dump_json(ensure_ascii=True)}\n" for each in trajectories)
        append_lines(file, "".join(lines).encode())
    except OSError as error:
        raise ConfigError(
            f"trajectories {str(file)!r} cannot be written: {error.strerror}"
        ) from None


def read_trajectories(file: Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a file; a torn last line is left out.

    Raises:
        ConfigError: it cannot be read, or a line is no trajectory; the sentence names the line.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield _parsed(line, f"{file} line {number}")
    except OSError as error:
        raise ConfigError(f"trajectories {str(file)!r} cannot be read: {error.strerror}") from None


def _parsed(line: bytes, where: str) -> Trajectory:
    try:
        return Trajectory.model_validate_json(line)
    except ValidationError as error:
        fault = Fault.of(error)
        if fault.name == "schema_version":
            raise ConfigError(
                f"{where} is of schema version {fault.value!r}, and this pdr-graph reads "
                f"version {SCHEMA}; use the version that wrote it"
            ) from None
        raise ConfigError(
            f"{where} is no trajectory: {fault.name or 'the line'}: {fault.message}; record it "
            "anew, or remove the line"
        ) from None

r"""Supervised data from recorded runs: the calls of runs that ended with the right answer.

Sources are folders of `pdr-graph eval`, whose trace holds prompts and replies, and trajectories of
training, whose tokens a tokenizer reads back. A line of the data, as TRL's SFTTrainer takes it::

    {"prompt": [{"role": "user", "content": "What is 6 x 7? …"}],
     "completion": [{"role": "assistant", "content": "<think>\n6 x 7 …\n</think>\n\n\\boxed{42}"}],
     "call": "draft", "problem_id": "q7", "source": "runs/first"}

Left out are calls of a judge, calls that the token limit cut, and runs that saw the gold answer (an
oracle's, or one that the verifier `gold` sent back).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.records import HEADER, TRACE, EvalRun, SampleRecord, read_run
from pdr_graph.llm.client import CUT
from pdr_graph.policy.folder import tokenizer_of
from pdr_graph.trace import TraceRecord
from pdr_graph.train.recorder import role_of
from pdr_graph.train.run_folder import read_header
from pdr_graph.train.trajectory import Role, read_trajectories

_MARK = "Q7f1c"
"""A message that no template contains."""


@dataclass(slots=True)
class ChatText:
    """Reads tokens back as messages, by one tokenizer and its chat template.

    The text that the template puts around a user's message is found by rendering one. Recorded
    prompts must have the same text, word for word.
    """

    tokenizer: Any  # Any: transformers is too heavy to be typed against here
    name: str
    """Name of the tokenizer's folder, for error messages."""
    variables: Mapping[str, Any] = field(default_factory=dict)  # Any: the template's own
    """Of the template."""
    _before: str = field(init=False)
    _after: str = field(init=False)

    def __post_init__(self) -> None:
        """Find what the template puts around a message."""
        messages = [{"role": "user", "content": _MARK}]
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.variables
        )
        self._before, _, self._after = rendered.partition(_MARK)

    @classmethod
    def of_folder(cls, folder: Path, variables: Mapping[str, Any] | None = None) -> "ChatText":
        """Open the tokenizer of a model folder.

        Raises:
            ConfigError: transformers is not installed, or there is no such tokenizer.
        """
        try:
            return cls(tokenizer_of(folder), str(folder), variables or {})
        except ImportError:
            raise ConfigError(
                f"trajectories are read back by transformers: {install_command('train')}"
            ) from None
        except (OSError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(f"{str(folder)!r} has no tokenizer that opens: {first}") from None

    def prompt(self, token_ids: tuple[int, ...]) -> str:
        """Return the user's message that a prompt was rendered from.

        Raises:
            ConfigError: another template, or another tokenizer, made it.
        """
        text = self._text(token_ids)
        long_enough = len(text) >= len(self._before) + len(self._after)
        if not (text.startswith(self._before) and text.endswith(self._after) and long_enough):
            raise ConfigError(
                f"a recorded prompt was not rendered by the chat template of {self.name!r} (it "
                f"begins {text[:40]!r}); name the folder of the model that drew the trajectories"
            )
        return text[len(self._before) : len(text) - len(self._after)]

    def reply(self, token_ids: tuple[int, ...]) -> str:
        """Return what was drawn, thought included, without the special tokens at its end."""
        special = set(self.tokenizer.all_special_ids)
        end = len(token_ids)
        while end and token_ids[end - 1] in special:
            end -= 1
        return self._text(token_ids[:end])

    def _text(self, token_ids: tuple[int, ...]) -> str:
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


TRAJECTORIES = "trajectories.jsonl"
"""The file of a training run's trajectories."""


@dataclass(slots=True)
class RunCount:
    """Number of samples or trajectories that were read."""

    read: int = 0
    correct: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One call of a correct run."""

    role: Role
    problem_id: str
    prompt: str
    reply: str
    cut: bool
    right: bool
    """Whether its own answer is right; a call without one is as right as its run."""
    source: str


def calls_of(
    source: Path, count: RunCount, *, thoughts: bool, model: Path | None
) -> Iterator[Said]:
    """Yield the calls of a source's correct runs.

    Args:
        source: Folder of `pdr-graph eval` or `pdr-graph train`, or a file of trajectories.
        count: Is counted up.
        thoughts: Whether the reasoning is part of a reply.
        model: Folder whose tokenizer reads trajectories back.

    Raises:
        ConfigError: it holds no run or is damaged, its trace was not kept, or trajectories come
            without a tokenizer.
    """
    if (source / HEADER).is_file() and (source / TRACE).is_dir():
        return _of_evaluation(source, count, thoughts)
    file = source / TRAJECTORIES if source.is_dir() else source
    if not file.is_file():
        raise ConfigError(
            f"{str(source)!r} holds no recorded run; name a folder of `pdr-graph eval`, or a file "
            f"of trajectories (`pdr-graph train` with rollouts.record writes {TRAJECTORIES})"
        )
    if model is None:
        raise ConfigError(
            f"{str(file)!r} holds trajectories, whose tokens are read back by a tokenizer; name "
            "its model by --model FOLDER"
        )
    return _of_trajectories(file, count, thoughts, ChatText.of_folder(model, _variables(file)))


def _of_evaluation(folder: Path, count: RunCount, thoughts: bool) -> Iterator[Said]:
    run = read_run(folder)
    told = {name for name in run.header["arms"] if _saw_gold(run, name)}
    correct: dict[str, SampleRecord] = {}
    for sample in run.samples:
        count.read += 1
        count.correct += sample["correct"]
        if sample["correct"] and sample["arm"] not in told:
            correct[sample["thread_id"]] = sample
    records = _trace_of(folder, correct.keys())
    if correct and not records:
        raise ConfigError(
            f"{str(folder)!r} kept no model calls; run `pdr-graph eval` without --no-trace"
        )
    for record in records:
        sample = correct[record["thread_id"]]
        thought = f"<think>\n{record['thought']}\n</think>\n\n" if record["thought"] else ""
        yield Said(
            role=role_of(record),
            problem_id=sample["problem_id"],
            prompt=record["prompt"],
            reply=f"{thought if thoughts else ''}{record['solution']}",
            cut=record["finish_reason"] in CUT or not record["solution"],
            right=_right(record, sample),
            source=str(folder),
        )


def _saw_gold(run: EvalRun, arm: str) -> bool:
    config = run.config(arm)
    return config.distiller.startswith("oracle_") or config.verifier == "gold"


def _right(record: TraceRecord, sample: SampleRecord) -> bool:
    if record["node"] != "drafter":
        return True
    place = record["round"], record["index"]
    return any(
        (draft["round"], draft["index"]) == place and draft["correct"] for draft in sample["drafts"]
    )


def _trace_of(folder: Path, threads: Iterable[str]) -> list[TraceRecord]:
    """Return the calls of some threads that have a reply.

    If a call was repeated after a crash, the last one counts, since the run went on with its reply.
    """
    wanted = set(threads)
    latest: dict[tuple[object, ...], TraceRecord] = {}
    for file in sorted((folder / TRACE).glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
            try:
                record: TraceRecord = json.loads(line)
                mine = record["thread_id"] in wanted and not record["error"]
                key = (record["thread_id"], record["node"], record["round"], record["index"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{file} line {number} is no model call; remove the line"
                ) from None
            if mine:
                latest[*key, record["prompt"]] = record
    return list(latest.values())


def _variables(file: Path) -> Mapping[str, Any]:
    """Return the chat template's variables in the run that recorded a file."""
    header = read_header(file.parent) or {}
    policy: dict[str, Any] = header.get("settings", {}).get("policy", {})
    found: dict[str, Any] = policy.get("chat_template", {})
    return found


def _of_trajectories(
    file: Path, count: RunCount, thoughts: bool, texts: ChatText
) -> Iterator[Said]:
    for trajectory in read_trajectories(file):
        count.read += 1
        count.correct += trajectory.correct
        if not trajectory.correct:
            continue
        for call in trajectory.calls:
            yield Said(
                role=call.role,
                problem_id=trajectory.problem_id,
                prompt=texts.prompt(call.prompt_ids),
                reply=texts.reply(call.token_ids) if thoughts else call.text,
                cut=call.finish_reason in CUT,
                right=call.reward is None or call.reward > 0,
                source=str(file),
            )


class TrainMessage(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Example(TypedDict):
    """One line of the file."""

    prompt: list[TrainMessage]
    completion: list[TrainMessage]
    call: Role
    """What the call was for."""
    problem_id: str
    source: str


@dataclass(frozen=True, slots=True)
class ExampleChoice:
    """Which calls are taken."""

    roles: frozenset[Role] = frozenset({"direct", "draft", "refine"})
    per_problem: int | None = None
    """Largest number of calls of each role from one problem, the first ones; None is all."""
    duplicates: bool = False
    """Whether to take the same prompt with the same reply more than once."""
    wrong_drafts: bool = False
    """Whether to take drafts with a wrong answer, if the run's is right."""
    thoughts: bool = True
    """Whether the reasoning is part of the reply."""


@dataclass(slots=True)
class RoleTally:
    """Counts of the calls that were read."""

    taken: Counter[Role] = field(default_factory=Counter)
    """By role."""
    problems: set[str] = field(default_factory=set)
    """Problems with at least one taken call."""
    runs: RunCount = field(default_factory=RunCount)
    left_out: Counter[str] = field(default_factory=Counter)
    """Calls of correct runs that were left out, by reason."""

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
    sources: Iterable[Path], choice: ExampleChoice, tally: RoleTally, model: Path | None = None
) -> Iterator[Example]:
    """Yield the examples that recorded runs give.

    Args:
        sources: Folders of `pdr-graph eval`, folders of `pdr-graph train`, or trajectory files.
        choice: Which calls.
        tally: Is counted up.
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
                prompt=[TrainMessage(role="user", content=said.prompt)],
                completion=[TrainMessage(role="assistant", content=said.reply)],
                call=said.role,
                problem_id=said.problem_id,
                source=said.source,
            )


def _refusal(said: Said, choice: ExampleChoice, seen: set[tuple[str, str]], so_far: int) -> str:
    """Return why a call is not taken; empty if it is."""
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

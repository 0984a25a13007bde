"""The calls of recorded runs that ended in the right answer, as texts.

Read are folders of `pdr-graph eval`, whose trace holds prompts and replies, and trajectories of
training, whose tokens a tokenizer reads back. A run that saw the gold answer (an oracle's, or one
that the verifier `gold` sent back) is not among them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.eval.folder import TRACE
from pdr_graph.eval.records import HEADER, Run, SampleRecord, read_run
from pdr_graph.trace import TraceRecord
from pdr_graph.train.chat_text import ChatText
from pdr_graph.train.recording import role_of
from pdr_graph.train.run_folder import read_header
from pdr_graph.train.trajectory import Role, read_trajectories

TRAJECTORIES = "trajectories.jsonl"
"""Where a training run keeps its own."""
_CUT = frozenset({"length", "max_tokens"})


@dataclass(slots=True)
class RunCount:
    """Samples, or trajectories, that were read."""

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
    """Whether its own answer is; a call that has none is as right as its run."""
    source: str


def calls_of(
    source: Path, count: RunCount, *, thoughts: bool, model: Path | None
) -> Iterator[Said]:
    """Yield the calls of a source's correct runs.

    Args:
        source: Folder of `pdr-graph eval` or `pdr-graph train`, or a file of trajectories.
        count: Counts along.
        thoughts: Whether the reasoning is part of a reply.
        model: Folder whose tokenizer reads trajectories back.

    Raises:
        ConfigError: it holds no run or is damaged, its trace was not kept, or trajectories are to
            be read without a tokenizer.
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
            cut=record["finish_reason"] in _CUT or not record["solution"],
            right=_right(record, sample),
            source=str(folder),
        )


def _saw_gold(run: Run, arm: str) -> bool:
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
    """Return the calls of some threads that brought a reply.

    A call that was made again after a death counts once, as it was the last time: that is the
    reply that the run went on with.
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
    """Return what the run that recorded a file gave to the chat template; nothing without one."""
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
                cut=call.finish_reason in _CUT,
                right=call.reward is None or call.reward > 0,
                source=str(file),
            )

"""What an evaluation is asked to do: arms × problems × samples, and the header that records it."""

import platform
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

from pdr_graph.config import BUDGETS, PDRConfig
from pdr_graph.errors import ConfigError, ContextWindowError, counted
from pdr_graph.eval.arms import Arm, arms_within, with_budgets
from pdr_graph.eval.problems import Problems
from pdr_graph.eval.records import SCHEMA, ArmRecord, DataRecord, HeaderRecord
from pdr_graph.eval.sample import Sample
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.models import Models, changed_models
from pdr_graph.nodes.plan import check_windows, lengths_of
from pdr_graph.validation import differences

_PACKAGES = ("pdr-graph", "langgraph", "langchain-core", "math-verify", "sympy")
"""Distributions whose version changes what is asked, or what counts as right."""


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """One evaluation."""

    problems: Problems
    arms: tuple[Arm, ...]
    samples: int
    """Of each arm at each problem."""
    seed: int
    prompts_sha256: Mapping[str, str]
    share_first_round: bool = False
    judge: DraftJudge | None = None
    """Weighs drafts, in the arms that ask for weights; None where no arm does."""

    def header(self, model: str, models: Mapping[str, str] | None = None) -> HeaderRecord:
        """Return the header of a run that begins now.

        Args:
            model: The drafter's.
            models: The model of each role; None or empty where one has all of them.
        """
        header = HeaderRecord(
            schema=SCHEMA,
            run_id=secrets.token_hex(4),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            data=DataRecord(
                source=self.problems.source,
                sha256=self.problems.sha256,
                num_problems=len(self.problems.problems),
                scored_by=self.problems.scored_by,
            ),
            arms={
                arm.name: ArmRecord(
                    spec=arm.spec,
                    preset=arm.config.strategy,
                    config=arm.config.model_dump(mode="json"),
                    budget=arm.budget,
                )
                for arm in self.arms
            },
            samples=self.samples,
            seed=self.seed,
            model=model,
            prompts_sha256=dict(self.prompts_sha256),
            versions=self.versions(),
            share_first_round=self.share_first_round,
        )
        if models:
            header["models"] = dict(models)
        if self.judge is not None:
            header["judge"] = self.judge.digest
        return header

    def versions(self) -> dict[str, str]:
        """Return the versions of what this process runs on."""
        names = (*_PACKAGES, *self.problems.packages)
        return {"python": platform.python_version(), **{name: version(name) for name in names}}

    def all_samples(self, header: HeaderRecord, folder: Path) -> list[Sample]:
        """Return every sample of the run, in the order in which to run them.

        The first sample of each arm at each problem comes first, then every second sample: a run
        that is stopped early is a smaller run with the same arms and problems. The order, and so
        each sample's position, is the same in every process.
        """
        run = f"{folder.resolve().name}-{header['run_id']}"
        order = product(range(self.samples), self.problems.problems, self.arms)
        return [
            Sample(
                arm=arm,
                problem=problem,
                number=number,
                position=position,
                thread_id=f"{run}/{arm.name}/{problem.id}/{number}",
                # With equal seeds, a server that reproduces its replies gives arms the same first
                # drafts. Arms are independent unless asked to share.
                seed=derived_seed(
                    self.seed, "" if self.share_first_round else arm.name, problem.id, number
                ),
            )
            for position, (number, problem, arm) in enumerate(order)
        ]

    async def within(self, models: Models) -> "EvalPlan":
        """Return the plan with budgets that fit the models' windows, where nobody has set them.

        Raises:
            ConfigError: the longest problem does not fit all the same, or the judge is of another
                model; the sentence names arm, problem and numbers.
        """
        if self.judge is not None:
            self.judge.check(models.name)
        longest = max(self.problems.problems, key=lambda each: len(each.text))
        by_arm = [models.for_run(arm.config).asked_by(arm.config) for arm in self.arms]
        lengths = await lengths_of(longest.text, (each for arm in by_arm for each in arm.values()))
        arms = self.arms
        for client, tokens in lengths.items():
            arms = tuple(arms_within(arms, tokens, client.window))
        for arm in arms:
            try:
                check_windows(arm.config, lengths, models.for_run(arm.config))
            except ContextWindowError as error:
                raise ConfigError(f"arm {arm.name!r}, problem {longest.id!r}: {error}") from None
        return replace(self, arms=arms)

    def as_begun(self, recorded: HeaderRecord) -> "EvalPlan":
        """Return the plan with the open budgets of a run that was begun, to be compared with it."""
        known = recorded["arms"]
        arms = (
            with_budgets(arm, {name: known[arm.name]["config"][name] for name in BUDGETS}, None)
            if arm.name in known
            else arm
            for arm in self.arms
        )
        return replace(self, arms=tuple(arms))


def refuse_changes(recorded: HeaderRecord, asked: HeaderRecord, folder: Path) -> None:
    """Refuse to go on with a run that was started with another command.

    Raises:
        ConfigError: the sentence names the first difference.
    """
    difference = _difference(recorded, asked)
    if difference is not None:
        raise ConfigError(
            f"{str(folder)!r} holds a run with {difference}; repeat its command, or name another "
            "--out"
        )


def _difference(recorded: HeaderRecord, asked: HeaderRecord) -> str | None:
    was, now = recorded["data"], asked["data"]
    if was["sha256"] != now["sha256"]:
        return (
            f"other data ({was['source']}, {counted(was['num_problems'], 'problem')}, sha256 "
            f"{was['sha256'][:12]}…; now {now['source']}, "
            f"{counted(now['num_problems'], 'problem')}, {now['sha256'][:12]}…)"
        )
    if recorded["arms"].keys() != asked["arms"].keys():
        return f"other arms ({', '.join(recorded['arms'])}; now {', '.join(asked['arms'])})"
    for name, arm in recorded["arms"].items():
        # A header of an earlier version lacks some fields.
        was_config = {**PDRConfig().model_dump(mode="json"), **arm["config"]}
        if changed := differences(was_config, asked["arms"][name]["config"]):
            return f"another {', '.join(map(str, changed))} in arm {name!r}"
    if others := changed_models(recorded, asked):
        return f"another {others[0]}"
    if recorded.get("judge") != asked.get("judge"):
        begun, given = recorded.get("judge", "none"), asked.get("judge", "none")
        return f"another --judge ({begun}, now {given})"
    # A prompt that is not in the record comes from a later version.
    known, prompts = recorded["prompts_sha256"], asked["prompts_sha256"]
    if changed := differences(known, prompts, free=prompts.keys() - known.keys()):
        return f"other prompts ({', '.join(map(str, changed))})"
    changed = differences(_options(recorded), _options(asked))
    return f"another --{changed[0]}" if changed else None


def _options(header: HeaderRecord) -> dict[str, object]:
    return {
        "samples": header["samples"],
        "seed": header["seed"],
        "share-first-round": header["share_first_round"],
    }

"""`pdr-graph train` and `train-data`: train, or estimate what it needs; write supervised data.

A run shows its progress, and at the end its first figures beside its last.
"""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import get_args

from rich.table import Table
from rich.text import Text

from pdr_graph.cli.commands import TrainCommand, TrainDataCommand
from pdr_graph.cli.failure import FAILED, RankEndedError, RunEndedError
from pdr_graph.cli.live import Bar, LiveDisplay, duration
from pdr_graph.cli.output import Output, joined, one_line, table_of, unbroken
from pdr_graph.cli.signals import TrainStopper
from pdr_graph.errors import ConfigError, counted
from pdr_graph.files import written_whole
from pdr_graph.train.estimate import GIB, Memory, Tokens, TrainEstimate
from pdr_graph.train.preparation import (
    Launch,
    LostRankError,
    PlannedRollouts,
    Prepared,
    check_launch,
    prepare,
    read_launch,
)
from pdr_graph.train.run_folder import (
    METRICS,
    Line,
    Stage,
    TrainFolder,
    header_of,
    read_metrics,
    refuse_changes,
)
from pdr_graph.train.settings import TrainSettings, load_train_settings
from pdr_graph.train.supervised import Example, ExampleChoice, RoleTally, examples_of
from pdr_graph.train.trajectory import Role
from pdr_graph.validation import choice

CONTINUES = "the same command continues"


def train_command(command: TrainCommand, output: Output) -> None:
    """Train, or continue a run; or say what it would need.

    Raises:
        ConfigError: the settings are impossible, the folder holds another run, or another process
            works in it.
        RunEndedError: the run was stopped, or failed once it had begun.
        RankEndedError: one of the errors above, in a process that is not the main one.
    """
    launch = read_launch()
    try:
        settings = load_train_settings(command.config, command.given, command.override)
        if not command.dry_run:
            check_launch(launch, settings)
        prepared = prepare(settings)
        if not command.dry_run:
            _train(prepared, TrainFolder(command.folder), launch, output)
        elif launch.is_main:
            show_estimate(prepared, output)
    # The top of the command line explains the error.
    except Exception as error:
        if launch.is_main:
            raise
        raise RankEndedError(launch.rank, error) from error


def _train(prepared: Prepared, folder: TrainFolder, launch: Launch, output: Output) -> None:
    """Train until all is done, or until a signal."""
    if not launch.is_main:
        output = Output(json=output.json, quiet=True)
    header = header_of(prepared.settings, None if prepared.rl is None else prepared.rl.problems)
    refuse_changes(folder.path, header)
    if folder.finished:
        output.say(f"{str(folder.path)!r} is done; name another --out to train again")
    else:
        _run_training(prepared, folder, folder.claimed(header), launch, output)
    if launch.is_main:
        show_summary(folder, output)


def _run_training(
    prepared: Prepared,
    folder: TrainFolder,
    claim: AbstractContextManager[None],
    launch: Launch,
    output: Output,
) -> None:
    board = TrainBoard(output)
    display = LiveDisplay(output, board)
    tell = output.tell if launch.is_main else _nothing

    def leave(number: int) -> None:
        """End this process at once, whatever its main thread does."""
        display.hide()
        tell(_way_on(board))
        os._exit(128 + number)

    stop = TrainStopper(tell, leave)
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.enter_context(display)
        board.phase("loading torch, transformers and trl")
        from pdr_graph.train.session import TrainSession

        if launch.is_main:
            stack.enter_context(claim)
            if folder.finished:
                raise ConfigError(
                    f"another process finished the run in {str(folder.path)!r} meanwhile; the "
                    "same command shows the result"
                )
        session = TrainSession(prepared, folder, board if launch.is_main else None, stop.asked)
        stop.starting = lambda: not session.updating
        try:
            finished = session.run()
        # The top of the command line reports the error; here we add how to continue.
        except Exception as error:
            stop.deaf = launch.is_main and launch.world_size > 1
            if isinstance(error, ConfigError) or not session.begun:
                raise
            raise RunEndedError(_way_on(board), FAILED, _named(error)) from error
    if not finished:
        raise RunEndedError(_way_on(board), 128 + (stop.received or 0))


def _named(error: Exception) -> Exception:
    from pdr_graph.train.ranks import is_of_a_lost_rank

    return LostRankError() if is_of_a_lost_rank(error) else error


def _nothing(line: str) -> None:
    """Say nothing: the main process does."""


def _way_on(board: "TrainBoard") -> str:
    if not board.total:
        return f"stopped; {CONTINUES}"
    return f"{board.what}: {board.place} is done; {CONTINUES}"


FREE = 0.9
"""Share of a device that an estimate may fill; the rest is for what it does not count."""


def show_estimate(prepared: Prepared, output: Output) -> None:
    """Show memory and tokens, or that there is nothing to estimate."""
    rl = prepared.rl
    if output.json:
        facts = {} if rl is None else rl.estimate.to_json()
        facts |= {} if rl is None else {"fits": _fits(prepared.settings, rl.estimate)}
        output.show_json({"settings": prepared.settings.model_dump(mode="json"), **facts})
        return
    if rl is None:
        output.show(Text("The settings are possible; a warm start alone is not estimated."))
        return
    output.show(
        Text(_summary(prepared, rl)),
        Text(""),
        _memory_table(rl.estimate.memory),
        Text(_verdict(prepared.settings, rl.estimate), "bold"),
        Text(""),
        _token_table(rl.estimate.tokens),
        Text("Every call as long as it may be; nothing was loaded, and nothing written.", "dim"),
    )


def _summary(prepared: Prepared, rl: PlannedRollouts) -> str:
    settings, estimate, rollouts = prepared.settings, rl.estimate, prepared.settings.rollouts
    trained = f"{estimate.trained_parameters:,} of adapters are trained"
    if settings.lora is None:
        trained = "all of them are trained"
    operator = int(rollouts.operator_fraction * rollouts.problems_per_step + 0.5)
    plan = settings.operator_plan
    roles = ", ".join(f"{number} {role}" for role, number in plan.rows.items())
    by_plan = f", {operator} by plan {plan.kind} ({roles} each)" if operator else ""
    how = "counted by its tokenizer" if rl.size.exact else "estimated"
    return "\n".join(
        [
            f"{settings.model}: {estimate.parameters:,} weights, {trained}",
            f"a step: {counted(rollouts.problems_per_step, 'problem')} of "
            f"{counted(rollouts.rows_per_problem, 'row')}; "
            f"{rollouts.problems_per_step - operator} by long CoT{by_plan}",
            f"rows of up to {estimate.row_tokens:,} tokens; prompts {how}",
        ]
    )


def _memory_table(memory: Memory) -> Table:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations": memory.activations,
        "head": memory.head,
        "KV cache": memory.kv_cache,
        "sampling weights": memory.drawing_weights,
        "taken by the engine": memory.reserved,
    }
    rows = [(Text(name), Text(_gib(size))) for name, size in parts.items() if size]
    rows.append((Text("at the peak", "bold"), Text(_gib(memory.peak), "bold")))
    return table_of(("memory of one device", "GiB"), rows)


def _token_table(tokens: Tokens) -> Table:
    per_step = {
        "sampled": tokens.drawn_per_step,
        "read as prompts": tokens.read_per_step,
        "trained on": tokens.trained_per_step,
        "calls": tokens.calls_per_step,
    }
    rows = [(what, f"{size:,}", f"{size * tokens.steps:,}") for what, size in per_step.items()]
    return table_of(("tokens at most", "a step", f"{tokens.steps:,} steps"), rows)


def _fits(settings: TrainSettings, estimate: TrainEstimate) -> bool | None:
    """Tell whether the peak leaves a tenth of a device; None where its size is not said."""
    size = settings.devices.memory_gib
    return None if size is None else estimate.memory.peak <= FREE * size * GIB


def _verdict(settings: TrainSettings, estimate: TrainEstimate) -> str:
    size = settings.devices.memory_gib
    fits = _fits(settings, estimate)
    if fits is None:
        return "set devices.memory_gib to hear whether it fits"
    if fits:
        return f"fits a device of {size:g} GiB"
    return (
        f"does not fit a device of {size:g} GiB with a tenth left free; lower "
        "optimiser.micro_batch_rows or strategy.max_tokens, add [lora], or shard over more devices"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB // 100 else f"{size / GIB:.4f}"


def train_data_command(command: TrainDataCommand, output: Output) -> None:
    """Write the examples of recorded runs, and count the calls taken and left out.

    Raises:
        ConfigError: there is no such role, nothing to write, or no way to write it.
    """
    tally, out = RoleTally(), command.out
    _write(out, examples_of(command.runs, _choice(command), tally, command.model), tally)
    if output.json:
        output.show_json({"file": str(out), **tally.to_json()})
        return
    taken = sum(tally.taken.values())
    output.show(_tally_table(tally))
    output.say(
        f"{counted(taken, 'example')} of {counted(len(tally.problems), 'problem')} in {out}; "
        f"right were {tally.runs.correct} of {counted(tally.runs.read, 'run')}"
    )


def _choice(command: TrainDataCommand) -> ExampleChoice:
    known = [role for role in get_args(Role) if role != "judge"]
    for role in command.roles:
        if role not in known:
            raise ConfigError(f"unknown role {role!r}; {choice(role, known)}")
    chosen: frozenset[Role] = frozenset(role for role in get_args(Role) if role in command.roles)
    return ExampleChoice(
        roles=chosen or ExampleChoice().roles,
        per_problem=command.per_problem,
        duplicates=command.keep_duplicates,
        wrong_drafts=command.wrong_drafts,
        thoughts=not command.no_thoughts,
    )


def _write(out: Path, examples: Iterable[Example], tally: RoleTally) -> None:
    """Write the examples to a file.

    Raises:
        ConfigError: it cannot be written, or there is nothing to write.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(out) as file:
            for example in examples:
                file.write(json.dumps(example, ensure_ascii=True).encode() + b"\n")
            if not tally.taken:
                raise ConfigError(_no_examples(tally))
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written: {error.strerror}") from None


def _no_examples(tally: RoleTally) -> str:
    if not tally.runs.correct:
        runs = counted(tally.runs.read, "run")
        return f"none of {runs} was right, so there is nothing to learn from"
    left = ", ".join(f"{number} {why}" for why, number in tally.left_out.most_common())
    runs = counted(tally.runs.correct, "correct run")
    return f"no call is left of {runs} ({left or 'none recorded'})"


def _tally_table(tally: RoleTally) -> Table:
    taken = [(role, str(number)) for role, number in sorted(tally.taken.items())]
    left_out = [
        (Text(f"left out: {why}", "dim"), Text(str(number), "dim"))
        for why, number in sorted(tally.left_out.items())
    ]
    return table_of(("calls of right runs", "number"), [*taken, *left_out])


_STAGES: Mapping[Stage, str] = {"warm_start": "warm start", "rl": "training"}


class TrainBoard:
    """The newest figure of every kind."""

    silence_s = 10.0

    def __init__(self, output: Output) -> None:
        self.what = "starting"
        self.update, self.total = 0, 0
        self.figures: dict[str, float] = {}
        self._output = output
        self._updates_per_step = 1
        self._from, self._began = 0, 0.0

    def phase(self, what: str) -> None:
        """Say what is done now."""
        self.what, self.total = what, 0
        self._say(what)

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Start the clock of a stage."""
        self.what, self.total = _STAGES[stage], total
        self.update = self._from = update
        self._updates_per_step, self._began = updates_per_step, monotonic()
        self.figures = {}
        if update:
            self._output.say(f"{self.what}: continues after {self.place}")

    def told(self, line: Line) -> None:
        """Take the figures of an update; the first and the last are written at once."""
        first = not self.figures
        self.update = line["update"]
        self.figures |= {name: value for name, value in line.items() if isinstance(value, float)}
        if first or self.update == self.total:
            self._say(self._line())

    def bars(self) -> list[Bar]:
        """Return the stage with a bar for its updates."""
        if not self.total:
            return [Bar(f"{self.what} …")]
        return [Bar(f"{self.what} {self.place}", self.update, self.total, self.left)]

    def details(self) -> list[list[str]]:
        """Return rewards, health and speed."""
        return [self.rewards, self.health, self.speed] if self.total else []

    def lines(self) -> list[str]:
        """Return all figures in one line, from the first ones until `told` has written the last."""
        return [self._line()] if self.figures and self.update < self.total else []

    def _line(self) -> str:
        facts = [*self.rewards, *self.health, *self.speed, self.left]
        return joined([f"{self.what}: {self.place}", *facts])

    def _say(self, *lines: str) -> None:
        if not self._output.is_live:
            for line in lines:
                self._output.say(line)

    @property
    def place(self) -> str:
        """Steps done, of all steps."""
        if self._updates_per_step == 1:
            return f"{self.update}/{self.total}"
        per_step = self._updates_per_step
        return f"{self.update / per_step:g}/{self.total / per_step:g}"

    @property
    def left(self) -> str:
        """Time left at the pace of this process; empty before there is one."""
        done = self.update - self._from
        if not done or self.update >= self.total:
            return ""
        return f"{duration((monotonic() - self._began) / done * (self.total - self.update))} left"

    @property
    def rewards(self) -> list[str]:
        """Mean reward of the runs, and of the calls of each role."""
        named = {name: value for name, value in self.figures.items() if name.startswith("reward/")}
        runs = named.pop("reward/run", None)
        facts = [] if runs is None else [f"reward {runs:+.2f}"]
        return facts + [
            f"{name.removeprefix('reward/')} {value:+.2f}" for name, value in sorted(named.items())
        ]

    @property
    def health(self) -> list[str]:
        """Figures that tell whether learning goes well."""
        forms = {
            "policy/entropy": "entropy {:.2f}",
            "entropy": "entropy {:.2f}",
            "policy/clipped": "clipped {:.1%}",
            "drift/largest": "drift {:.1e}",
            "groups/flat": "flat groups {:.0%}",
            "loss": "loss {:.3f}",
            "mean_token_accuracy": "right tokens {:.1%}",
        }
        stage_loss = "reward/run" in self.figures
        return [
            form.format(self.figures[name])
            for name, form in forms.items()
            if name in self.figures and not (name == "loss" and stage_loss)
        ]

    @property
    def speed(self) -> list[str]:
        """Tokens a second."""
        named = {"sampled": "sampled", "trained": "trained"}
        return [
            f"{self.figures[key]:,.0f} tokens/s {word}"
            for what, word in named.items()
            if (key := f"tokens_per_second/{what}") in self.figures
        ]


SHARE = 10
"""The first and last tenth of the updates are compared."""
_SHOWN = ("reward/", "policy/entropy", "groups/flat", "loss", "mean_token_accuracy", "drift/mean")


def show_summary(folder: TrainFolder, output: Output) -> None:
    """Show how the figures of a finished run changed, and where its model is."""
    lines = list(read_metrics(folder.path / METRICS))
    stages = {stage: [line for line in lines if line["stage"] == stage] for stage in _stages(lines)}
    ends = {stage: first_and_last(of_stage) for stage, of_stage in stages.items()}
    if output.json:
        output.show_json(
            {
                "out": str(folder.path),
                "model": str(folder.model),
                "stages": {
                    stage: {
                        "updates": of_stage[-1]["update"],
                        "seconds": of_stage[-1]["seconds"],
                        "first": ends[stage][0],
                        "last": ends[stage][1],
                    }
                    for stage, of_stage in stages.items()
                },
            }
        )
        return
    for stage, (first, last) in ends.items():
        output.show(change_table(stage, stages[stage][-1]["update"], first, last), Text(""))
    model = shlex.quote(str(folder.model))
    output.show(
        Text("To measure it run:", "dim"),
        unbroken(Text(one_line(f"pdr-graph eval DATA --arm pdr --model {model} --out runs/after"))),
    )


def first_and_last(lines: Sequence[Line]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean of each figure over the first tenth of the updates, and over the last."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(_SHOWN))
    first, last = {}, {}
    for name in names:
        values = [float(line[name]) for line in lines if name in line]
        number = max(1, len(values) // SHARE)
        first[name], last[name] = fmean(values[:number]), fmean(values[-number:])
    return first, last


def _stages(lines: Sequence[Line]) -> list[Stage]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def change_table(
    stage: Stage, updates: int, first: Mapping[str, float], last: Mapping[str, float]
) -> Table:
    """Return the figures of a stage's first updates beside those of its last."""
    title = f"{_STAGES[stage]}, {counted(updates, 'update')}"
    rows = [(name.replace("/", " "), f"{first[name]:.4g}", f"{last[name]:.4g}") for name in first]
    return table_of((title, "first tenth", "last tenth"), rows)

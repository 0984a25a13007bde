"""One training run from its settings: a warm start if asked for, then RL, then the model's place.

Every part can be stopped after an update, or killed at any instant, and goes on from its last
checkpoint. Under `accelerate launch` every rank runs this; the main one writes and tells.
"""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.train.arguments import training_arguments
from pdr_graph.train.checkpoint import last_checkpoint, update_of
from pdr_graph.train.drift import DriftGuard
from pdr_graph.train.engine import drawing
from pdr_graph.train.metrics import MetricsLog, Stage, TrainWatcher
from pdr_graph.train.models import open_model, open_tokenizer, quiet_libraries, save_model, uses_cpu
from pdr_graph.train.plan import Schedule
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.ranks import meet
from pdr_graph.train.rollouts import forget_after
from pdr_graph.train.run_folder import MODEL, TrainFolder
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.trainer import OperatorTrainer, StopWhenAsked
from pdr_graph.train.warm_start import (
    Rows,
    WarmStartTrainer,
    fitting,
    read_conversations,
    warm_start_arguments,
)

try:
    from trl import GRPOConfig
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


@dataclass(slots=True)
class TrainSession:
    """One process's part in a run."""

    prepared: Prepared
    folder: TrainFolder
    watcher: TrainWatcher | None
    """None on all ranks but the main one, which write nothing either."""
    stop_asked: Callable[[], bool]
    begun: bool = False
    """Whether a trainer was started: from there on something may be lost, or is to be resumed."""
    updating: bool = False
    """Whether one is at work on every rank: only then a stop waits for the end of an update."""

    def run(self) -> bool:
        """Do what is left of the run; returns whether all is done, or it was asked to stop.

        Raises:
            ConfigError: model or data cannot be used.
            DriftError: the policy that draws is not the model that is trained.
            PushError, EndpointError, CallError: the policy failed.
        """
        quiet_libraries()
        meet(cpu=uses_cpu())
        settings = self.prepared.settings
        start = settings.model
        if settings.warm_start is not None:
            alone = settings.steps == 0
            start = self.folder.model if alone else self.folder.warm_start / MODEL
            if not start.is_dir() and not self._warm_start(start):
                return False
            if alone or self.stop_asked():
                return alone
        return self._reinforce(start)

    def _warm_start(self, place: Path) -> bool:
        settings = self.prepared.settings
        warm = settings.warm_start
        assert warm is not None
        self._phase("reading the warm-start data")
        tokenizer = open_tokenizer(settings.model)
        window = self.prepared.shape.window
        most = min(each for each in (warm.max_tokens, window, math.inf) if each is not None)
        variables = settings.policy.chat_template
        conversations = read_conversations(warm.data)
        rows = fitting(conversations, tokenizer, int(min(most, 1 << 30)), variables)
        self._phase(_reading(rows))
        model = open_model(settings, settings.model)
        folder = self.folder.warm_start
        last = last_checkpoint(folder)
        log = self._log("warm_start", 1, 0 if last is None else update_of(last))
        stop = StopWhenAsked(self.stop_asked)
        trainer = WarmStartTrainer(
            model,
            tokenizer,
            rows,
            warm_start_arguments(
                folder,
                epochs=warm.epochs,
                rows_at_once=warm.micro_batch_rows,
                accumulation=warm.batch_rows // warm.micro_batch_rows // settings.devices.processes,
                learning_rate=warm.learning_rate,
                warmup_share=warm.warmup_share,
                save_every=warm.save_every,
                seed=settings.seed,
                bf16=settings.devices.precision == "bf16",
                gradient_checkpointing=settings.optimiser.gradient_checkpointing,
                cpu=uses_cpu(),
            ),
            variables=variables,
            keep=settings.keep_checkpoints,
            on_update=None if log is None else self._telling(log),
        )
        trainer.add_callback(stop)
        self._begins("warm_start", folder, trainer.num_updates, 1)
        try:
            trainer.go_on()
        finally:
            _close(log)
        if stop.stopped:
            return False
        save_model(trainer, tokenizer, place)
        self.updating = False
        del trainer, model
        gc.collect()
        return True

    def _reinforce(self, start: Path) -> bool:
        settings, rl = self.prepared.settings, self.prepared.rl
        assert rl is not None  # there are steps
        self._phase(f"opening {start}")
        tokenizer = open_tokenizer(settings.model)
        model = open_model(settings, start)
        last = last_checkpoint(self.folder.path)
        update = 0 if last is None else update_of(last)
        if self.watcher is not None:
            forget_after(self.folder.path, update)
        log = self._log("rl", settings.optimiser.updates_per_step, update)
        stop = StopWhenAsked(self.stop_asked)
        with drawing(self.prepared, model, tokenizer, self.folder.path) as collect:
            schedule = _schedule(settings, len(rl.problems.problems))
            trainer = OperatorTrainer(
                model,
                tokenizer,
                rl.problems.problems,
                collect,
                schedule=schedule,
                arguments=_arguments(settings, schedule, self.folder.path),
                push=collect.push,
                guard=_guard(settings),
                alpha=settings.objective.alpha,
                epsilon_max=settings.objective.epsilon_max,
                keep=settings.keep_checkpoints,
                on_update=None if log is None else self._telling_update(log),
            )
            trainer.add_callback(stop)
            per_step = settings.optimiser.updates_per_step
            self._begins("rl", self.folder.path, settings.steps * per_step, per_step)
            try:
                trainer.train(resume_from_checkpoint=last)
            finally:
                _close(log)
            if stop.stopped:
                return False
            save_model(trainer, tokenizer, self.folder.model)
        return True

    def _phase(self, what: str) -> None:
        if self.watcher is not None:
            self.watcher.phase(what)

    def _begins(self, stage: Stage, folder: Path, total: int, updates_per_step: int) -> None:
        self.begun = True
        if self.watcher is not None:
            last = last_checkpoint(folder)
            update = 0 if last is None else update_of(last)
            self.watcher.begins(stage, update, total, updates_per_step)
        meet(cpu=uses_cpu())
        self.updating = True

    def _log(self, stage: Stage, updates_per_step: int, update: int) -> MetricsLog | None:
        if self.watcher is None:
            return None
        log = MetricsLog(self.folder.path, stage, updates_per_step)
        log.open(update)
        return log

    def _telling(self, log: MetricsLog) -> Callable[[int, Mapping[str, float]], None]:
        watcher = self.watcher
        assert watcher is not None
        return lambda update, figures: watcher.told(log.write(update, figures))

    def _telling_update(self, log: MetricsLog) -> Callable[[Mapping[str, float]], None]:
        tell = self._telling(log)
        return lambda figures: tell(int(figures["update"]), figures)


def _close(log: MetricsLog | None) -> None:
    if log is not None:
        log.close()


def _reading(rows: Rows) -> str:
    left = f", {rows.too_long} of them too long" if rows.too_long else ""
    return f"warm start on {len(rows.conversations)} rows{left}"


def _schedule(settings: TrainSettings, num_problems: int) -> Schedule:
    return Schedule(
        num_problems,
        settings.rollouts.problems_per_step,
        settings.direct_plan,
        settings.operator_plan,
        settings.rollouts.operator_fraction,
        settings.seed,
    )


def _arguments(settings: TrainSettings, schedule: Schedule, folder: Path) -> GRPOConfig:
    optimiser = settings.optimiser
    return training_arguments(
        folder,
        schedule,
        num_steps=settings.steps,
        updates_per_step=optimiser.updates_per_step,
        rows_at_once=optimiser.micro_batch_rows,
        learning_rate=optimiser.learning_rate,
        learning_rate_schedule=optimiser.schedule,
        warmup_updates=optimiser.warmup_updates,
        weight_decay=optimiser.weight_decay,
        beta2=optimiser.beta2,
        max_grad_norm=optimiser.max_grad_norm,
        temperature=settings.config.temperature,
        save_every=settings.save_every,
        bf16=settings.devices.precision == "bf16",
        gradient_checkpointing=optimiser.gradient_checkpointing,
        cpu=uses_cpu(),
    )


def _guard(settings: TrainSettings) -> DriftGuard | None:
    drift = settings.drift
    if not drift.every:
        return None
    return DriftGuard.at(
        settings.devices.precision, rows=drift.rows, every=drift.every, tolerance=drift.tolerance
    )

"""One training run from its settings: a warm start if asked for, then RL, then the model's place.

A run can be stopped after an update, or killed at any moment, and goes on from its last checkpoint.
Under `accelerate launch` every rank runs this; only the main one writes and reports.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdr_graph.errors import counted
from pdr_graph.train.card import model_card
from pdr_graph.train.checkpoint import StopWhenAsked, last_checkpoint, update_of
from pdr_graph.train.engine import open_policy
from pdr_graph.train.metrics import MetricsLog, Stage, TrainWatcher
from pdr_graph.train.models import (
    OnUpdate,
    open_model,
    open_tokenizer,
    quiet_libraries,
    save_model,
    uses_cpu,
)
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.ranks import meet
from pdr_graph.train.rollouts import forget_after
from pdr_graph.train.run_folder import MODEL, TrainFolder
from pdr_graph.train.trainer import OperatorTrainer
from pdr_graph.train.warm_start import WarmStartTrainer, fitting, read_conversations


@dataclass(slots=True)
class TrainSession:
    """One process's part in a run."""

    prepared: Prepared
    folder: TrainFolder
    watcher: TrainWatcher | None
    """None on all ranks but the main one, which also write nothing."""
    stop_asked: Callable[[], bool]
    begun: bool = False
    """Whether a trainer was started: from then on there may be something to lose or to resume."""
    updating: bool = False
    """Whether a trainer is at work on every rank: only then a stop waits for an update's end."""

    def run(self) -> bool:
        """Do what is left of the run; return whether it is done, or was asked to stop.

        Raises:
            ConfigError: model or data cannot be used.
            DriftError: the policy that draws is not the trained model.
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
        rows = fitting(
            read_conversations(warm.data),
            tokenizer,
            int(min(most, 1 << 30)),
            settings.policy.chat_template,
        )
        left = f", {rows.too_long} of them too long" if rows.too_long else ""
        self._phase(f"warm start on {counted(len(rows.conversations), 'row')}{left}")
        model = open_model(settings, settings.model)
        folder = self.folder.warm_start
        with self._reported("warm_start", folder, 1) as on_update:
            trainer = WarmStartTrainer(
                model, tokenizer, rows, settings, folder, on_update=on_update
            )
            stop = StopWhenAsked(self.stop_asked)
            trainer.add_callback(stop)
            self._begins("warm_start", folder, trainer.num_updates, 1)
            trainer.go_on()
        if stop.stopped:
            return False
        self._save(trainer, tokenizer, place)
        self.updating = False
        del trainer, model
        gc.collect()
        return True

    def _reinforce(self, start: Path) -> bool:
        settings, rl, path = self.prepared.settings, self.prepared.rl, self.folder.path
        assert rl is not None  # there are steps
        self._phase(f"opening {start}")
        tokenizer = open_tokenizer(settings.model)
        model = open_model(settings, start)
        last = last_checkpoint(path)
        if self.watcher is not None:
            forget_after(path, update_of(last))
        per_step = settings.optimiser.updates_per_step
        with (
            self._reported("rl", path, per_step) as on_update,
            open_policy(self.prepared, model, tokenizer, path) as policy,
        ):
            trainer = OperatorTrainer(
                model,
                tokenizer,
                rl.problems.problems,
                policy.collect,
                settings,
                path,
                push=policy.push,
                on_update=on_update,
            )
            stop = StopWhenAsked(self.stop_asked)
            trainer.add_callback(stop)
            self._begins("rl", path, settings.steps * per_step, per_step)
            trainer.train(last)
            if stop.stopped:
                return False
            self._save(trainer, tokenizer, self.folder.model)
        return True

    def _save(self, trainer: Any, tokenizer: Any, place: Path) -> None:
        settings, folder = self.prepared.settings, self.folder
        save_model(trainer, tokenizer, place, lambda: model_card(settings, folder, place))

    def _phase(self, what: str) -> None:
        if self.watcher is not None:
            self.watcher.phase(what)

    def _begins(self, stage: Stage, folder: Path, total: int, updates_per_step: int) -> None:
        self.begun = True
        if self.watcher is not None:
            update = update_of(last_checkpoint(folder))
            self.watcher.begins(stage, update, total, updates_per_step)
        meet(cpu=uses_cpu())
        self.updating = True

    @contextmanager
    def _reported(
        self, stage: Stage, folder: Path, updates_per_step: int
    ) -> Iterator[OnUpdate | None]:
        """Write and show the figures of a stage; on the main process."""
        watcher = self.watcher
        if watcher is None:
            yield None
            return
        log = MetricsLog(self.folder.path, stage, updates_per_step)
        log.open(update_of(last_checkpoint(folder)))

        def on_update(update: int, figures: Mapping[str, float]) -> None:
            watcher.told(log.write(update, figures))

        try:
            yield on_update
        finally:
            log.close()

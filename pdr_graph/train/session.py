"""One training run from its settings: a warm start if asked for, then RL, then the model and card.

A run can be stopped after an update, or killed at any moment, and goes on from its last checkpoint.
Under `accelerate launch` every rank runs this; only the main one writes and reports. Every trained
model gets a card that says what it was made from, how, and how to use it, in the format of the
Hugging Face Hub: https://huggingface.co/docs/hub/model-cards.
"""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdr_graph.errors import counted
from pdr_graph.train.engine import open_policy
from pdr_graph.train.estimate import CONFIG
from pdr_graph.train.models import (
    OnUpdate,
    StopWhenAsked,
    last_checkpoint,
    open_model,
    open_tokenizer,
    quiet_libraries,
    save_model,
    update_of,
    uses_cpu,
)
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.ranks import meet
from pdr_graph.train.rollouts import forget_after
from pdr_graph.train.run_folder import (
    FIXED,
    METRICS,
    MODEL,
    Line,
    MetricsLog,
    Stage,
    TrainFolder,
    TrainWatcher,
    read_header,
    read_metrics,
)
from pdr_graph.train.settings import TrainSettings
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
    """Whether a trainer is at work on every rank; only then does a stop wait for the update's
    end."""

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


_PAPER = "2510.01123"


def model_card(settings: TrainSettings, folder: TrainFolder, place: Path) -> str:
    """Return the README.md of a trained model.

    Args:
        settings: Of the run.
        folder: Of the run, with its header and its metrics.
        place: Where the model goes.
    """
    header = read_header(folder.path) or {}
    lines = list(read_metrics(folder.path / METRICS))
    alone = place != folder.model or not settings.steps  # a warm start's own model
    stages: tuple[Stage, ...] = ("warm_start",) if alone else ("warm_start", "rl")
    base = _base_model(settings.model)
    adapter = settings.lora is not None
    front = {
        "base_model": base,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pdr-graph", f"arxiv:{_PAPER}", *(["lora"] if adapter else [])],
    }
    parts = [
        "---\n"
        + "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())
        + "---",
        f"# {folder.path.resolve().name}",
        f"{'A LoRA adapter for' if adapter else 'A model trained from'} `{base}` by "
        f"[pdr-graph](https://github.com/pdr-graph/pdr-graph), which uses models for "
        f"Parallel-Distill-Refine reasoning ([arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})).",
        "## Method",
        *_method(settings, stages),
        "## Data",
        _data(settings, header, stages),
        "## Metrics",
        _metrics([line for line in lines if line["stage"] in stages]),
        "## Use",
        _use(settings),
        "## Settings",
        f"```json\n{json.dumps(header.get('settings', {}), indent=2)}\n```",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in header.get("versions", {}).items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _base_model(folder: Path) -> str:
    """Return the name of the model that training started from, as far as its folder tells."""
    try:
        named = json.loads((folder / CONFIG).read_text("utf-8")).get("_name_or_path", "")
    except (OSError, ValueError):
        named = ""
    return str(named) if named and not Path(named).is_absolute() else folder.resolve().name


def _method(settings: TrainSettings, stages: Sequence[Stage]) -> list[str]:
    said = []
    if settings.warm_start is not None:
        said.append(
            f"Supervised training on the replies of recorded runs, {settings.warm_start.epochs:g} "
            "epochs; only the tokens of the replies are learnt."
        )
    if "rl" in stages:
        rollouts, loss = settings.rollouts, settings.objective
        said.append(
            f"Reinforcement learning, number of steps: {settings.steps}. A step has "
            f"{rollouts.problems_per_step} problems of {rollouts.rows_per_problem} rows. A "
            f"share of {rollouts.operator_fraction:g} of the problems runs PDR with "
            f"{rollouts.num_drafts} drafts (plan `{rollouts.operator_plan}`), the others run long "
            "CoT. Each call is compared with the calls of its role on its problem. The loss is "
            f"CISPO (ε_max {loss.epsilon_max:g}) plus {loss.alpha:g} times the likelihood of "
            "correct calls; the reward is 1 for a right answer, else −1."
        )
    return said


def _data(settings: TrainSettings, header: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    rows = []
    data = header.get("data")
    if "rl" in stages and data:
        rows.append(
            f"- Problems: `{data['source']}`, {data['num_problems']} problems, SHA-256 "
            f"`{data['sha256']}`."
        )
    if settings.warm_start is not None:
        checksum = (header.get("warm_start") or {}).get("sha256", "unknown")
        rows.append(f"- Warm start: `{settings.warm_start.data}`, SHA-256 `{checksum}`.")
    return "\n".join(rows)


def _metrics(lines: Sequence[Line]) -> str:
    """Return a table of each figure's first and last value."""
    rows = ["| stage | figure | first | last |", "|---|---|---|---|"]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        for name in dict.fromkeys(name for line in own for name in line):
            if name not in FIXED and not name.startswith(("seconds/", "tokens_per_second/")):
                values = [line[name] for line in own if name in line]
                rows.append(f"| {stage} | {name} | {values[0]:.4g} | {values[-1]:.4g} |")
    return "\n".join(rows)


def _use(settings: TrainSettings) -> str:
    config, lora = settings.config, settings.lora
    strategy = (
        f"--widths {settings.rollouts.num_drafts} --kappa {config.kappa} "
        f"--max-tokens {config.max_tokens}"
    )
    serve = "vllm serve FOLDER --served-model-name trained"
    if lora is not None:
        serve = (
            f"vllm serve {settings.model} --enable-lora --max-lora-rank {lora.rank} "
            "--lora-modules trained=FOLDER"
        )
    return (
        "`FOLDER` is this folder. In one process, for small models:\n\n"
        f"```console\n$ pdr-graph solve --model FOLDER {strategy} 'PROBLEM'\n```\n\n"
        "Behind vLLM:\n\n"
        f"```console\n$ {serve}\n"
        f"$ pdr-graph solve --base-url http://127.0.0.1:8000/v1 --model trained {strategy} "
        "'PROBLEM'\n```"
    )

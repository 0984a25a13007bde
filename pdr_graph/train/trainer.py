"""Operator-consistent RL on TRL's GRPO trainer (paper section 4).

Of TRL it takes the set-up of model and adapter, the chunked head and, below it, the loop of
transformers (Accelerate, DDP, FSDP, DeepSpeed). Rollouts come from the graph in place of TRL's
generation, and the loss is `objective.py`'s. One *step* collects rollouts and makes one or several
*updates* of the weights, each of which may be several micro-batches on every rank.

A run that is resumed does what it would have done: data and seeds are functions of the step's
number, and a checkpoint between two updates of a step holds the rows that are left of it.

Stops a trainer where it can go on: after an update, with a checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem
from pdr_graph.train.arguments import check_trl
from pdr_graph.train.batch import Batch, Scores, StepRows, score, score_quietly
from pdr_graph.train.checkpoint import TrainRunRecord, saved_whole, sweep
from pdr_graph.train.drift import DriftGuard
from pdr_graph.train.figures import Figures, UpdateFigures
from pdr_graph.train.objective import objective
from pdr_graph.train.plan import Schedule
from pdr_graph.train.push import InProcess, WeightPush
from pdr_graph.train.rollout_source import Collect, RolloutSource

try:
    import torch
    from datasets import Dataset
    from torch import Tensor, nn
    from torch.utils.data import DataLoader
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


MICRO_STEP = "micro_step"
"""Key of a micro-step's number, from 0, in what the data loader gives."""


class OperatorTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """Trains a model on the rollouts of the graph that it is used in."""

    def __init__(
        self,
        model: Any,  # Any: a transformers model, or one with an adapter
        tokenizer: Any,  # Any: transformers' tokenizer
        problems: Sequence[Problem],
        collect: Collect,
        *,
        schedule: Schedule,
        arguments: GRPOConfig,
        push: WeightPush | None = None,
        guard: DriftGuard | None = None,
        alpha: float = 0.1,
        epsilon_max: float = 5.0,
        keep: int = 2,
        on_update: Callable[[Mapping[str, float]], None] | None = None,
        adapter: Any = None,  # Any: peft's config
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Make a trainer; `train()` runs it.

        Args:
            model: The model, in memory; with an adapter of peft's, only that is trained.
            tokenizer: Its tokenizer.
            problems: What is asked.
            collect: Draws rollouts from the policy.
            schedule: Which problems each step asks, and how.
            arguments: Made by `training_arguments` of the same schedule.
            push: How the policy gets new weights; None is for one that holds `model` itself.
            guard: Checks that it did; None does not check.
            alpha: Weight of the likelihood of correct rollouts.
            epsilon_max: Bound on the ratio of the policy to the one that drew a token.
            keep: Checkpoints that are kept, the newest.
            on_update: Receives the figures of every update, on the main process.
            adapter: A config of peft's: a fresh adapter is put on `model`, and trained alone.
            optimizer: None is AdamW as in `arguments`.

        Raises:
            ConfigError: TRL is another than this is written for, or numbers do not fit.
        """
        check_trl()
        super().__init__(
            model,
            reward_funcs=_judged_by_the_graph,
            args=arguments,
            # A place holder: the data of a step is the schedule's.
            train_dataset=Dataset.from_dict({"prompt": [""]}),
            processing_class=tokenizer,
            peft_config=adapter,
            optimizers=(optimizer, None),
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.alpha, self.epsilon_max = alpha, epsilon_max
        self._keep, self._on_update = keep, on_update
        self._micro_steps = arguments.steps_per_generation
        self._source = RolloutSource(
            problems=problems,
            schedule=schedule,
            collect=collect,
            push=push or InProcess(),
            guard=guard,
            num_updates=self._micro_steps // arguments.gradient_accumulation_steps,
            rows_at_once=arguments.per_device_train_batch_size,
            pad_id=tokenizer.pad_token_id,
            accelerator=self.accelerator,
        )
        self._record = TrainRunRecord(
            schedule,
            self._source.num_updates,
            self.accelerator.num_processes,
            self._source.rows_at_once,
        )
        self._folder = Path(arguments.output_dir)
        self._output_dir = self._folder
        self._resumed_from: Path | None = None
        self._rows: StepRows | None = None
        self._figures: Figures = {}
        self._update = UpdateFigures(self.accelerator)

    def train(self, resume_from_checkpoint: str | Path | None = None) -> Any:
        """Train to the last step; from a checkpoint, as if there had been no interruption.

        Raises:
            ConfigError: the checkpoint is of another run.
        """
        if self.accelerator.is_main_process:
            sweep(self._folder)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is not None:
            self._resumed_from = Path(resume_from_checkpoint)
            self._record.check(self._resumed_from)
        return super().train(
            resume_from_checkpoint=None if self._resumed_from is None else str(self._resumed_from)
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the micro-steps, from which all else follows."""
        number = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader([{MICRO_STEP: index} for index in range(number)])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Return this micro-batch's part of the loss of its update."""
        batch: Batch = inputs["batch"]
        scores = score(model, batch)
        part = objective(
            scores.logprobs_B_T,
            batch.behaviour_B_T,
            batch.advantages_B,
            batch.correct_B,
            batch.mask_B_T,
            inputs["counts"],
            epsilon_max=self.epsilon_max,
            alpha=self.alpha,
        )
        self._update.add(batch, scores, part)
        # Gradients are averaged over ranks, and parts of a loss are added.
        return part.loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand out the figures of an update, beside whatever callbacks do with them."""
        if "loss" in logs:
            logs |= {"update": self.state.global_step, **self._figures, **self._update.finish()}
            self._figures = {}
            if self._on_update is not None and self.accelerator.is_main_process:
                self._on_update(dict(logs))
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: what a run is, its own files say."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turn the number of a micro-step into its batch; the first of a step collects."""
        step, turn = divmod(int(inputs[MICRO_STEP]), self._micro_steps)
        if self._rows is None or self._rows.step != step:
            if turn == 0:
                self._rows, self._figures = self._source.draw(step, self.model, self._score_quietly)
            else:
                self._rows = self._rows_left(step)
        update, first = divmod(turn, self.args.gradient_accumulation_steps)
        if first == 0:
            self._update.begin()
        batch = self._rows.batches[turn].to(self.accelerator.device)
        return {"batch": batch, "counts": self._rows.counts[update]}

    def _score_quietly(self, batch: Batch) -> Scores:
        scores: Scores = score_quietly(self.model_wrapped, batch, self.accelerator.autocast())
        return scores

    def _rows_left(self, step: int) -> StepRows:
        assert self._resumed_from is not None  # else a step begins at its first micro-step
        rows = StepRows.load(self._rows_file(self._resumed_from))
        assert rows.step == step
        return rows

    def _rows_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"rows-{self.accelerator.process_index}.pt"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that is there whole or not at all."""
        update = self.state.global_step
        with saved_whole(self._folder, update, self._keep, self.accelerator) as self._output_dir:
            # Past TRL's own, which adds a card.
            Trainer._save_checkpoint(self, model, trial)
            written = self._output_dir / f"checkpoint-{update}"
            if update % self._source.num_updates and self._rows is not None:
                self._rows.save(self._rows_file(written))
            if self.accelerator.is_main_process:
                self._record.save(written)
        self._output_dir = self._folder

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._output_dir)

    def _send_telemetry(self) -> None:
        """Send none."""


def _judged_by_the_graph(**_: Any) -> list[float]:
    """Stand where TRL wants a reward; rows come with theirs."""
    raise AssertionError("TRL's own rollouts are never drawn")


try:
    import torch
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Asks after every update whether to stop; where one rank is told to, all do."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self.stopped = False
        """Whether it did."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,
    ) -> TrainerControl:
        """Have a checkpoint written, and the loop left; transformers calls an update a step."""
        if state.global_step < state.max_steps and self._told(args):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def _told(self, args: TrainingArguments) -> bool:
        if not torch.distributed.is_initialized():
            return self._asked()
        flag = torch.tensor([self._asked()], dtype=torch.int, device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

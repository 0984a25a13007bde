"""Operator-consistent RL on the trainer of transformers (paper section 4).

transformers has the loop (Accelerate, DDP); rollouts come from the graph, the loss is
`objective.py`'s. One *step* draws rollouts and makes one or several *updates* of the weights on
them, each of which may be several micro-batches on every rank.

A resumed run continues as if it had not been interrupted: data and seeds are functions of the
step's number, and a checkpoint between two updates of a step holds the step's batches.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.problems import Problem
from pdr_graph.train.models import (
    OnUpdate,
    WholeCheckpoints,
    shared_arguments,
    sweep,
    uses_cpu,
    writable,
)
from pdr_graph.train.objective import (
    Batch,
    Objective,
    load_batches,
    objective,
    save_batches,
    score,
)
from pdr_graph.train.push import InProcess, WeightPush
from pdr_graph.train.rollouts import Collect
from pdr_graph.train.run_folder import Figures
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.steps import StepSource

try:
    import torch
    from accelerate import Accelerator, PartialState
    from peft import PeftModel
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, IterableDataset
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer import add_fused_lm_head, disable_dropout_in_model
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None


def _arguments(settings: TrainSettings, folder: Path) -> TrainingArguments:
    """Return the arguments of RL.

    Raises:
        ConfigError: there are other processes than the settings say, or several GPUs for one.
    """
    optimiser = settings.optimiser
    processes = PartialState(cpu=uses_cpu()).num_processes
    if processes != settings.devices.processes:
        raise ConfigError(
            f"devices.processes is {settings.devices.processes}, and {processes} are running; "
            "start as many"
        )
    schedule: str = optimiser.schedule
    if schedule == "constant" and optimiser.warmup_updates:
        # The library's `constant` silently leaves out warm-up.
        schedule = "constant_with_warmup"
    arguments = TrainingArguments(
        **shared_arguments(settings, folder),
        max_steps=settings.steps * optimiser.updates_per_step,
        per_device_train_batch_size=optimiser.micro_batch_rows,
        gradient_accumulation_steps=settings.micro_batches,
        learning_rate=optimiser.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=optimiser.warmup_updates,
        weight_decay=optimiser.weight_decay,
        adam_beta2=optimiser.beta2,
        max_grad_norm=optimiser.max_grad_norm,
        save_steps=settings.save_every * optimiser.updates_per_step,
        # `_micro_batches` begins where the run is.
        ignore_data_skip=True,
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        # transformers would split batches over them, and each copy run the first one's forward.
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible to one process; start one process for each by "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one"
        )
    return arguments


class OperatorTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trains a model on the rollouts of the graph that it is used in."""

    def __init__(
        self,
        model: Any,  # Any: a transformers model, or one with an adapter
        tokenizer: Any,  # Any: transformers' tokenizer
        problems: Sequence[Problem],
        collect: Collect,
        settings: TrainSettings,
        folder: Path,
        *,
        push: WeightPush | None = None,
        on_update: OnUpdate | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Make a trainer; `train()` runs it.

        Args:
            model: In memory; of one with an adapter of peft's, only the adapter is trained.
            tokenizer: Its tokenizer.
            problems: Problems with gold answers.
            collect: Draws rollouts from the policy.
            settings: Of the run.
            folder: Of the run; checkpoints go there.
            push: How the policy gets new weights; None is for one that holds `model` itself.
            on_update: Receives the figures of every update.
            optimizer: None is AdamW as in the settings.

        Raises:
            ConfigError: the settings do not fit the problems, or the running processes.
        """
        arguments = _arguments(settings, folder)
        disable_dropout_in_model(model)
        adapted = isinstance(model, PeftModel)
        add_fused_lm_head(
            model.get_base_model() if adapted else model,
            temperature=settings.config.temperature,
            outputs=("log_probs", "entropy"),
        )
        if adapted and arguments.gradient_checkpointing:
            # Otherwise the input of the first layer has no gradient, and nothing would be
            # recomputed.
            model.enable_input_require_grads()
        super().__init__(
            model,
            arguments,
            processing_class=tokenizer,
            optimizers=(optimizer, None),
            # If it is set, transformers does not divide losses by the number of micro-batches.
            compute_loss_func=objective,
        )
        self.remove_callback(PrinterCallback)
        self.settings, self.folder = settings, folder
        self._on_update = on_update
        self._source = StepSource(
            problems,
            settings,
            collect,
            push or InProcess(),
            tokenizer.pad_token_id,
            self.accelerator,
        )
        self._update = UpdateSums(self.accelerator)
        self._batches: list[Batch] = []
        self._figures: Figures = {}
        self._resumed_from: Path | None = None
        self.add_callback(
            WholeCheckpoints(
                folder, settings.keep_checkpoints, self.accelerator, self._save_batches
            )
        )

    def train(self, resume_from_checkpoint: Path | None = None) -> Any:
        """Train to the last step; from a checkpoint, as if there had been no interruption.

        Raises:
            ConfigError: the checkpoint cannot be read, or the disk takes no further one.
        """
        if self.accelerator.is_main_process:
            sweep(self.folder)
        self.accelerator.wait_for_everyone()
        self._resumed_from = resume_from_checkpoint
        with writable(self.folder):
            return super().train(resume_from_checkpoint and str(resume_from_checkpoint))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the micro-batches from the current update on, drawn when they are asked for."""
        return DataLoader(_Stream(self._micro_batches), batch_size=None)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Return this micro-batch's part of the loss of its update."""
        self._update.begin()
        batch = Batch(**inputs)
        logprobs, entropy = score(model, batch)
        part = objective(logprobs, batch, self.settings.objective)
        self._update.add(batch, entropy, part)
        # Gradients are averaged over ranks, and parts of a loss are added.
        return part.loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand out the figures of an update."""
        if "loss" in logs:
            logs |= {**self._figures, **self._update.finish()}
            self._figures = {}
            if self._on_update is not None and self.accelerator.is_main_process:
                self._on_update(self.state.global_step, dict(logs))
        super().log(logs, start_time)

    def _micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of this rank, step after step."""
        step, done = divmod(self.state.global_step, self.settings.optimiser.updates_per_step)
        if done:  # resumed within a step
            assert self._resumed_from is not None
            self._batches = load_batches(self._batches_file(self._resumed_from))
        for number in range(step, self.settings.steps):
            if not done:
                self._batches, self._figures = self._source.draw(number, self.model, self._logprobs)
            for batch in self._batches[done * self.settings.micro_batches :]:
                yield batch.tensors()
            done = 0

    def _logprobs(self, batch: Batch) -> Tensor:
        """Return the log-probabilities of a batch without gradient, as the model is used."""
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        try:
            with torch.no_grad():
                return score(self.model_wrapped, batch, self.accelerator.autocast())[0]
        finally:
            self.model_wrapped.train(training)

    def _save_batches(self, checkpoint: Path) -> None:
        """Keep the step's batches in a checkpoint between two of its updates."""
        if self.state.global_step % self.settings.optimiser.updates_per_step:
            save_batches(self._batches, self._batches_file(checkpoint))

    def _batches_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"rows-{self.accelerator.process_index}.pt"


class _Stream(IterableDataset[Any]):  # type: ignore[misc]  # torch has no types here
    """What a generator yields, as the data of a loader."""

    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return self._items()


class UpdateSums:
    """Sums over the micro-batches of one update after another, then over the ranks."""

    _NAMES = ("tokens", "clipped", "entropy", "policy_loss", "likelihood_loss")

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: Tensor | None = None
        """None between two updates."""
        self._began = 0.0

    def begin(self) -> None:
        """Begin an update, unless one is under way."""
        if self._sums is None:
            self._sums = torch.zeros(len(self._NAMES), device=self._accelerator.device)
            self._began = perf_counter()

    def add(self, batch: Batch, entropy_B_T: Tensor, part: Objective) -> None:
        """Add a micro-batch."""
        assert self._sums is not None
        tokens, entropy = batch.mask_B_T.sum(), entropy_B_T[batch.mask_B_T].sum()
        sums = (tokens, part.clipped_tokens, entropy, part.policy_loss, part.likelihood_loss)
        self._sums += torch.stack([each.detach().float() for each in sums])

    def finish(self) -> Figures:
        """End the update and return its figures; called on every rank."""
        assert self._sums is not None
        seconds = perf_counter() - self._began
        totals = self._accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        sums = dict(zip(self._NAMES, totals, strict=True))
        tokens = sums["tokens"]
        return {
            "tokens/trained": tokens,
            "policy/clipped": sums["clipped"] / max(1.0, tokens),
            "policy/entropy": sums["entropy"] / max(1.0, tokens),
            "loss/policy": sums["policy_loss"],
            "loss/likelihood": sums["likelihood_loss"],
            "seconds/update": seconds,
            "tokens_per_second/trained": tokens / seconds,
        }

"""Stops a trainer where it can go on: after an update, with a checkpoint."""

from collections.abc import Callable
from typing import Any

from pdr_graph.errors import ConfigError

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

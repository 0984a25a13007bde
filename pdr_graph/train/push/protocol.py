"""What the trainer asks of every way to push weights."""

from typing import Protocol

from torch import nn

from pdr_graph.errors import PDRError


class PushError(PDRError, ConnectionError):
    """The policy did not take the new weights."""


class WeightPush(Protocol):
    """Brings the policy that draws up to the model that is trained."""

    @property
    def cause(self) -> str:
        """Half a sentence: what a drift after such a push most likely means, and what to do."""

    def push(self, model: nn.Module, version: int) -> None:
        """Make the policy draw by a model's weights from now on.

        Called on every rank, before the first rollouts and then whenever weights have changed.

        Args:
            model: The trained model, unwrapped.
            version: Number of weight updates before it; rollouts record it.

        Raises:
            PushError: the policy did not take them.
        """

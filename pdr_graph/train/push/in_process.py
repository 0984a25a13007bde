"""No push: the policy draws from the trained module itself."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class InProcess:
    """For a policy that holds the very module which is trained."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "the policy must hold the trained module itself and draw at the trainer's temperature "
            "from the whole distribution; a copy keeps its old weights"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Do nothing: the weights are there."""

"""How much of everything: the study's own sizes, and those that show in minutes that it works."""

from dataclasses import dataclass

HELD_OUT_SEED, TRAIN_SEED = 20_001, 10_001
"""Of the problems that are asked in the end, and in training; tuning used others."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of one study."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Each has a warm start of its own and the RL runs from it."""
    replication: tuple[int, ...] = (4, 5, 6, 7, 8)
    """Seeds that were planned when the others had been measured; tested by themselves."""
    ablation_seeds: tuple[int, ...] = (1,)
    steps: int = 120
    """RL steps of a main arm."""
    held_out: int = 500
    """Problems of every evaluation, one attempt of each strategy at each."""
    train_problems: int = 4000
    warm_updates: int = 1500

    @property
    def half(self) -> int:
        """Return the RL steps of an ablation, and of an arm before another goes on from it."""
        return self.steps // 2

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Return those of the plan, then those of the replication."""
        return self.seeds + self.replication


def quick() -> Scale:
    """Return sizes that take minutes and show nothing but that every part works."""
    return Scale(
        seeds=(1, 2),
        replication=(),
        ablation_seeds=(),
        steps=12,
        held_out=12,
        train_problems=64,
        warm_updates=300,
    )

"""How much of everything: the study's own sizes, and those that show in minutes that it works."""

from dataclasses import dataclass

HELD_OUT_SEED, TRAIN_SEED = 20_001, 10_001
"""Of the problems that are asked in the end, and in training; tuning used others."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of one study."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Each has a warm start of its own and the RL runs from it."""
    ablation_seeds: tuple[int, ...] = (1,)
    steps: int = 120
    """RL steps of a main arm."""
    ablation_steps: int = 60
    held_out: int = 500
    """Problems of every evaluation, one attempt of each strategy at each."""
    train_problems: int = 4000
    warm_updates: int = 1500


def quick() -> Scale:
    """Return sizes that take minutes and show nothing but that every part works."""
    return Scale(
        seeds=(1, 2),
        ablation_seeds=(),
        steps=12,
        ablation_steps=2,
        held_out=12,
        train_problems=64,
        warm_updates=300,
    )

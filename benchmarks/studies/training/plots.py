"""The plots of a study: accuracy by strategy, and how training went."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.studies.training.arms import MAIN, TITLES, WARM
from benchmarks.studies.training.pipeline import STRATEGIES, Pipeline
from benchmarks.studies.training.study import NAMES, PASS, Study
from pdr_graph.train.run_folder import METRICS, read_metrics

COLOURS = {WARM: "#8c8c8c", "rl": "#0072b2", "operator": "#d55e00", "continued": "#009e73"}
"""Told apart with any colour vision (Okabe and Ito)."""
_WINDOW = 10
"""Steps that a curve's point is the mean of."""


def draw_accuracy(study: Study, file: Path) -> None:
    """Draw the mean over seeds of every arm and strategy, each seed as a dot."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    columns = [*STRATEGIES, PASS]
    arms = [arm for arm in COLOURS if arm in study.models]
    width = 0.8 / max(1, len(arms))
    for number, arm in enumerate(arms):
        for place, column in enumerate(columns):
            estimate = study.estimate(arm, column)
            assert estimate is not None  # the arm was evaluated
            x = place + (number - (len(arms) - 1) / 2) * width
            label = TITLES[arm] if place == 0 else None
            axes.bar(x, 100 * estimate.mean, width * 0.9, color=COLOURS[arm], label=label)
            dots = [100 * value for value in estimate.by_seed]
            axes.plot([x] * len(dots), dots, "o", color="black", markersize=2.5)
    axes.set_xticks(range(len(columns)), [NAMES.get(each, each) for each in columns])
    axes.set_ylabel("right answers, %")
    axes.set_title("Held-out problems: mean of the seeds, each seed a dot")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def draw_training(pipeline: Pipeline, file: Path) -> None:
    """Draw the share of right rollouts in training, by role, each seed a line."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (roles, title) in zip(
        panels, ((("direct", "draft"), "attempts"), (("refine",), "refinements")), strict=True
    ):
        for arm in MAIN:
            offset = pipeline.scale.half if arm.after else 0
            for number, seed in enumerate(pipeline.scale.all_seeds):
                metrics = pipeline.training(seed, arm.name) / METRICS
                steps, shares = _curve(metrics, roles)
                if len(steps):
                    label = arm.title if number == 0 else None
                    axes.plot(steps + offset, 100 * shares, color=COLOURS[arm.name], label=label)
        axes.set_title(f"Training: right {title}, mean of {_WINDOW} steps")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right, %")
    if panels[0].lines:
        panels[0].legend(frameon=False)
    _save(figure, file)


def _curve(file: Path, roles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    steps, shares = [], []
    for line in read_metrics(file):
        rewards = [line[f"reward/{role}"] for role in roles if f"reward/{role}" in line]
        if rewards:
            steps.append(line["step"])
            shares.append((np.mean(rewards) + 1) / 2)
    kernel = np.ones(_WINDOW) / _WINDOW
    if len(shares) < _WINDOW:
        return np.array([]), np.array([])
    return np.array(steps[_WINDOW - 1 :]), np.convolve(shares, kernel, mode="valid")


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)

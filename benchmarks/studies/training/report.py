"""The table of a study, in Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.studies.training.arms import ABLATIONS, MAIN, TITLES, WARM
from benchmarks.studies.training.commands import COSTS
from benchmarks.studies.training.contrasts import EFFECT, PRIMARY, SECONDARY, Contrast
from benchmarks.studies.training.intervals import Estimated, differences, estimated
from benchmarks.studies.training.measured import Measured, Values, measured, reading
from benchmarks.studies.training.pipeline import STRATEGIES, Pipeline
from pdr_graph.eval.pairs import holm
from pdr_graph.train.metrics import METRICS, read_metrics

NAMES = {
    "long_cot": "long CoT",
    "sr": "SR, 4 calls",
    "pdr_1": "PDR, 1 round",
    "pdr_2": "PDR, 2 rounds",
    "majority": "majority@4",
}
PASS = "pass@4"


@dataclass(frozen=True, slots=True)
class Study:
    """All evaluations that are there, by arm and seed."""

    models: Mapping[str, Mapping[int, Measured]]

    def values(self, arm: str, strategy: str) -> dict[int, Values]:
        """Return accuracy on each problem, by seed."""
        return {
            seed: each.any_draft_P("majority") if strategy == PASS else each.accuracy_P(strategy)
            for seed, each in self.models.get(arm, {}).items()
        }

    def estimate(self, arm: str, strategy: str) -> Estimated | None:
        """Return the accuracy of an arm; None where it was not evaluated."""
        values = self.values(arm, strategy)
        return estimated(np.stack(list(values.values()))) if values else None

    def contrast(self, contrast: Contrast) -> Estimated | None:
        """Return the difference; None where a side is missing."""
        first, second = self.values(*contrast.reference), self.values(*contrast.other)
        return estimated(differences(first, second)) if first.keys() & second.keys() else None


def study_of(pipeline: Pipeline) -> Study:
    """Read what is there."""
    models: dict[str, dict[int, Measured]] = {}
    for name in (WARM, *(arm.name for arm in (*MAIN, *ABLATIONS))):
        for seed in pipeline.scale.seeds:
            found = measured(pipeline.evaluation(seed, name))
            if found is not None and (pipeline.evaluation(seed, name) / "done").exists():
                models.setdefault(name, {})[seed] = found
    return Study(models)


def page(pipeline: Pipeline, study: Study) -> str:
    """Lay everything out."""
    scale = pipeline.scale
    main = [name for name in (WARM, *(arm.name for arm in MAIN)) if name in study.models]
    parts = [
        "# What training gains, measured\n",
        f"Seeds {', '.join(map(str, scale.seeds))}; {scale.steps} steps of 8 problems with 15 rows "
        f"each; {scale.held_out} held-out problems.\n",
        "## Accuracy, %\n",
        _accuracy(study, main),
        "## Planned contrasts, points\n",
        _contrasts(study),
        "## How a workspace is read (PDR, 1 round)\n",
        _reading(study, [name for name in TITLES if name in study.models]),
    ]
    seeds = scale.ablation_seeds
    varied = [arm.name for arm in ABLATIONS if arm.name in study.models]
    if varied:
        parts += [
            f"## Ablations: seeds {', '.join(map(str, seeds))}, {scale.ablation_steps} steps\n",
            _accuracy(study, varied),
        ]
    return "\n".join([*parts, "## Cost\n", _cost(pipeline)])


def _accuracy(study: Study, arms: Sequence[str]) -> str:
    columns = [*STRATEGIES, PASS]
    rows = []
    for arm in arms:
        cells = [study.estimate(arm, column) for column in columns]
        shown = [f"{100 * c.mean:.1f} ({_by_seed(c)})" for c in cells if c is not None]
        rows.append([TITLES[arm], *shown])
    heads = ["after (each seed in brackets)", *(NAMES.get(each, each) for each in columns)]
    return _table(heads, rows)


def _by_seed(estimate: Estimated) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in estimate.by_seed)


def _contrasts(study: Study) -> str:
    found = [(each, study.contrast(each)) for each in (PRIMARY, *SECONDARY)]
    done = [(each, estimate) for each, estimate in found if estimate is not None]
    corrected = holm([estimate.p_value for each, estimate in done if each is not PRIMARY])
    p_values = iter(corrected)
    rows = []
    for each, estimate in done:
        p_value = estimate.p_value if each is PRIMARY else next(p_values)
        clear = estimate.low > 0 or estimate.high < 0
        rows.append(
            [
                f"**{each.question}**" if each is PRIMARY else each.question,
                f"{_title(each.other)} − {_title(each.reference)}",
                f"{100 * estimate.mean:+.1f} ({100 * estimate.low:+.1f} to "
                f"{100 * estimate.high:+.1f})",
                ", ".join(f"{100 * value:+.1f}" for value in estimate.by_seed),
                f"{p_value:.3g}",
                "yes" if clear and abs(estimate.mean) >= EFFECT else "no",
            ]
        )
    heads = ["question", "difference", "points (95 % interval)", "by seed", "p", "effect"]
    return _table(heads, rows)


def _title(side: tuple[str, str]) -> str:
    return f"{TITLES[side[0]]}: {NAMES[side[1]]}"


def _reading(study: Study, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        samples = [s for each in study.models[arm].values() for s in each.by_strategy["pdr_1"]]
        read = reading(samples)
        shares = (read.held, read.right_if_held, read.blind_if_held, read.right_if_not)
        rows.append([TITLES[arm], *(f"{100 * share:.1f}" for share in shares)])
    return _table(
        [
            "after",
            "a draft is right, %",
            "answer right then, %",
            "any draft would be, %",
            "answer right otherwise, %",
        ],
        rows,
    )


def _cost(pipeline: Pipeline) -> str:
    rows = []
    spent: dict[str, list[float]] = {}
    file = pipeline.folder / COSTS
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        cost = json.loads(line)
        spent.setdefault(cost["what"], []).append(cost["cpu_s"])
    for what, seconds in spent.items():
        rows.append([what, str(len(seconds)), f"{sum(seconds) / 60:.1f}"])
    total = sum(map(sum, spent.values())) / 60
    table = _table(["command", "times", "CPU minutes"], [*rows, ["all", "", f"{total:.1f}"]])
    return f"{table}\n{_sampled(pipeline)}\n"


def _sampled(pipeline: Pipeline) -> str:
    lines = []
    for arm in MAIN:
        sampled = [
            sum(line.get("tokens/sampled", 0.0) for line in read_metrics(folder / METRICS))
            for folder in (pipeline.training(seed, arm.name) for seed in pipeline.scale.seeds)
            if (folder / METRICS).exists()
        ]
        if sampled:
            lines.append(f"{arm.title} {np.mean(sampled):,.0f}")
    return (
        f"Sampled tokens of a training run, mean over seeds: {'; '.join(lines)}." if lines else ""
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_page(pipeline: Pipeline, study: Study) -> Path:
    """Write the page of a study."""
    file = pipeline.folder / "table.md"
    file.write_text(page(pipeline, study), "utf-8")
    return file

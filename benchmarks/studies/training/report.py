"""The tables of a study, in Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.training.arms import ABLATIONS, MAIN, TITLES, WARM
from benchmarks.studies.training.commands import COSTS
from benchmarks.studies.training.contrasts import EFFECT, LEVEL, PRIMARY, SECONDARY, Side
from benchmarks.studies.training.intervals import Estimated
from benchmarks.studies.training.losses import outcomes
from benchmarks.studies.training.measured import reading
from benchmarks.studies.training.pipeline import STRATEGIES, Pipeline
from benchmarks.studies.training.scale import Scale
from benchmarks.studies.training.study import NAMES, PASS, Study
from pdr_graph.eval.decomposition import Outcome
from pdr_graph.eval.stats import holm
from pdr_graph.train.run_folder import METRICS, read_metrics


def page(pipeline: Pipeline, study: Study) -> str:
    """Lay everything out."""
    scale = pipeline.scale
    main = [name for name in (WARM, *(arm.name for arm in MAIN)) if name in study.models]
    known = [name for name in TITLES if name in study.models]
    parts = [
        "# What training gains, measured\n",
        f"Seeds {_listed(study.seeds)}; {scale.steps} steps of 8 problems with 15 rows each; "
        f"{scale.held_out} held-out problems.\n",
        "## Accuracy, %\n",
        _accuracy(study, main),
        *_tested(scale, study),
        "## How a workspace is read (PDR, 1 round)\n",
        _reading(study, known),
        "## Where samples of PDR end, %\n",
        _losses(study, known),
    ]
    varied = [arm.name for arm in ABLATIONS if arm.name in study.models]
    if varied:
        parts += [
            f"## Ablations: seeds {_listed(scale.ablation_seeds)}, {scale.half} steps\n",
            _accuracy(study, varied),
            _variants(study),
        ]
    return "\n".join([*parts, "## Cost\n", _cost(pipeline)])


def _tested(scale: Scale, study: Study) -> list[str]:
    parts = [
        f"## Planned contrasts: seeds {_listed(scale.seeds)}, points\n",
        _contrasts(study.of(scale.seeds)),
    ]
    if study.of(scale.replication).models:
        parts += [
            f"## The replication alone: seeds {_listed(scale.replication)}, points\n",
            _contrasts(study.of(scale.replication)),
            "## All seeds, a description: the first had been seen when the others were planned\n",
            _contrasts(study),
        ]
    return parts


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _accuracy(study: Study, arms: Sequence[str]) -> str:
    """Return means with intervals, and the seeds by themselves below."""
    columns = [*STRATEGIES, PASS]
    means, seeds = [], []
    for arm in arms:
        found = [each for each in (study.estimate(arm, c) for c in columns) if each is not None]
        means.append([TITLES[arm], *(_percent(each) for each in found)])
        seeds.append([TITLES[arm], *(_by_seed(each) for each in found)])
    names = [NAMES.get(each, each) for each in columns]
    return "\n".join([_table(["after", *names], means), _table(["by seed", *names], seeds)])


def _percent(estimate: Estimated) -> str:
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return f"{100 * estimate.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _by_seed(estimate: Estimated) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in estimate.by_seed)


def _contrasts(study: Study) -> str:
    planned = (PRIMARY, *SECONDARY)
    found = [(each, study.difference(each.reference, each.other)) for each in planned]
    done = [(each, estimate) for each, estimate in found if estimate is not None]
    corrected = holm([estimate.p_value for each, estimate in done if each is not PRIMARY])
    p_values = iter(corrected)
    rows = []
    for each, estimate in done:
        p_value = estimate.p_value if each is PRIMARY else next(p_values)
        rows.append(
            [
                f"**{each.question}**" if each is PRIMARY else each.question,
                f"{_title(each.other)} − {_title(each.reference)}",
                _points(estimate),
                ", ".join(f"{100 * value:+.1f}" for value in estimate.by_seed),
                f"{p_value:.3g}",
                "yes" if p_value < LEVEL and abs(estimate.mean) >= EFFECT else "no",
            ]
        )
    heads = ["question", "difference", "points (95 % interval)", "by seed", "p", "effect"]
    return _table(heads, rows)


def _variants(study: Study) -> str:
    """Return what each ablation changes, paired by problem; nothing is said of other seeds."""
    strategies = ("long_cot", "pdr_1", "pdr_2")
    rows = []
    for arm in ABLATIONS:
        if arm.against is not None:
            found = [study.difference((arm.against, each), (arm.name, each)) for each in strategies]
            shown = [_points(each) for each in found if each is not None]
            rows += [[arm.title, TITLES[arm.against], *shown]] if shown else []
    return _table(["variant", "minus", *(f"{NAMES[each]}, points" for each in strategies)], rows)


def _points(estimate: Estimated) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _title(side: Side) -> str:
    return f"{TITLES[side[0]]}: {NAMES[side[1]]}"


def _reading(study: Study, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        read = reading(study.samples(arm, "pdr_1"))
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


def _losses(study: Study, arms: Sequence[str]) -> str:
    """Return the classes of loss as columns, each row summing to 100 %."""
    counted = {
        _title((arm, strategy)): outcomes(study.samples(arm, strategy))
        for arm in arms
        for strategy in ("pdr_1", "pdr_2")
    }
    classes = [each for each in Outcome if any(counts[each] for counts in counted.values())]
    rows = [
        [name, *(f"{100 * counts[each] / counts.total():.1f}" for each in classes)]
        for name, counts in counted.items()
    ]
    heads = ["after, used by", *(each.value for each in classes)]
    return _table(heads, rows)


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
            for folder in (pipeline.training(seed, arm.name) for seed in pipeline.scale.all_seeds)
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

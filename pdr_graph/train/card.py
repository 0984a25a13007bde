"""The model card beside every trained model: what it was made of, how, and how to use it.

The format is that of the Hugging Face Hub: https://huggingface.co/docs/hub/model-cards.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdr_graph.train.metrics import FIXED, METRICS, Line, Stage, read_metrics
from pdr_graph.train.model_shape import CONFIG
from pdr_graph.train.run_folder import TrainFolder, read_header
from pdr_graph.train.settings import TrainSettings

_PAPER = "2510.01123"


def model_card(settings: TrainSettings, folder: TrainFolder, place: Path) -> str:
    """Return the README.md of a trained model.

    Args:
        settings: Of the run.
        folder: Of the run, with its header and its metrics.
        place: Where the model goes.
    """
    header = read_header(folder.path) or {}
    lines = list(read_metrics(folder.path / METRICS))
    alone = place != folder.model or not settings.steps  # a warm start's own model
    stages: tuple[Stage, ...] = ("warm_start",) if alone else ("warm_start", "rl")
    base = _base_model(settings.model)
    adapter = settings.lora is not None
    front = {
        "base_model": base,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pdr-graph", f"arxiv:{_PAPER}", *(["lora"] if adapter else [])],
    }
    parts = [
        "---\n"
        + "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())
        + "---",
        f"# {folder.path.resolve().name}",
        f"{'A LoRA adapter for' if adapter else 'A model trained from'} `{base}` by "
        f"[pdr-graph](https://github.com/pdr-graph/pdr-graph), which uses models for "
        f"Parallel-Distill-Refine reasoning ([arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})).",
        "## Method",
        *_method(settings, stages),
        "## Data",
        _data(settings, header, stages),
        "## Metrics",
        _metrics([line for line in lines if line["stage"] in stages]),
        "## Use",
        _use(settings),
        "## Settings",
        f"```json\n{json.dumps(header.get('settings', {}), indent=2)}\n```",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in header.get("versions", {}).items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _base_model(folder: Path) -> str:
    """Return the name of the model that training started from, as far as its folder tells."""
    try:
        named = json.loads((folder / CONFIG).read_text("utf-8")).get("_name_or_path", "")
    except (OSError, ValueError):
        named = ""
    return str(named) if named and not Path(named).is_absolute() else folder.resolve().name


def _method(settings: TrainSettings, stages: Sequence[Stage]) -> list[str]:
    said = []
    if settings.warm_start is not None:
        said.append(
            f"Supervised training on the replies of recorded runs, {settings.warm_start.epochs:g} "
            "epochs; only the tokens of the replies are learnt."
        )
    if "rl" in stages:
        rollouts, loss = settings.rollouts, settings.objective
        said.append(
            f"Reinforcement learning, number of steps: {settings.steps}. A step has "
            f"{rollouts.problems_per_step} problems of {rollouts.rows_per_problem} rows. A "
            f"share of {rollouts.operator_fraction:g} of the problems runs PDR with "
            f"{rollouts.num_drafts} drafts (plan `{rollouts.operator_plan}`), the others run long "
            "CoT. Each call is compared with the calls of its role on its problem. The loss is "
            f"CISPO (ε_max {loss.epsilon_max:g}) plus {loss.alpha:g} times the likelihood of "
            "correct calls; the reward is 1 for a right answer, else −1."
        )
    return said


def _data(settings: TrainSettings, header: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    rows = []
    data = header.get("data")
    if "rl" in stages and data:
        rows.append(
            f"- Problems: `{data['source']}`, {data['num_problems']} problems, SHA-256 "
            f"`{data['sha256']}`."
        )
    if settings.warm_start is not None:
        checksum = (header.get("warm_start") or {}).get("sha256", "unknown")
        rows.append(f"- Warm start: `{settings.warm_start.data}`, SHA-256 `{checksum}`.")
    return "\n".join(rows)


def _metrics(lines: Sequence[Line]) -> str:
    """Return a table of each figure's first and last value."""
    rows = ["| stage | figure | first | last |", "|---|---|---|---|"]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        for name in dict.fromkeys(name for line in own for name in line):
            if name not in FIXED and not name.startswith(("seconds/", "tokens_per_second/")):
                values = [line[name] for line in own if name in line]
                rows.append(f"| {stage} | {name} | {values[0]:.4g} | {values[-1]:.4g} |")
    return "\n".join(rows)


def _use(settings: TrainSettings) -> str:
    config, lora = settings.config, settings.lora
    strategy = (
        f"--widths {settings.rollouts.num_drafts} --kappa {config.kappa} "
        f"--max-tokens {config.max_tokens}"
    )
    serve = "vllm serve FOLDER --served-model-name trained"
    if lora is not None:
        serve = (
            f"vllm serve {settings.model} --enable-lora --max-lora-rank {lora.rank} "
            "--lora-modules trained=FOLDER"
        )
    return (
        "`FOLDER` is this folder. In one process, for small models:\n\n"
        f"```console\n$ pdr-graph solve --model FOLDER {strategy} 'PROBLEM'\n```\n\n"
        "Behind vLLM:\n\n"
        f"```console\n$ {serve}\n"
        f"$ pdr-graph solve --base-url http://127.0.0.1:8000/v1 --model trained {strategy} "
        "'PROBLEM'\n```"
    )

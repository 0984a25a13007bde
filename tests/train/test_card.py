"""The card beside a trained model says what it is made of, and how to use it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.run_folder import TrainFolder, header_of
from pdr_graph.train.session import model_card
from pdr_graph.train.settings import TrainSettings

LINES = [
    {"update": 1, "step": 1, "stage": "warm_start", "seconds": 1.0, "loss": 3.0},
    {"update": 1, "step": 1, "stage": "rl", "seconds": 2.0, "reward/run": -0.5, "loss": 1.0},
    {"update": 2, "step": 2, "stage": "rl", "seconds": 3.0, "reward/run": 0.25, "loss": 0.5},
]


def settings_of(folder: Path, **fields) -> TrainSettings:
    """Return settings of a run from a model of the Hub."""
    model, rows = folder / "base", folder / "rows.jsonl"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"_name_or_path": "ORG/small"}))
    rows.write_text("{}\n")
    warm = {"warm_start": {"data": rows}} if fields.pop("warm", False) else {}
    return TrainSettings(
        model=model, strategy={"max_tokens": 64, "kappa": 128}, **{"steps": 2, **warm, **fields}
    )


def card_of(folder: Path, settings: TrainSettings, *, warm: bool = False) -> str:
    """Return the card of a run's model, or of its warm start's."""
    run = TrainFolder(folder / "my-run")
    with run.claimed(header_of(settings, None)):
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
        return model_card(settings, run, run.warm_start / "model" if warm else run.model)


def front_of(card: str) -> dict[str, object]:
    """Return the front matter, whose values are JSON and so YAML."""
    _, front, _ = card.split("---\n", 2)
    return {
        name: json.loads(value) for name, value in (x.split(": ", 1) for x in front.splitlines())
    }


def test_a_card_has_the_metadata_of_the_hub(tmp_path):
    """Base model, library and tags; an adapter is one of its base."""
    whole = front_of(card_of(tmp_path, settings_of(tmp_path)))
    assert whole == {
        "base_model": "ORG/small",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pdr-graph", "arxiv:2510.01123"],
    }


def test_the_hub_reads_it(tmp_path):
    """By the library that people push models with."""
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, of the extra train")
    card = hub.ModelCard(card_of(tmp_path, settings_of(tmp_path, lora={"rank": 4})))
    assert card.data.base_model == "ORG/small"
    assert card.data.library_name == "peft"
    assert card.data.tags == ["pdr-graph", "arxiv:2510.01123", "lora"]
    assert card.text.strip().startswith("# my-run")


def test_a_card_has_settings_data_method_metrics_and_versions(tmp_path):
    """The figures of both stages, each with its first and its last value."""
    settings = settings_of(tmp_path, warm=True)
    card = card_of(tmp_path, settings)
    assert "| warm_start | loss | 3 | 3 |" in card
    assert "| rl | reward/run | -0.5 | 0.25 |" in card
    assert "steps: 2. A step has 8 problems of 8 rows. A share of 0.5 of the problems runs" in card
    assert "CISPO (ε_max 5) plus 0.1 times the likelihood" in card
    assert '"learning_rate": 1e-06' in card
    assert "- Warm start: `" in card
    assert "pdr-graph " in card.rsplit("## Versions", 1)[1]


def test_the_card_of_a_warm_start_says_nothing_of_what_follows(tmp_path):
    """Its model is not the run's."""
    card = card_of(tmp_path, settings_of(tmp_path, warm=True), warm=True)
    assert "| rl |" not in card
    assert "Reinforcement learning" not in card
    assert "| warm_start | loss | 3 | 3 |" in card


def test_a_card_says_how_the_model_is_used(tmp_path):
    """In this process, and behind vLLM; an adapter is served beside its base."""
    settings = settings_of(tmp_path)
    solve = "--widths 4 --kappa 128 --max-tokens 64 'PROBLEM'"
    card = card_of(tmp_path, settings)
    assert f"$ pdr-graph solve --model FOLDER {solve}\n" in card
    assert "$ vllm serve FOLDER --served-model-name trained\n" in card
    assert f"$ pdr-graph solve --base-url http://127.0.0.1:8000/v1 --model trained {solve}" in card
    adapted = card_of(tmp_path / "other", settings_of(tmp_path, lora={"rank": 4}))
    assert (
        f"$ vllm serve {settings.model} --enable-lora --max-lora-rank 4 --lora-modules" in adapted
    )

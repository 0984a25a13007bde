r"""A run small enough for tests: a tiny model that boxes a random digit, problems asking for one.

So some rollouts are right and some are not, groups differ, and weights move. Import it after
`pytest.importorskip("torch")`.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.policy.tiny_model import tiny_model, tiny_tokenizer

SETTINGS = """
model = "{model}"
data = "{data}"
steps = 4
save_every = 1

[strategy]
max_tokens = 12
solution_tokens = 16
kappa = 64
draft_prompt = "$problem"
improve_prompt = "$problem $workspace"

[rollouts]
problems_per_step = 4
rows_per_problem = 6
num_drafts = 2
record = true

[optimiser]
updates_per_step = 2
micro_batch_rows = 4
learning_rate = 1e-3
gradient_checkpointing = false
"""

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Toy:
    """Files of a run."""

    folder: Path
    model: Path
    data: Path
    config: Path
    supervised: Path
    """Rows of a warm start."""


def write_toy(folder: Path) -> Toy:
    """Write model, problems, settings and supervised rows."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data, config = folder / "model", folder / "problems.jsonl", folder / "toy.toml"
    questions = [f"{index}+1=" for index in range(10)]
    rows = [
        {"id": f"q{index}", "problem": text, "answer": str(index % 3)}
        for index, text in enumerate(questions)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(SETTINGS.format(model=model, data=data))
    supervised = folder / "supervised.jsonl"
    supervised.write_text("".join(json.dumps(row) + "\n" for row in _conversations(questions)))
    _write_guesser(model, questions)
    return Toy(folder, model, data, config, supervised)


def _conversations(questions: list[str]) -> list[dict[str, object]]:
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": f"\\boxed{{{index % 3}}}"}],
        }
        for index, question in enumerate(questions)
    ]


def _write_guesser(folder: Path, questions: list[str]) -> None:
    """Teach a model the form of an answer, with any digit, at the end of any prompt."""
    tokenizer, model = tiny_tokenizer(), tiny_model(**SHAPE)
    rng = random.Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(40):
        texts = []
        for _ in range(24):
            before = rng.choice(questions) + rng.choice(["", f" {rng.choice(questions)}"])
            digit = rng.choice("012")
            texts.append(f"<user>{before}<assistant>\\boxed{{{digit}}}<end>")
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        asked = (batch["input_ids"] == tokenizer.convert_tokens_to_ids("<assistant>")).cumsum(1) > 0
        labels = batch["input_ids"].masked_fill(~asked | (batch["attention_mask"] == 0), -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)[
            "loss"
        ].backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

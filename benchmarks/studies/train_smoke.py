r"""Does training raise the reward? A tiny model on a task that no constant answer solves.

    python -m benchmarks.studies.train_smoke            # three seeds, minutes on two cores

The task: three different digits, and the largest of them is the answer, boxed. A constant answer
is right for 3 problems of 10 at most (9 is the largest that often). A Qwen2 from scratch with a
token for each character is taught the form of an answer by a warm start whose answers are any of
the three digits, so that it is right for a third of the problems; RL, half long CoT and half one
PDR round (`pdr-graph train`, its transformers policy), has to do the rest. Printed is the mean
reward of the runs in the first and in the last tenth of the steps, with the interval over seeds of
the rise. It exits with 1 unless the reward rises for certain.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, logging

from pdr_graph.cli.train import first_and_last
from pdr_graph.train.run_folder import METRICS, read_metrics

SEEDS = 3
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for 95 %, two-sided, by the number of seeds."""

SETTINGS = {
    "steps": 60,
    "save_every": 20,
    "strategy": {
        "max_tokens": 12,
        "solution_tokens": 16,
        "kappa": 64,
        "draft_prompt": "$problem",
        "improve_prompt": "$problem\n$workspace",
    },
    "rollouts": {"problems_per_step": 16, "rows_per_problem": 8, "num_drafts": 2},
    "optimiser": {
        "micro_batch_rows": 128,
        "learning_rate": 5e-4,
        "gradient_checkpointing": False,
    },
    "drift": {"every": 10},
    "warm_start": {
        "epochs": 3,
        "batch_rows": 32,
        "micro_batch_rows": 32,
        "learning_rate": 3e-3,
        "save_every": 1000,
    },
}

SPECIAL = ("<pad>", "<end>", "<unknown>", "<user>", "<assistant>")
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzA\\{}:\n "
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{{ '<end>' if message['role'] == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_model(folder: Path, seed: int) -> None:
    """Write a model with random weights, and a tokenizer with a token for each character."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    whole.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path, seed: int) -> None:
    """Write every problem, and what the warm start is taught: the form, and any of the digits."""
    rng = random.Random(f"train-smoke:{seed}")
    triples = [f"{a}{b}{c}" for a in range(10) for b in range(10) for c in range(10)]
    triples = [triple for triple in triples if len(set(triple)) == 3]
    problems = [{"id": each, "problem": each, "answer": max(each)} for each in triples]
    _write(folder / "problems.jsonl", problems)
    rows = []
    for _ in range(2400):
        triple = rng.choice(triples)
        workspace = "\n\n".join(
            f"Attempt {number}:\n\\boxed{{{rng.choice(triple)}}}" for number in (1, 2)
        )
        prompt = rng.choice([triple, f"{triple}\n{workspace}"])
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [
                    {"role": "assistant", "content": f"\\boxed{{{rng.choice(triple)}}}"}
                ],
            }
        )
    _write(folder / "supervised.jsonl", rows)


def _write(file: Path, rows: Sequence[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def as_toml(values: dict[str, object]) -> str:
    """Return settings as TOML; strings are written as JSON has them, which TOML reads as well."""
    plain = [f"{name} = {json.dumps(v)}" for name, v in values.items() if not isinstance(v, dict)]
    tables = [
        f"\n[{name}]\n" + "\n".join(f"{key} = {json.dumps(v)}" for key, v in table.items())
        for name, table in values.items()
        if isinstance(table, dict)
    ]
    return "\n".join([*plain, *tables]) + "\n"


def train(folder: Path, seed: int) -> tuple[float, float]:
    """Train with one seed, or go on; returns the mean reward at the beginning and at the end."""
    if not (folder / "smoke.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model", seed)
        write_data(folder, seed)
        (folder / "smoke.toml").write_text(as_toml(SETTINGS), "utf-8")
    words = ["train", "--config", folder / "smoke.toml", "--model", folder / "model"]
    words += ["--data", folder / "problems.jsonl", "--warm-start", folder / "supervised.jsonl"]
    words += ["--out", folder / "run", "--seed", str(seed)]
    command = [sys.executable, "-m", "pdr_graph.cli", *map(str, words)]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code:
        sys.exit(code)  # it said why, and that the same command goes on
    lines = [line for line in read_metrics(folder / "run" / METRICS) if line["stage"] == "rl"]
    first, last = first_and_last(lines)
    return first["reward/run"], last["reward/run"]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval over seeds, by Student's t."""
    mean = statistics.fmean(values)
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Train with each seed, print the rewards, and tell whether they rose."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, choices=sorted(T_95), default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/train_smoke"))
    parser.add_argument("--again", action="store_true", help="begin anew where there is a run")
    asked = parser.parse_args()
    logging.disable_progress_bar()
    if asked.again:
        shutil.rmtree(asked.out, ignore_errors=True)
    rises = []
    for seed in range(asked.seeds):
        first, last = train(asked.out / f"seed{seed}", seed)
        rises.append(last - first)
        say(f"seed {seed}: reward {first:+.2f} at first, {last:+.2f} at last")
    mean, low, high = interval(rises)
    say(f"the reward rises by {mean:.2f} (95 % interval over seeds {low:.2f} to {high:.2f})")
    if low <= 0:
        say("the reward does not rise for certain")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

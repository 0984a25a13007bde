"""The warm start: supervised training from scratch on fresh demonstrations.

The rows of an update are a function of its number, and the state is kept every so many updates, so
that a run that was killed goes on and ends the same.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from benchmarks.studies.training.commands import say
from benchmarks.studies.training.demos import Demonstration, Habits, demonstration
from benchmarks.studies.training.model import (
    Shape,
    make_model,
    make_tokenizer,
    save,
)
from benchmarks.studies.training.task import Size, questions

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How a model is warmed up."""

    updates: int = 1200
    careful_share: float = 0.6
    """Of the updates, the first, whose demonstrations always choose the right candidate; the rest
    are as `Habits` says."""
    rows: int = 64
    """Demonstrations of an update."""
    learning_rate: float = 3e-3
    """At its peak; it falls linearly to a twentieth."""
    warmup_updates: int = 50
    save_every: int = 250
    """Updates after which the state is kept."""


def warm_start(
    folder: Path,
    seed: int,
    curriculum: Curriculum,
    *,
    size: Size,
    shape: Shape,
    habits: Habits,
    tell: Callable[[str], None],
) -> None:
    """Make `folder`, a model that was warmed up; nothing is done where it is there."""
    if folder.exists():
        return
    tokenizer = make_tokenizer()
    model = make_model(shape, seed, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    state_file = folder.with_name(f"{folder.name}-state.pt")
    careful = replace(habits, reading=0.75, heedful=1.0, repeating=0.0)
    for update in range(_restore(state_file, model, optimizer), curriculum.updates):
        early = update < curriculum.careful_share * curriculum.updates
        rng = random.Random(f"warm-start:{seed}:{update}")
        drawn = islice(questions(rng.getrandbits(62), size), curriculum.rows)
        demos = [demonstration(each, careful if early else habits, rng) for each in drawn]
        ids_B_T, labels_B_T = _rows(demos, tokenizer)
        for group in optimizer.param_groups:
            group["lr"] = _rate(update, curriculum)
        # Padding is on the right, where causal attention does not look.
        loss = model(input_ids=ids_B_T, labels=labels_B_T, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (update + 1) % curriculum.save_every == 0:
            tell(f"warm start of seed {seed}: update {update + 1}, loss {loss.item():.3f}")
            _keep(state_file, model, optimizer, update + 1)
    # Written beside its place: a folder is there whole or not at all.
    written = folder.with_name(f"{folder.name}-unfinished")
    save(written, model, tokenizer)
    written.rename(folder)
    state_file.unlink(missing_ok=True)


def _rate(update: int, curriculum: Curriculum) -> float:
    rising = min(1.0, (update + 1) / curriculum.warmup_updates)
    return curriculum.learning_rate * rising * max(0.05, 1 - update / curriculum.updates)


def _rows(
    demos: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, `[B, T]` each; prompts are learnt too, as in pretraining."""
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": each.prompt},
                {"role": "assistant", "content": each.answer},
            ],
            tokenize=False,
        )
        for each in demos
    ]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    length = max(map(len, rows))
    ids_B_T = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels_B_T = torch.full((len(rows), length), _IGNORED)
    for index, row in enumerate(rows):
        ids_B_T[index, : len(row)] = labels_B_T[index, : len(row)] = torch.tensor(row)
    return ids_B_T, labels_B_T


def _keep(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, update: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".tmp")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "update": update}
    torch.save(state, written)
    written.replace(file)


def _restore(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not file.exists():
        return 0
    state = torch.load(file)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["update"])


def main(arguments: list[str] | None = None) -> None:
    """Warm one model up."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.training.supervised", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="the model's")
    parser.add_argument("--seed", type=int, required=True, help="of its weights and its data")
    parser.add_argument("--updates", type=int, default=Curriculum().updates, help="%(default)s")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warm_start(
        asked.folder,
        asked.seed,
        Curriculum(updates=asked.updates),
        size=Size(),
        shape=Shape(),
        habits=Habits(),
        tell=say,
    )


if __name__ == "__main__":
    main()

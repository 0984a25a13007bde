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


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How a model is warmed up."""

    updates: int = 1500
    careful_share: float = 0.75
    """Of the updates, the first, whose demonstrations always choose the right candidate; the rest
    are as `Habits` says."""
    rows: int = 48
    """Demonstrations of an update."""
    matrix_rate: float = 0.02
    """Peak learning rate of Muon, for the matrices; it learns in a third of AdamW's updates."""
    rate: float = 3e-3
    """Peak learning rate of AdamW, for embeddings and norms; both fall linearly to a twentieth."""
    warmup_updates: int = 50
    prompt_weight: float = 0.2
    """Of a workspace's token in the loss, an answer's being 1: from it checks are learnt."""
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
    optimizers = _optimizers(model, curriculum)
    state_file = folder.with_name(f"{folder.name}-state.pt")
    careful = replace(habits, reading=0.7, heedful=1.0, repeating=0.0)
    for update in range(_restore(state_file, model, optimizers), curriculum.updates):
        early = update < curriculum.careful_share * curriculum.updates
        rng = random.Random(f"warm-start:{seed}:{update}")
        drawn = islice(questions(rng.getrandbits(62), size), curriculum.rows)
        demos = [demonstration(each, careful if early else habits, rng) for each in drawn]
        share = _share(update, curriculum)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
        loss = _loss(model, *_rows(demos, tokenizer, curriculum.prompt_weight))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        if (update + 1) % curriculum.save_every == 0:
            tell(f"warm start of seed {seed}: update {update + 1}, loss {loss.item():.3f}")
            _keep(state_file, model, optimizers, update + 1)
    # Written beside its place: a folder is there whole or not at all.
    written = folder.with_name(f"{folder.name}-unfinished")
    save(written, model, tokenizer)
    written.rename(folder)
    state_file.unlink(missing_ok=True)


def _optimizers(model: nn.Module, curriculum: Curriculum) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
    muon = torch.optim.Muon(matrices, lr=curriculum.matrix_rate, weight_decay=0.0)
    adamw = torch.optim.AdamW(others, lr=curriculum.rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adamw]


def _share(update: int, curriculum: Curriculum) -> float:
    """Return the share of its peak that a learning rate has."""
    rising = min(1.0, (update + 1) / curriculum.warmup_updates)
    return rising * max(0.05, 1 - update / curriculum.updates)


def _loss(model: nn.Module, ids_B_T: Tensor, weights_B_T: Tensor) -> Tensor:
    # Padding is on the right, where causal attention does not look.
    logits = model(input_ids=ids_B_T, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids_B_T[:, 1:].flatten(), reduction="none"
    )
    weights = weights_B_T[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _rows(
    demos: Sequence[Demonstration], tokenizer: PreTrainedTokenizerFast, prompt_weight: float
) -> tuple[Tensor, Tensor]:
    """Return token ids, and what each weighs in the loss: `[B, T]` each; a question weighs 0."""
    asked, prompts, wholes = ([], [], [])
    for each in demos:
        question = each.prompt.partition("\n")[0]
        asked.append(_rendered(tokenizer, question))
        prompts.append(_rendered(tokenizer, each.prompt))
        wholes.append(_rendered(tokenizer, each.prompt, each.answer))
    lengths = [
        [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for texts in (asked, prompts)
    ]
    rows = tokenizer(wholes, add_special_tokens=False)["input_ids"]
    longest = max(map(len, rows))
    ids_B_T = torch.full((len(rows), longest), tokenizer.pad_token_id)
    weights_B_T = torch.zeros(len(rows), longest)
    for index, (row, question, prompt) in enumerate(zip(rows, *lengths, strict=True)):
        ids_B_T[index, : len(row)] = torch.tensor(row)
        weights_B_T[index, question:prompt] = prompt_weight
        weights_B_T[index, prompt : len(row)] = 1.0
    return ids_B_T, weights_B_T


def _rendered(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str | None = None) -> str:
    turns = [{"role": "user", "content": prompt}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    )


def _keep(
    file: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], update: int
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".tmp")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "update": update}, written)
    written.replace(file)


def _restore(file: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    if not file.exists():
        return 0
    state = torch.load(file)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
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

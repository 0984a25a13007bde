"""The rows of a warm start: conversations, as `supervised.py` writes them.

A line: `{"prompt": [{"role": "user", "content": "What is 6 x 7?"}],
"completion": [{"role": "assistant", "content": "42"}]}`; any other field is left aside.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pdr_graph.errors import ConfigError

Conversation = dict[str, list[dict[str, str]]]
"""`prompt` and `completion`, each a list of messages."""

_SHOWN = 40
"""Characters of a prompt's end in a message."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What there is to learn from."""

    conversations: list[Conversation]
    too_long: int
    """Rows that were left out."""


def read_conversations(file: Path) -> list[Conversation]:
    """Read a file of `pdr-graph train-data`.

    Raises:
        ConfigError: it cannot be read, or a line is none; the sentence names the line.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(
            f"warm-start data {str(file)!r} cannot be read: {error.strerror}"
        ) from None
    rows = [
        _conversation(line, f"{file} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise ConfigError(f"warm-start data {str(file)!r} holds no rows")
    return rows


def _conversation(line: bytes, where: str) -> Conversation:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object")
    for name in ("prompt", "completion"):
        turns = row.get(name)
        if not (isinstance(turns, list) and turns and all(map(_is_turn, turns))):
            raise ConfigError(
                f'{where}: {name!r} is no list of messages {{"role": …, "content": …}}; '
                "`pdr-graph train-data` writes such files"
            )
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )


def fitting(
    conversations: list[Conversation],
    tokenizer: Any,  # Any: transformers has no types
    most: int,
    variables: Mapping[str, Any] = MappingProxyType({}),  # Any: the template's own
) -> Rows:
    """Leave out the rows of more than `most` tokens, as the chat template writes them.

    Raises:
        ConfigError: none is left, or the template does not write rows as the model is asked.
    """
    _refuse_rewritten(conversations, tokenizer, variables)
    kept = [each for each in conversations if _length(each, tokenizer, variables) <= most]
    if not kept:
        raise ConfigError(
            f"every one of {len(conversations)} warm-start rows has more than {most} tokens; raise "
            "warm_start.max_tokens, or make shorter rows"
        )
    return Rows(kept, len(conversations) - len(kept))


def _length(conversation: Conversation, tokenizer: Any, variables: Mapping[str, Any]) -> int:
    text = _whole(conversation, tokenizer, variables)
    return len(tokenizer.encode(text, add_special_tokens=False))


def _whole(conversation: Conversation, tokenizer: Any, variables: Mapping[str, Any]) -> str:
    turns = [*conversation["prompt"], *conversation["completion"]]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, **variables)
    return text


def _refuse_rewritten(
    conversations: list[Conversation], tokenizer: Any, variables: Mapping[str, Any]
) -> None:
    """Refuse a template by which less, or something else, is learnt than what was said.

    TRL learns what follows the prompt, as far as the whole row begins with it. Templates that are
    made for chat rewrite the assistant's turns: they leave thoughts out, or end a prompt by the
    opening of a thought.

    Raises:
        ConfigError: it does; the sentence has the first such row, and how many there are.
    """
    left_out, otherwise = [], []
    for number, row in enumerate(conversations, start=1):
        whole = _whole(row, tokenizer, variables)
        prompt: str = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True, **variables
        )
        if not whole.startswith(prompt):
            otherwise.append((number, prompt))
        elif not all(_solid(each["content"]) in _solid(whole) for each in row["completion"]):
            left_out.append(number)
    if otherwise:
        number, prompt = otherwise[0]
        raise ConfigError(
            f"the chat template writes the prompt of warm-start row {number} in another way when "
            f"its reply follows ({len(otherwise)} of {len(conversations)} rows): the model is "
            f"asked by {prompt[-_SHOWN:]!r} and would not learn to go on from there; change the "
            "model folder's template so that what follows the prompt is the reply, word for word"
        )
    if left_out:
        raise ConfigError(
            f"the chat template leaves out a part of the reply of warm-start row {left_out[0]} "
            f"({len(left_out)} of {len(conversations)} rows), which would not be learnt; make data "
            "without thoughts (`pdr-graph train-data --no-thoughts`), or change the model folder's "
            "template"
        )


def _solid(text: str) -> str:
    """Return a text without its blanks, which templates trim and add."""
    return "".join(text.split())

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
        ConfigError: none is left.
    """
    kept = [each for each in conversations if _length(each, tokenizer, variables) <= most]
    if not kept:
        raise ConfigError(
            f"every one of {len(conversations)} warm-start rows has more than {most} tokens; raise "
            "warm_start.max_tokens, or make shorter rows"
        )
    return Rows(kept, len(conversations) - len(kept))


def _length(conversation: Conversation, tokenizer: Any, variables: Mapping[str, Any]) -> int:
    turns = [*conversation["prompt"], *conversation["completion"]]
    text = tokenizer.apply_chat_template(turns, tokenize=False, **variables)
    return len(tokenizer.encode(text, add_special_tokens=False))

"""Reads tokens back as what was said: the prompt without the chat template around it.

Trajectories hold tokens, and a supervised trainer wants messages. What the template puts around a
user's message is found by rendering one, and must be there again, word for word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.policy.tokenizer import tokenizer_of

_MARK = "Q7f1c"
"""A message that no template holds."""


@dataclass(slots=True)
class ChatText:
    """Texts of one tokenizer's prompts and replies."""

    tokenizer: Any  # Any: transformers is too heavy to be typed against here
    name: str
    """Of its folder, for messages."""
    variables: Mapping[str, Any] = field(default_factory=dict)  # Any: the template's own
    """Of the template."""
    _before: str = field(init=False)
    _after: str = field(init=False)

    def __post_init__(self) -> None:
        """Learn the template's surroundings."""
        messages = [{"role": "user", "content": _MARK}]
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.variables
        )
        self._before, _, self._after = rendered.partition(_MARK)

    @classmethod
    def of_folder(cls, folder: Path, variables: Mapping[str, Any] | None = None) -> "ChatText":
        """Open the tokenizer of a model folder.

        Raises:
            ConfigError: transformers is not installed, or there is no such tokenizer.
        """
        try:
            return cls(tokenizer_of(folder), str(folder), variables or {})
        except ImportError:
            raise ConfigError(
                "trajectories are read back by transformers: pip install 'pdr-graph[train]'"
            ) from None
        except (OSError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(f"{str(folder)!r} has no tokenizer that opens: {first}") from None

    def prompt(self, token_ids: tuple[int, ...]) -> str:
        """Return the user's message that a prompt was rendered from.

        Raises:
            ConfigError: another template, or another tokenizer, made it.
        """
        text = self._text(token_ids)
        long_enough = len(text) >= len(self._before) + len(self._after)
        if not (text.startswith(self._before) and text.endswith(self._after) and long_enough):
            raise ConfigError(
                f"a recorded prompt was not rendered by the chat template of {self.name!r} (it "
                f"begins {text[:40]!r}); name the folder of the model that drew the trajectories"
            )
        return text[len(self._before) : len(text) - len(self._after)]

    def reply(self, token_ids: tuple[int, ...]) -> str:
        """Return what was drawn, thought included, without the special tokens that ended it."""
        special = set(self.tokenizer.all_special_ids)
        end = len(token_ids)
        while end and token_ids[end - 1] in special:
            end -= 1
        return self._text(token_ids[:end])

    def _text(self, token_ids: tuple[int, ...]) -> str:
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

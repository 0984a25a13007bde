"""A tokenizer without transformers: a token for each character, and one that ends a reply."""

from collections.abc import Sequence


class LetterTokenizer:
    """Has what policies ask a tokenizer of transformers for."""

    eos_token_id = 0
    chat_template = "one line a message"

    def __init__(self) -> None:
        self.rendered = 0
        """How many prompts were rendered."""

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], *, tokenize: bool, **variables: object
    ) -> str:
        """Return `role: text` lines, variables of the template in front."""
        self.rendered += 1
        variables.pop("add_generation_prompt")
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return "\n".join([*map(str, variables.items()), *lines, "assistant: "])

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the characters' code points."""
        return [ord(each) for each in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text; the token that ends a reply is none of it."""
        return "".join(chr(each) for each in token_ids if each or not skip_special_tokens)

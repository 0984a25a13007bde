"""Opens the tokenizer of a model folder as the one that the folder holds."""

import json
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer_config.json"
_PLAIN = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""Classes that are what `tokenizer.json` says, and nothing else."""


def tokenizer_of(folder: Path) -> Any:  # Any: transformers has no types
    """Open a tokenizer; for a Qwen2 the library makes one of Qwen2 of whatever the folder holds.

    Raises:
        ImportError: transformers is not installed.
        OSError, ValueError, KeyError: the folder has none that can be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / TOKENIZER
    says = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kind = PreTrainedTokenizerFast if says.get("tokenizer_class") in _PLAIN else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)

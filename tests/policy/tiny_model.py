"""A model small enough for tests: a few hundred thousand parameters, a token for each character.

What it says is noise until it is trained; its mechanics are those of any other model. Import it
after `pytest.importorskip("torch")`.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD, END, UNKNOWN, USER, ASSISTANT = "<pad>", "<end>", "<unknown>", "<user>", "<assistant>"
SPECIAL = (PAD, END, UNKNOWN, USER, ASSISTANT)
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{{ '<end>' if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each printable ASCII character, 101 in all."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def tiny_model(seed: int = 0, **fields: object) -> Qwen2ForCausalLM:
    """Return a Qwen2 of 0.3 million parameters with random weights, the same for each seed."""
    return _drawn(Qwen2ForCausalLM, Qwen2Config(**{**_fields(), **fields}), seed)


def write_tiny_model(folder: Path, seed: int = 0, **fields: object) -> Path:
    """Write a model of that size and its tokenizer as a folder that transformers and vLLM load.

    It is a Llama: for a Qwen2 `AutoTokenizer` makes a tokenizer of Qwen2 of whatever the folder
    holds, which would lose every blank here.
    """
    model = _drawn(LlamaForCausalLM, LlamaConfig(**{**_fields(), **fields}), seed)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _fields() -> dict[str, object]:
    tokenizer = tiny_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _drawn(kind: Callable[[Any], Any], config: object, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()

"""The model: a small Llama from scratch, and a tokenizer with one token for each two digits.

Spaces separate and are no tokens. The fixed words of the prompts are one token each, so that a
problem is about ten tokens, an attempt eight, and a workspace of four attempts forty.

A Llama, since for a Qwen2 `AutoTokenizer` makes Qwen2's tokenizer of whatever a folder holds.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.studies.training.task import LARGEST_SUM, RIGHT, SMALLEST, WRONG

PAD, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<user>", "<assistant>", "<unk>"
CONCLUSION = "Conclusion of an attempt:\n"
"""How the distiller `answers` introduces each attempt."""
_WORDS = (
    *(CONCLUSION, "Final answer: ", "\\boxed{", "}", "=", RIGHT, WRONG),
    *("Numbers", "target", "\n\n", "\n", ":"),
)
_PATTERN = r"Conclusion of an attempt:\n|Final answer: |\\boxed\{|[A-Za-z]+|\d\d|\n\n|[^ ]"
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<end>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    init: float = 0.08
    """Standard deviation of fresh weights; the usual 0.02 is for wider models and learns late."""
    window: int = 512
    """Tokens of prompt and completion together."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, with its chat template."""
    digits = [str(digit) for digit in range(10)]
    numbers = [str(number) for number in range(SMALLEST, LARGEST_SUM + 1)]
    words = [PAD, END, USER, ASSISTANT, UNKNOWN, *_WORDS, *digits, *numbers]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def make_model(shape: Shape, seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.window,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            initializer_range=shape.init,
        )
    )


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a model folder as `transformers` and vLLM read it."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

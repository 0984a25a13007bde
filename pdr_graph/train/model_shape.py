"""How large a model and its prompts are, read from the files of its folder.

No weights are loaded, nothing heavy is imported. The models are decoders of the Llama family:
grouped attention, gated feed-forward layers, experts. Part of a `config.json`:

    {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28,
     "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
     "vocab_size": 151936, "tie_word_embeddings": true, "max_position_embeddings": 32768}
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.tokens import EstimateCounter, FileCounter, TokenCounter
from pdr_graph.prompts import Prompts

CONFIG, ADAPTER = "config.json", "adapter_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_BIASED = frozenset({"qwen2", "qwen2_moe"})
"""Models whose query, key and value have a bias, without a field that says so."""
_NORMED = frozenset({"qwen3", "qwen3_moe"})
"""Models that normalise each head's query and key."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that memory and time depend on."""

    kind: str
    """`model_type`, as transformers names it."""
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width of a feed-forward layer; with experts, of one expert."""
    experts: int
    """0 for a dense model."""
    experts_per_token: int
    tied: bool
    """Whether the head is the embedding."""
    window: int | None
    """Positions; None if the file does not say."""
    attention_bias: bool

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return inputs and outputs of each linear module of a layer, without experts."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        modules = {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (query, self.hidden),
        }
        if not self.experts:
            modules |= {
                "gate_proj": (self.hidden, self.inner),
                "up_proj": (self.hidden, self.inner),
                "down_proj": (self.inner, self.hidden),
            }
        return modules

    @property
    def parameters(self) -> int:
        """Return the number of weights; a tied head counts once."""
        layer = sum(inputs * outputs for inputs, outputs in self.matrices.values())
        layer += 2 * self.hidden  # norms before attention and feed-forward
        layer += self.experts * (3 * self.hidden * self.inner + self.hidden)
        keys = self.kv_heads * self.head_dim
        if self.attention_bias or self.kind in _BIASED:
            layer += self.heads * self.head_dim + 2 * keys
        if self.attention_bias:
            layer += self.hidden
        if self.kind in _NORMED:
            layer += 2 * self.head_dim
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * layer + self.hidden

    def adapter_parameters(self, rank: int, modules: tuple[str, ...] | str) -> int:
        """Return the weights of low-rank adapters on the named modules; `all-linear` is all."""
        chosen = [
            sides
            for name, sides in self.matrices.items()
            if modules == "all-linear" or name in modules
        ]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen)

    @property
    def kv_elements(self) -> int:
        """Return how many numbers a cache holds of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_shape(folder: Path) -> ModelShape:
    """Read the shape of the model in a folder.

    Raises:
        ConfigError: there is none, it is an adapter without its base, or it is no decoder of the
            Llama family.
    """
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(_absent(folder)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(file)!r} cannot be read ({error}); restore it") from None
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError(
            f"model folder {str(folder)!r} has no tokenizer; copy {_TOKENIZERS[0]} into it"
        )
    if not isinstance(values, dict):
        raise ConfigError(f"{str(file)!r} is no JSON object; restore it")
    # Of two nested configs, the outer one says whether the head is tied.
    tie = {name: values[name] for name in ("tie_word_embeddings",) if name in values}
    return shape_of(values.get("text_config", values) | tie, str(file))


def shape_of(values: Mapping[str, Any], where: str) -> ModelShape:
    """Return the shape that a config describes.

    Raises:
        ConfigError: it lacks a field that a decoder of the Llama family has.
    """
    try:
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        experts = int(values.get("num_experts") or values.get("num_local_experts") or 0)
        inner = values.get("moe_intermediate_size") if experts else None
        return ModelShape(
            kind=str(values.get("model_type", "")),
            vocabulary=int(values["vocab_size"]),
            hidden=hidden,
            layers=int(values["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or hidden // heads),
            inner=int(inner or values["intermediate_size"]),
            experts=experts,
            experts_per_token=int(values.get("num_experts_per_tok") or 0),
            tied=bool(values.get("tie_word_embeddings", False)),
            window=values.get("max_position_embeddings"),
            attention_bias=bool(values.get("attention_bias", False)),
        )
    except KeyError as error:
        raise ConfigError(
            f"{where} has no {error.args[0]!r}, which a decoder of the Llama family has; name the "
            "folder of such a model"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{where} does not describe a model ({error}); restore it") from None


def _absent(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return (
            f"{str(folder)!r} holds an adapter and no whole model; merge it into its base, or name "
            "the base"
        )
    if folder.is_dir():
        return f"{str(folder)!r} holds no {CONFIG}; name a folder that transformers saved"
    return (
        f"model folder {str(folder)!r} does not exist; download the model there, as with "
        "`hf download ORG/NAME --local-dir FOLDER`"
    )


CHAT_TOKENS = 32
"""Charged for what a chat template adds to a prompt; a system prompt would be more."""
_LONGEST = 16
"""Only the problems with the most characters are counted."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Model tokens of the longest prompts."""

    direct: int
    """Without a workspace: long CoT, and drafts."""
    refine: int
    """With a workspace of kappa tokens."""
    problem: int
    """The longest problem alone."""
    exact: bool
    """Whether they were counted; an estimate is too high for most tokenizers."""


def prompt_size(model: Path, config: PDRConfig, problems: Sequence[Problem]) -> PromptSize:
    """Measure the longest prompts that a config makes of problems.

    Args:
        model: Folder; without a `tokenizer.json` lengths are estimated.
        config: The strategy, with its templates.
        problems: One or more.

    Raises:
        ConfigError: a template is malformed, or the tokenizer is.
    """
    prompts = Prompts.load().of_run(config)
    counter = _counter(model)
    answer_format = prompts.render(f"answer_{config.answer}")
    longest = sorted(problems, key=lambda each: len(each.text), reverse=True)[:_LONGEST]

    async def most(name: str, **values: str) -> int:
        texts = [
            prompts.render(name, problem=each.text, answer_format=answer_format, **values)
            for each in longest
        ]
        return max([await counter.count(text) for text in texts]) + CHAT_TOKENS

    async def all_three() -> tuple[int, int, int]:
        problem = max([await counter.count(each.text) for each in longest])
        return await most("draft"), await most("improve", workspace=""), problem

    direct, refine, problem = asyncio.run(all_three())
    return PromptSize(direct, refine + config.kappa, problem, counter.source == "file")


def _counter(model: Path) -> TokenCounter:
    if not (model / "tokenizer.json").is_file():
        return EstimateCounter()
    try:
        import tokenizers  # noqa: F401  # the counter's own sentence names another extra
    except ImportError:
        return EstimateCounter()
    return FileCounter(model)

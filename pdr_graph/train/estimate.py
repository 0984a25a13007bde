"""What RL will need in memory of a device and in tokens, by the size of the model and its prompts.

No weights are loaded, nothing heavy is imported: the files of the model's folder are read. The
models are decoders of the Llama family: grouped attention, gated feed-forward layers, experts. Part
of a `config.json`:

    {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28,
     "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
     "vocab_size": 151936, "tie_word_embeddings": true, "max_position_embeddings": 32768}

Weights, gradients and optimiser are counted. Activations follow Korthikanti et al. (arXiv
2205.05198), adapted to gated layers and to grouped attention that never stores its scores; a test
compares them with the tensors that a real forward pass keeps. Allocators, kernels and communication
are not included: leave a tenth of the memory free.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.budgets import most_calls
from pdr_graph.eval.problems import Problem
from pdr_graph.extensions import Extensions
from pdr_graph.llm.tokens import EstimateCounter, FileCounter, TokenCounter
from pdr_graph.prompts import Prompts
from pdr_graph.train.settings import TrainSettings

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
        ConfigError: the folder has no model, an adapter without its base, or no decoder of the
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
"""Tokens charged for what a chat template adds to a prompt; a system prompt would need more."""
_LONGEST = 16
"""Problems that are counted: those with the most characters."""


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


GIB = 1 << 30
FP32, BF16 = 4, 2
ADAM = 8
"""Bytes of AdamW's two moments of a weight, in fp32."""

TILE_TOKENS, TILE_LOGITS = 4096, 32_768
"""Tiles of TRL's fused head (`trl/kernels/chunked_logprob.py`)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Largest number of bytes on one device, by kind."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    """For the backward pass of one micro-batch."""
    head: int
    """For the head, which works in tiles: a tile of logits, and gradients in fp32."""
    kv_cache: int
    """For all calls in flight at full length; 0 if another device draws."""
    drawing_weights: int
    """For a second copy that draws; 0 if the trained weights or another device draw."""
    reserved: int
    """Memory that an engine reserves for weights and cache, needed or not; 0 without an engine."""

    @property
    def training(self) -> int:
        """Return what updates need."""
        return self.lasting + self.gradients + self.activations + self.head

    @property
    def lasting(self) -> int:
        """Return what stays in memory while tokens are drawn."""
        return self.weights + self.optimiser

    @property
    def peak(self) -> int:
        """Return the most that is needed at once."""
        drawing = max(self.reserved, self.drawing_weights + self.kv_cache)
        if self.drawing_weights:  # an engine in this process keeps its memory
            return self.training + drawing
        return max(self.training, self.lasting + drawing)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Largest numbers of model tokens: every call and every prompt at full length."""

    drawn_per_step: int
    read_per_step: int
    """Tokens of prompts, without a cache."""
    trained_per_step: int
    """Drawn tokens that are trained on."""
    calls_per_step: int
    steps: int

    @property
    def drawn(self) -> int:
        """Return what the whole run draws."""
        return self.drawn_per_step * self.steps

    @property
    def read(self) -> int:
        """Return the prompts of the whole run."""
        return self.read_per_step * self.steps


@dataclass(frozen=True, slots=True)
class TrainEstimate:
    """What a run needs."""

    parameters: int
    trained_parameters: int
    row_tokens: int
    """Prompt and completion of the longest row."""
    memory: Memory
    tokens: Tokens

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; sizes in bytes."""
        memory = {**asdict(self.memory), "training": self.memory.training, "peak": self.memory.peak}
        tokens = {**asdict(self.tokens), "drawn": self.tokens.drawn, "read": self.tokens.read}
        return {
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters,
            "row_tokens": self.row_tokens,
            "memory_per_device": memory,
            "tokens_at_most": tokens,
        }


def estimate(settings: TrainSettings, shape: ModelShape, size: PromptSize) -> TrainEstimate:
    """Estimate one run of RL from its settings."""
    reads = bool(settings.rollouts.operator_fraction)
    prompt = size.refine if reads else size.direct
    row = prompt + settings.config.max_tokens
    lora = settings.lora
    trained = shape.parameters
    if lora is not None:
        trained = shape.adapter_parameters(lora.rank, lora.target_modules)
    return TrainEstimate(
        parameters=shape.parameters,
        trained_parameters=trained,
        row_tokens=row,
        memory=_memory(settings, shape, trained, row),
        tokens=_tokens(settings, size),
    )


def activation_bytes(
    shape: ModelShape, rows: int, tokens: int, width: int, *, checkpointing: bool
) -> int:
    """Return what a forward pass keeps for its backward pass, without logits.

    Args:
        shape: The model.
        rows: Of one micro-batch.
        tokens: Of each row, padding included.
        width: Bytes of a number.
        checkpointing: Whether layers are recomputed: then each layer's input is kept, and all of
            one layer.
    """
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inner = shape.inner * max(1, shape.experts_per_token)
    # Norms work in fp32 and keep their input and its normalised form: twice a layer.
    norms = 2 * 2 * shape.hidden * FP32
    # Inputs of the projections and of the feed-forward layer; query, keys and values before and
    # after rotation; what attention gives; gate, its activation, up, and their product.
    kept = 2 * shape.hidden + 3 * query + 4 * keys + 4 * inner
    layer = rows * tokens * (norms + kept * width)
    if not checkpointing:
        return shape.layers * layer
    return layer + shape.layers * rows * tokens * shape.hidden * width


def _memory(settings: TrainSettings, shape: ModelShape, trained: int, row: int) -> Memory:
    devices, policy = settings.devices, settings.policy
    narrow = BF16 if devices.precision == "bf16" else FP32
    frozen = 0 if settings.lora is None else shape.parameters
    micro = settings.optimiser.micro_batch_rows
    drawing, cache, reserved = 0, 0, 0
    if policy.kind != "vllm-http":
        calls = min(policy.max_in_flight, settings.rows_per_step // devices.processes)
        cache = calls * row * shape.kv_elements * narrow
    if policy.kind == "vllm-colocate":
        drawing = shape.parameters * narrow
        reserved = int(policy.gpu_memory_share * (devices.memory_gib or 0) * GIB)
    return Memory(
        weights=trained * FP32 + frozen * narrow,
        gradients=trained * FP32,
        optimiser=trained * ADAM,
        activations=activation_bytes(
            shape, micro, row, narrow, checkpointing=settings.optimiser.gradient_checkpointing
        ),
        head=_head_bytes(shape, micro * row, narrow, whole=settings.lora is None),
        kv_cache=cache,
        drawing_weights=drawing,
        reserved=reserved,
    )


def _head_bytes(shape: ModelShape, tokens: int, width: int, *, whole: bool) -> int:
    tile = min(tokens, TILE_TOKENS) * TILE_LOGITS * width
    of_weights = shape.vocabulary * shape.hidden * FP32 if whole else 0
    return tile + of_weights + tokens * shape.hidden * FP32


def _tokens(settings: TrainSettings, size: PromptSize) -> Tokens:
    rollouts, config = settings.rollouts, settings.config
    operator = int(rollouts.operator_fraction * rollouts.problems_per_step + 0.5)
    direct = rollouts.problems_per_step - operator
    plan = settings.operator_plan
    drafts, refines = plan.rows.get("draft", 0), plan.rows.get("refine", 0)
    # Calls of one round: M drafts, one refinement, and the distiller's.
    asked = most_calls(config, Extensions().with_code(config)).total - rollouts.num_drafts - 1
    distils = asked * plan.num_workspaces if operator else 0
    calls = direct * rollouts.rows_per_problem + operator * (drafts + refines + distils)
    read = (direct * rollouts.rows_per_problem + operator * drafts) * size.direct
    read += operator * refines * size.refine
    read += operator * distils * (size.direct + rollouts.num_drafts * config.solution_tokens)
    untrained = operator * (distils if settings.objective.distill_credit == "none" else 0)
    untrained += operator * (drafts if settings.objective.draft_credit == "none" else 0)
    return Tokens(
        drawn_per_step=calls * config.max_tokens,
        read_per_step=read,
        trained_per_step=(calls - untrained) * config.max_tokens,
        calls_per_step=calls,
        steps=settings.steps,
    )

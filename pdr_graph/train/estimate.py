"""What RL will need, from `config.json` alone: memory of a device, and tokens.

Weights, gradients and optimiser are counted. Activations follow Korthikanti et al. (arXiv
2205.05198), adapted to gated layers and to grouped attention that never stores its scores; a test
compares them with the tensors that a real forward pass keeps. Allocators, kernels and communication
are not included: leave a tenth of the memory free.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pdr_graph.eval.budgets import most_calls
from pdr_graph.extensions import Extensions
from pdr_graph.train.model_shape import ModelShape, PromptSize
from pdr_graph.train.settings import TrainSettings

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
    """Of all calls in flight at full length; 0 if another device draws."""
    drawing_weights: int
    """A second copy that draws; 0 if the trained weights draw, or another device."""
    reserved: int
    """What an engine reserves for its weights and cache, whatever it needs; 0 without one."""

    @property
    def training(self) -> int:
        """Return what updates need."""
        return self.lasting + self.gradients + self.activations + self.head

    @property
    def lasting(self) -> int:
        """Return what is also there while tokens are drawn."""
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
    # Of one round: M drafts, one refinement, and what the distiller asks for.
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

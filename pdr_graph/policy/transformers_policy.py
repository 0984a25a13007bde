"""A model of transformers in this process draws the tokens.

For small models: in tests, in studies, and to evaluate trained models. The module may be the one
that a trainer updates: nothing is copied, so that draws are always by its current weights.

Many prompts are drawn side by side. Equal prompts are read once, and ended rows leave the batch. A
row's own random number selects a token of the row's own distribution, so that other rows do not
change it (except through the last bits of its logits). The cache grows in place: transformers' own
copies all of itself for each token, which for a small model is most of the work.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.llm.client import Sampling
from pdr_graph.policy import CallBatcher, Drawn, Ticket, check_request

try:
    import torch
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedConfig
    from transformers.cache_utils import DynamicLayer
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

Model = Any
"""A causal model of transformers, which has no types."""
_Request = tuple[tuple[int, ...], Sampling]

_LOOK_EVERY = 16
"""Steps between two looks at whether callers have left."""


@dataclass(frozen=True, slots=True)
class ForwardNames:
    """Names of `forward`'s arguments, which differ between models and versions."""

    cache: str
    last_only: bool
    """Whether it takes `logits_to_keep`, which asks for the last position's logits only."""

    @classmethod
    def of(cls, model: Model) -> "ForwardNames":
        """Inspect a model, below its adapters."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        known = inspect.signature(inner.forward).parameters
        return cls(
            cache="cache" if "cache" in known else "past_key_values",
            last_only="logits_to_keep" in known,
        )


def last_position(ids_B_T: Tensor) -> Tensor:
    """Return the last position as an index, for `logits_to_keep`.

    The number 1 would make a slice, which is not contiguous. Torch then copies a frozen head once
    for each row, which takes four fifths of a real model's time.
    """
    return ids_B_T.new_full((1,), -1)


@dataclass(slots=True)
class DecodingRow:
    """A reply that is being drawn."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    left: Callable[[], bool] = lambda: False
    """Whether its caller has gone."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    rng: Random = field(init=False)

    def __post_init__(self) -> None:
        """Seed the row's own random numbers."""
        self.rng = Random(self.sampling.seed)

    @property
    def done(self) -> bool:
        """Whether no more tokens are drawn."""
        return self.ended or len(self.token_ids) >= self.sampling.max_tokens

    def add(self, token: int, logprob: float, stop_ids: Collection[int]) -> None:
        """Take the next token."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.ended = token in stop_ids

    @property
    def drawn(self) -> Drawn:
        """The reply."""
        return Drawn(
            tuple(self.token_ids), tuple(self.logprobs), "stop" if self.ended else "length"
        )


@dataclass
class DecodingBatch:
    """Rows that are drawn together, with the model's cache of them."""

    model: Model
    rows: list[DecodingRow]
    """Rows still in the batch, in the order of the cache."""
    stop_ids: frozenset[int]
    names: ForwardNames

    def draw(self) -> None:
        """Draw until every row is done, or its caller has gone."""
        # Not inference mode: buffers that the model makes are used in training too.
        with torch.no_grad():
            self._draw()

    def _draw(self) -> None:
        logits_B = self._read()
        steps = 0
        while True:
            self._take(logits_B)
            steps += 1
            if not self._shrink(look=steps % _LOOK_EVERY == 0):
                return
            logits_B = self._step()

    def _read(self) -> Tensor:
        """Read the prompts, each once, and return the logits `[B, V]` of the first tokens."""
        device = self.model.device
        places: dict[tuple[int, ...], int] = {}
        for row in self.rows:
            places.setdefault(row.prompt_ids, len(places))
        longest = max(map(len, places))
        pads = [longest - len(prompt) for prompt in places]
        ids_P_T = [[0] * pad + list(prompt) for pad, prompt in zip(pads, places, strict=True)]
        padding_P_T = torch.arange(longest)[None] < torch.tensor(pads)[:, None]
        mask_P_T = (~padding_P_T).long().to(device)
        self.cache = growing_cache(self.model.config)
        logits_P = self._forward(
            torch.tensor(ids_P_T, device=device), mask_P_T, (mask_P_T.cumsum(-1) - 1).clamp(min=0)
        )
        which_B = torch.tensor([places[row.prompt_ids] for row in self.rows], device=device)
        self.mask_B_T = mask_P_T[which_B]
        self.positions_B = self.mask_B_T.sum(-1)
        if len(places) < len(self.rows) or len(places) > 1:
            self.cache.batch_select_indices(which_B)
        self.temperatures_B = torch.tensor(
            [row.sampling.temperature for row in self.rows], device=device
        )
        return logits_P[which_B]

    def _take(self, logits_B: Tensor) -> None:
        """Draw one token for every row."""
        uniforms_B = torch.tensor([row.rng.random() for row in self.rows], dtype=torch.float64)
        tokens_B, logprobs_B = sample(logits_B, self.temperatures_B, uniforms_B.to(logits_B.device))
        self.tokens_B = tokens_B
        for row, token, logprob in zip(
            self.rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True
        ):
            if not row.done:
                row.add(token, logprob, self.stop_ids)

    def _shrink(self, *, look: bool) -> bool:
        """Drop done rows when they are half of all; return whether any row is not done."""
        going = [
            index
            for index, row in enumerate(self.rows)
            if not row.done and not (look and row.left())
        ]
        if not going:
            return False
        if 2 * len(going) <= len(self.rows):
            kept = torch.tensor(going, device=self.tokens_B.device)
            self.rows = [self.rows[index] for index in going]
            self.cache.batch_select_indices(kept)
            self.mask_B_T, self.positions_B = self.mask_B_T[kept], self.positions_B[kept]
            self.temperatures_B, self.tokens_B = self.temperatures_B[kept], self.tokens_B[kept]
        return True

    def _step(self) -> Tensor:
        """Read the tokens just drawn and return the logits `[B, V]` of the next."""
        self.mask_B_T = torch.nn.functional.pad(self.mask_B_T, (0, 1), value=1)
        logits_B = self._forward(self.tokens_B[:, None], self.mask_B_T, self.positions_B[:, None])
        self.positions_B = self.positions_B + 1
        return logits_B

    def _forward(self, ids_B_T: Tensor, mask_B_T: Tensor, positions_B_T: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids_B_T,
            attention_mask=mask_B_T,
            position_ids=positions_B_T,
            use_cache=True,
            **{self.names.cache: self.cache},
            **({"logits_to_keep": last_position(ids_B_T)} if self.names.last_only else {}),
        )
        logits_B: Tensor = output.logits[:, -1]
        return logits_B


_ROOM = 64
"""Fewest tokens by which a layer's room grows."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A cache layer with room for further tokens."""

    def __init__(self, **kwargs: Any) -> None:  # Any: as the base class has it
        super().__init__(**kwargs)
        self.keys: Tensor | None
        self.values: Tensor | None
        self._room: tuple[Tensor, Tensor] | None = None
        """Keys and values with their room; None until the next token."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # Any: as the base class has it
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append `[B, H, T, D]` and return all keys and values, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        length = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < length:
            self._room = tuple(
                torch.empty(*new.shape[:2], length + _ROOM, new.shape[-1]).to(new)
                for new in (key_states, value_states)
            )
            if start:
                self._room[0][:, :, :start] = self.keys
                self._room[1][:, :, :start] = self.values
        keys, values = self._room
        keys[:, :, start:length] = key_states
        values[:, :, start:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, any of them more than once."""
        super().batch_select_indices(indices)
        self._room = None


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; only layers of plain attention grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


_MOST_NUMBERS = 1 << 23
"""Numbers in one float64 matrix, 64 MiB: with a large vocabulary few rows are drawn at once."""


def sample(logits_B: Tensor, temperatures_B: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the drawn tokens `[B]` and their log-probabilities `[B]`.

    Args:
        logits_B: `[B, V]`, of any precision; the rest is float32, sums are float64.
        temperatures_B: `[B]`; 0 takes the most likely token, with its log-probability at
            temperature 1.
        uniforms_B: `[B]` in [0, 1), float64; a number selects the first token at which the
            cumulative probability, in the vocabulary's order, is above it.
    """
    most_rows = max(1, _MOST_NUMBERS // logits_B.shape[1])
    parts = [
        _sample(*rows)
        for rows in zip(
            logits_B.split(most_rows),
            temperatures_B.split(most_rows),
            uniforms_B.split(most_rows),
            strict=True,
        )
    ]
    if len(parts) == 1:
        return parts[0]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(logits_B: Tensor, temperatures_B: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    greedy_B = temperatures_B == 0
    divisors_B = temperatures_B.masked_fill(greedy_B, 1.0).float()
    table_B = (logits_B.float() / divisors_B[:, None]).log_softmax(-1)
    cumulative_B = table_B.exp().double().cumsum(-1)
    # The whole is 1 up to rounding. A place stays below it, so that no number falls behind the last
    # token of positive probability.
    whole_B = cumulative_B[:, -1:]
    places_B = torch.minimum(
        uniforms_B[:, None] * whole_B, torch.nextafter(whole_B, torch.zeros_like(whole_B))
    )
    drawn_B = torch.searchsorted(cumulative_B, places_B, right=True)[:, 0]
    tokens_B = torch.where(greedy_B, logits_B.argmax(-1), drawn_B)
    return tokens_B, table_B.gather(-1, tokens_B[:, None])[:, 0]


class TransformersPolicy:
    """Draws with a causal model of transformers; concurrent calls are drawn together."""

    def __init__(
        self,
        model: Model,
        tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
        *,
        most_rows: int = 256,
        most_tokens: int = 65_536,
        settle_s: float = 0.002,
    ) -> None:
        """Take a model.

        Args:
            model: A causal model, with or without adapters of peft, on its device and in its
                precision.
            tokenizer: Names the token that ends a reply, beside those of the generation config.
            most_rows: Largest number of calls that are drawn together.
            most_tokens: Largest number of tokens in their cache, undrawn ones included.
            settle_s: Calls are drawn when no further one has come for this long; if runs are known
                (`going_on`), when all of them wait.
        """
        self.model = model
        self._stop_ids = stop_ids_of(model, tokenizer)
        self._most_tokens = most_tokens
        self._most_rows = most_rows
        self._names = ForwardNames.of(model)
        self._batcher: CallBatcher[_Request, Drawn] = CallBatcher(self._draw, settle_s=settle_s)

    @property
    def window(self) -> int | None:
        """Tokens that prompt and reply may have together."""
        config = self.model.config.get_text_config()
        window: int | None = getattr(config, "max_position_embeddings", None)
        return window

    def going_on(self) -> AbstractContextManager[None]:
        """Make calls wait for those of a run, see `CallBatcher`."""
        return self._batcher.going_on()

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw one reply.

        Raises:
            ConfigError: the sampling is cut.
            ContextWindowError: prompt and reply do not fit the window.
        """
        check_request(prompt_ids, sampling, self.window)
        return await self._batcher.ask((tuple(prompt_ids), sampling))

    def _draw(self, tickets: Sequence[Ticket[_Request, Drawn]]) -> list[Drawn]:
        rows = [_row(ticket) for ticket in tickets]
        with _evaluating(self.model):
            for part in self._parts(rows):
                DecodingBatch(self.model, part, self._stop_ids, self._names).draw()
        return [row.drawn for row in rows]

    def _parts(self, rows: Sequence[DecodingRow]) -> Iterator[list[DecodingRow]]:
        """Split rows into batches that fit: prompts of similar length, equal ones together.

        Which rows share a batch depends on the requests, and not on their order.
        """
        part: list[DecodingRow] = []
        most_new = 0
        for row in sorted(rows, key=_order):
            new = max(most_new, row.sampling.max_tokens)
            tokens = (len(part) + 1) * (len(row.prompt_ids) + new)
            if part and (len(part) >= self._most_rows or tokens > self._most_tokens):
                yield part
                part, new = [], row.sampling.max_tokens
            part.append(row)
            most_new = new
        if part:
            yield part


def _order(row: DecodingRow) -> tuple[object, ...]:
    return len(row.prompt_ids), row.prompt_ids, row.sampling.seed, row.sampling.max_tokens


def _row(ticket: Ticket[_Request, Drawn]) -> DecodingRow:
    prompt_ids, sampling = ticket.request
    return DecodingRow(prompt_ids, sampling, left=lambda: ticket.left)


def stop_ids_of(model: Model, tokenizer: Any) -> frozenset[int]:  # Any: transformers has no types
    """Return the tokens that end a reply.

    Raises:
        ConfigError: the model has no such token.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    ids.discard(None)
    if not ids:
        raise ConfigError(
            "the model has no token that ends a reply; name eos_token in tokenizer_config.json"
        )
    return frozenset(ids)


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Switch dropout off for as long as the block lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

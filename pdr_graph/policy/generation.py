"""Draws the replies of many prompts with one model of transformers, side by side.

A prompt that several rows have is read once. Rows that have ended leave the batch.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.llm.client import Sampling
from pdr_graph.policy.policy import Drawn

try:
    import torch
    from torch import Tensor

    from pdr_graph.policy.growing_cache import growing_cache
    from pdr_graph.policy.sampling import sample
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

Model = Any
"""A causal model of transformers, which has no types."""

_LOOK_EVERY = 16
"""Steps after which it is seen whether callers have left."""


@dataclass(frozen=True, slots=True)
class ForwardNames:
    """What a model's `forward` calls its arguments, which differs between models and versions."""

    cache: str
    last_only: dict[str, int]
    """What makes it return the logits of the last position alone, if it can."""

    @classmethod
    def of(cls, model: Model) -> "ForwardNames":
        """Look at a model, below its adapters if it has any."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        known = inspect.signature(inner.forward).parameters
        return cls(
            cache="cache" if "cache" in known else "past_key_values",
            last_only={"logits_to_keep": 1} if "logits_to_keep" in known else {},
        )


@dataclass(slots=True)
class Row:
    """One reply in the making."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    left: Callable[[], bool] = lambda: False
    """Whether nobody wants it any longer."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    rng: Random = field(init=False)

    def __post_init__(self) -> None:
        """Seed the row's own random numbers."""
        self.rng = Random(self.sampling.seed)

    @property
    def done(self) -> bool:
        """Whether nothing more is drawn."""
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
class Batch:
    """Rows that are drawn together, and what the model remembers of them."""

    model: Model
    rows: list[Row]
    """Those still in the batch, in the order of the cache's rows."""
    stop_ids: frozenset[int]
    names: ForwardNames

    def draw(self) -> None:
        """Draw until every row is done or nobody wants it."""
        # Not inference mode: whatever buffers the model makes must serve training too.
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
        """Drop rows that are done once they are half of all; tell whether any is not."""
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
            **self.names.last_only,
        )
        logits_B: Tensor = output.logits[:, -1]
        return logits_B

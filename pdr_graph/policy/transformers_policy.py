"""A model of transformers in this process draws the tokens.

For small models: in tests, in studies, and to evaluate trained models. The module may be the one
that a trainer updates: nothing is copied, so that draws are always by its current weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.llm.client import Sampling
from pdr_graph.policy.batches import CallBatcher, Ticket
from pdr_graph.policy.policy import Drawn, check_request

try:
    from pdr_graph.policy.generation import DecodingBatch, DecodingRow, ForwardNames, Model
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

_Request = tuple[tuple[int, ...], Sampling]


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
        """Have calls wait for those of a run, see `CallBatcher`."""
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
        ConfigError: there is none.
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

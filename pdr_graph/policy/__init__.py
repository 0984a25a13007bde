"""Models that draw tokens in this process, and return every token with its log-probability.

Training and small studies use them. The policies are `TransformersPolicy`, `VLLMPolicy`, and
`ScriptedPolicy`, which answers from a list: for tests, and to see what a run costs without a model.
`policy_client` makes a `ModelClient` of one, which the graph calls like a server; `open_folder`
opens a model folder. Only the modules of an engine import it. A policy behind vLLM's endpoint is
`ChatVLLM`, made by `pdr_graph.train.recorder.telling_tokens`.

    Drawn(token_ids, logprobs, finish_reason)
    Policy: async draw(prompt_ids, sampling) -> Drawn; window: int | None
    TransformersPolicy(model, tokenizer, *, most_rows=256, most_tokens=65536, settle_s=0.002)
    VLLMPolicy(llm)                           # llm = open_engine(folder, **options of vllm.LLM)
    ScriptedPolicy(replies, tokenizer)
    policy_client(policy, tokenizer, *, name="policy", window=None, max_in_flight=1024)
    open_folder(folder, *, device=None) -> OpenedFolder(policy, tokenizer, name)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.llm.client import Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of one reply."""

    token_ids: tuple[int, ...]
    """What was drawn, with the token that ended the reply."""
    logprobs: tuple[float, ...]
    """Of each of `token_ids`, under the whole vocabulary's distribution at the call's temperature;
    at temperature 0, under that of temperature 1."""
    finish_reason: Literal["stop", "length"]
    """`stop` if the model ended the reply itself."""


class Policy(Protocol):
    """A model that reads and draws tokens."""

    @property
    def window(self) -> int | None:
        """Return how many tokens prompt and reply may have together, None if unknown."""

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Draw one reply, which depends only on prompt, sampling and weights.

        Concurrent calls share the work.

        Raises:
            ConfigError: the sampling cannot be done as asked.
            ContextWindowError: prompt and reply do not fit the window.
        """


def check_request(prompt_ids: Sequence[int], sampling: Sampling, window: int | None) -> None:
    """Refuse what no policy of this package can do.

    Raises:
        ConfigError: the prompt is empty, or sampling is cut.
        ContextWindowError: prompt and reply do not fit the window.
    """
    if sampling.top_p != 1.0:
        raise ConfigError(
            f"top_p {sampling.top_p:g}: a model in this process draws from the whole "
            "distribution; set top_p 1"
        )
    if not prompt_ids:
        raise ConfigError("the prompt has no tokens; does the chat template render messages?")
    if window is not None and len(prompt_ids) + sampling.max_tokens > window:
        raise ContextWindowError(
            f"a prompt of {len(prompt_ids)} tokens and max_tokens {sampling.max_tokens} are more "
            f"than the model's context window of {window}; lower max_tokens, or shorten the prompt"
        )


Script = Callable[[str, Sampling], str]
"""Makes the reply of a call from its prompt's text and its sampling."""


class ScriptedPolicy:
    """Answers from a list, in order, repeating the last reply; or by a function.

    Each token has the log-probability −1. The token that ends a reply is included if it fits.
    """

    def __init__(
        self,
        replies: Sequence[str] | Script,
        tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
        *,
        window: int | None = None,
    ) -> None:
        self._replies = replies
        self._tokenizer = tokenizer
        self.window = window
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []
        """Every call so far."""

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Return the next reply."""
        check_request(prompt_ids, sampling, self.window)
        self.asked.append((tuple(prompt_ids), sampling))
        text = self._text(prompt_ids, sampling)
        ids = [*self._tokenizer.encode(text, add_special_tokens=False)]
        ids = [*ids, self._tokenizer.eos_token_id]
        kept = tuple(ids[: sampling.max_tokens])
        whole = len(kept) == len(ids)
        return Drawn(kept, (-1.0,) * len(kept), "stop" if whole else "length")

    def _text(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        if callable(self._replies):
            return self._replies(self._tokenizer.decode(list(prompt_ids)), sampling)
        return self._replies[min(len(self.asked), len(self._replies)) - 1]

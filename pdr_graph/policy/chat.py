"""A policy as the model that the graph calls: a LangChain chat model, and a client of it."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, PrivateAttr

from pdr_graph.errors import ConfigError
from pdr_graph.llm.client import ModelClient, Sampling
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import Source, wellformed
from pdr_graph.policy import Drawn, Policy

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}

Turns = tuple[tuple[str, str], ...]
"""Role and text of each message."""


class PolicyChat(BaseChatModel):
    """Renders messages by the tokenizer's chat template, and has a policy answer.

    Every reply carries its tokens in the same places as a reply of `ChatVLLM`: `response_metadata`
    has `prompt_token_ids`, `token_ids`, `logprobs` and `finish_reason`.
    """

    policy: Any  # Any: pydantic checks no protocol; it is a `Policy`
    tokenizer: Any  # Any: a tokenizer of transformers, which has no types
    model_name: str = "policy"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)  # Any: the template's own
    """Variables of the chat template, such as `{"enable_thinking": False}`."""
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    tells_tokens: ClassVar[bool] = True
    """Whether replies carry token ids and log-probabilities."""

    # A round asks one prompt many times, and rendering and encoding it takes longer than the graph.
    _encoded: Any = PrivateAttr()  # Any: functools has no type for what it wraps

    def model_post_init(self, context: object, /) -> None:
        """Cache the tokens of recent prompts."""
        super().model_post_init(context)
        self._encoded = lru_cache(maxsize=256)(self._encode)

    def going_on(self) -> AbstractContextManager[None]:
        """Tell the policy that a run is going on, so that it draws concurrent runs together."""
        going_on = getattr(self.policy, "going_on", nullcontext)
        context: AbstractContextManager[None] = going_on()
        return context

    @property
    def _llm_type(self) -> str:
        return "policy-chat"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return False: its weights are in this process."""
        return False

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: as the base class has it
    ) -> ChatResult:
        return asyncio.run(self._agenerate(messages, stop, None, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: as the base class has it
    ) -> ChatResult:
        if stop:
            raise ConfigError(
                f"stop {stop}: a model in this process ends its replies itself; leave it out"
            )
        prompt_ids = self._encoded(tuple(_turn(message) for message in messages))
        policy: Policy = self.policy
        drawn = await policy.draw(prompt_ids, self._sampling(kwargs))
        message = self._message(prompt_ids, drawn)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _sampling(self, given: dict[str, Any]) -> Sampling:  # Any: whatever a caller passes
        fields = ("max_tokens", "temperature", "top_p", "seed")
        return Sampling(**{name: given.get(name, getattr(self, name)) for name in fields})

    def _encode(self, turns: Turns) -> tuple[int, ...]:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"model {self.model_name!r} has no chat template; put a chat_template.jinja beside "
                "its tokenizer"
            )
        text = self.tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=False,
            add_generation_prompt=True,
            **self.chat_template_kwargs,
        )
        # The template writes special tokens itself.
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _message(self, prompt_ids: Sequence[int], drawn: Drawn) -> AIMessage:
        return AIMessage(
            content=self.tokenizer.decode(drawn.token_ids, skip_special_tokens=True),
            usage_metadata=UsageMetadata(
                input_tokens=len(prompt_ids),
                output_tokens=len(drawn.token_ids),
                total_tokens=len(prompt_ids) + len(drawn.token_ids),
            ),
            response_metadata={
                "model_name": self.model_name,
                "finish_reason": drawn.finish_reason,
                "prompt_token_ids": list(prompt_ids),
                "token_ids": list(drawn.token_ids),
                "logprobs": {"content": [{"logprob": each} for each in drawn.logprobs]},
            },
        )


def _turn(message: BaseMessage) -> tuple[str, str]:
    role = _ROLES.get(message.type)
    if role is None:
        raise ConfigError(
            f"a message of type {message.type!r} cannot be rendered by a chat template; "
            f"known: {', '.join(_ROLES)}"
        )
    return role, message.text


class OwnCounter:
    """Counts tokens by the tokenizer of a model in this process."""

    source: Source = "file"

    def __init__(self, tokenizer: Any) -> None:  # Any: transformers has no types
        self._tokenizer = tokenizer
        # The problem and each draft are counted several times.
        self._length = lru_cache(maxsize=1024)(self._count)

    async def count(self, text: str) -> int:
        """Return the exact count."""
        return self._length(text)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(wellformed(text), add_special_tokens=False))


def policy_client(
    policy: Policy,
    tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
    *,
    name: str = "policy",
    window: int | None = None,
    max_in_flight: int = 1024,
    chat_template_kwargs: dict[str, Any] | None = None,  # Any: the template's own
) -> ModelClient:
    """Return a client whose calls a policy answers, token by token.

    Args:
        policy: Draws the tokens.
        tokenizer: Renders and encodes prompts, decodes replies, counts.
        name: The model's name in a run's record.
        window: Context window in tokens; None is the policy's own.
        max_in_flight: Calls at once, which may share the work.
        chat_template_kwargs: Variables of the chat template.
    """
    chat = PolicyChat(
        policy=policy,
        tokenizer=tokenizer,
        model_name=name,
        chat_template_kwargs=chat_template_kwargs or {},
    )
    return ModelClient(
        chat,
        counter=OwnCounter(tokenizer),
        # What fails in this process would fail again.
        retry=Retry(attempts=1),
        max_in_flight=max_in_flight,
        window=window if window is not None else policy.window,
    )

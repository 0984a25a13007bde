"""A model of inspect-ai as a chat model of LangChain, so that the graph can ask it."""

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.util import LimitExceededError
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr


class InspectChat(BaseChatModel):
    """Asks a model of inspect-ai, which counts, limits, retries and logs each call."""

    model_name: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    _model: Any = PrivateAttr()  # Any: no type of inspect-ai may be part of a pydantic schema here
    _limit: LimitExceededError | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, model: Model) -> "InspectChat":
        """Wrap a model."""
        chat = cls(model_name=str(model))
        chat._model = model
        return chat

    @property
    def limit(self) -> LimitExceededError | None:
        """The limit of the sample that a call ran into, None if none did.

        The graph takes it for a call that failed, and its caller has to raise it again.
        """
        return self._limit

    @property
    def _llm_type(self) -> str:
        return "inspect-ai"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> ChatResult:
        raise NotImplementedError("models of inspect-ai are asynchronous: call ainvoke")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: sampling parameters, each under its own name
    ) -> ChatResult:
        if self._limit is not None:
            raise self._limit  # one call too many says it for all
        config = GenerateConfig(stop_seqs=stop, **kwargs)
        try:
            output = await self._model.generate(_translated(messages), config=config)
        except LimitExceededError as error:
            self._limit = error
            raise
        return ChatResult(generations=[ChatGeneration(message=_reply(output))])


def _translated(messages: Sequence[BaseMessage]) -> list[ChatMessage]:
    return [
        (ChatMessageSystem if isinstance(each, SystemMessage) else ChatMessageUser)(
            content=each.text
        )
        for each in messages
    ]


def _reply(output: ModelOutput) -> AIMessage:
    """Return what the model said, its reasoning and its usage apart."""
    if output.error:
        raise RuntimeError(output.error)
    content = output.message.content if output.choices else ""
    blocks = [] if isinstance(content, str) else content
    reasoning = "".join(each.reasoning for each in blocks if isinstance(each, ContentReasoning))
    cut = output.stop_reason in {"max_tokens", "model_length"}
    return AIMessage(
        content=output.completion,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        response_metadata={"finish_reason": "length" if cut else "stop"},
        usage_metadata=None if output.usage is None else _usage(output.usage),
    )


def _usage(usage: ModelUsage) -> UsageMetadata:
    cached = usage.input_tokens_cache_read or 0
    prompt = usage.input_tokens + cached + (usage.input_tokens_cache_write or 0)
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=usage.output_tokens,
        total_tokens=prompt + usage.output_tokens,
        input_token_details={"cache_read": cached},
        output_token_details={"reasoning": usage.reasoning_tokens or 0},
    )

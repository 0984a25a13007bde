"""LangChain's OpenAI chat model, with what vLLM's endpoint adds to the protocol.

The stock class drops the token ids and the reasoning text, which vLLM sends as `reasoning` (older
servers: `reasoning_content`), and has no place for vLLM's request fields.
Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from types import MappingProxyType
from typing import Any, Self

import openai
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, model_validator

from pdr_graph.llm.pool import TIMEOUT, make_http_client
from pdr_graph.llm.wire import IDLE_S, TOTAL_S, plain_clients, plain_reply

_VLLM_FIELDS = frozenset(
    {
        "thinking_token_budget",
        "priority",
        "chat_template_kwargs",
        "return_token_ids",
        "cache_salt",
        "repetition_detection",
        "continue_final_message",
        "add_generation_prompt",
    }
)
"""Request fields that the OpenAI SDK does not know; they are sent in `extra_body`."""


LOOPS = MappingProxyType({"min_pattern_size": 17, "max_pattern_size": 32, "min_count": 16})
"""A loop, as vLLM ends it: up to 32 tokens over and over, for 272 to 512 tokens.

A loop of 5 tokens is also a loop of 20, so that shorter lengths need no check of their own. Each
length costs vLLM's scheduler half a microsecond for each token that it draws. A long number, or a
table of zeros, is shorter than these loops.
"""


class ChatVLLM(ChatOpenAI):
    """A chat model behind vLLM's OpenAI endpoint, or any server that speaks the protocol.

    Beyond `ChatOpenAI`, `additional_kwargs["reasoning_content"]` holds the reasoning text, and
    `response_metadata` holds `token_ids`, `prompt_token_ids` and `logprobs` if they were asked for.
    It never retries (`ModelClient` does, and counts what each attempt cost), waits for hours,
    and keeps its connections for as long as it lives: make one per process.
    """

    thinking_token_budget: int | None = None
    """Tokens after which the server closes the thought; needs `--reasoning-parser` there. None
    sets no budget."""
    priority: int | None = None
    """Scheduling priority, lower first; needs `--scheduling-policy priority` at the server."""
    chat_template_kwargs: dict[str, Any] | None = None  # Any: what the model's template takes
    """Variables of the model's chat template, such as `{"enable_thinking": False}`."""
    repetition_detection: dict[str, int] | None = None
    """When the server ends a reply that repeats itself, such as `LOOPS`; not all servers know this
    field. None leaves a loop to `max_tokens`."""
    return_token_ids: bool = False
    """Whether replies carry the token ids of prompt and completion."""
    idle_timeout_s: float = IDLE_S
    """Longest time of a stream without a piece of the answer, in seconds."""
    reply_timeout_s: float = TOTAL_S
    """Longest time of one request, in seconds."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:  # Any: pydantic hands over whatever the caller passed
        if isinstance(values, dict):
            values.setdefault("max_retries", 0)
            values.setdefault("stream_usage", True)
            values.setdefault("stream_chunk_timeout", None)
            if not values.keys() & {"http_async_client"}:
                values["http_async_client"] = make_http_client()
            if not values.keys() & {"timeout", "request_timeout"}:
                values["timeout"] = TIMEOUT
            if not values.keys() & {"api_key", "openai_api_key"}:
                values["api_key"] = SecretStr("EMPTY")
        return values

    @model_validator(mode="after")
    def _read_plainly(self) -> Self:
        for name, client in plain_clients(self).items():
            setattr(self, name, client)
        return self

    @property
    def base_url(self) -> str:
        """Address of the endpoint, with its `/v1`, without a trailing slash."""
        return str(self.root_async_client.base_url).rstrip("/")

    async def aclose(self) -> None:
        """Close the connections that this event loop opened."""
        await self.http_async_client._transport.aclose()  # type: ignore[union-attr]  # Any | None

    @property
    def _llm_type(self) -> str:
        return "vllm-chat"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return False: LangChain cannot import this class by its own namespace."""
        return False

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        # All servers of this protocol read `max_tokens`; not all know its newer name.
        if "max_completion_tokens" in payload:
            payload["max_tokens"] = payload.pop("max_completion_tokens")
        own = {name: getattr(self, name) for name in _VLLM_FIELDS & set(type(self).model_fields)}
        extra = {
            name: value for name, value in own.items() if value is not None and value is not False
        }
        extra.update({name: payload.pop(name) for name in _VLLM_FIELDS & payload.keys()})
        if extra:
            payload["extra_body"] = {**extra, **(payload.get("extra_body") or {})}
        return payload

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if "response_format" in kwargs or self._use_responses_api(kwargs):
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        return self._create_chat_result(await self.async_client.create(**payload))

    def _create_chat_result(
        self,
        response: dict[str, Any] | openai.BaseModel,
        generation_info: dict[str, Any] | None = None,
    ) -> ChatResult:
        body = response
        if not isinstance(body, dict):
            body = plain_reply(body.model_dump(warnings=False))
        result = super()._create_chat_result(body, generation_info)
        for generation, choice in zip(result.generations, body["choices"], strict=True):
            message = generation.message
            assert isinstance(message, AIMessage)
            _add_reasoning(message, choice["message"])
            if choice.get("token_ids") is not None:
                message.response_metadata["token_ids"] = choice["token_ids"]
            if body.get("prompt_token_ids") is not None:
                message.response_metadata["prompt_token_ids"] = body["prompt_token_ids"]
        return result

    def _convert_chunk_to_generation_chunk(
        self,
        chunk: dict[str, Any],
        default_chunk_class: type,
        base_generation_info: dict[str, Any] | None,
    ) -> ChatGenerationChunk | None:
        generation = super()._convert_chunk_to_generation_chunk(
            chunk, default_chunk_class, base_generation_info
        )
        choices = chunk.get("choices") or []
        if generation is None or not choices:
            return generation
        if isinstance(generation.message, AIMessageChunk):
            _add_reasoning(generation.message, choices[0].get("delta") or {})
        info = dict(generation.generation_info or {})
        if choices[0].get("token_ids") is not None:
            info["token_ids"] = choices[0]["token_ids"]
        if chunk.get("prompt_token_ids") is not None:
            info["prompt_token_ids"] = chunk["prompt_token_ids"]
        generation.generation_info = info or None
        return generation


def _add_reasoning(message: AIMessage, source: dict[str, Any]) -> None:
    text = source.get("reasoning_content")
    if text:
        message.additional_kwargs["reasoning_content"] = text

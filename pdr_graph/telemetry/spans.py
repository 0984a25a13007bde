"""Makes spans of a run from LangChain's callbacks.

    pdr run ─ round ─ drafter, distiller ─ chat
           └─ plan, refiner, verifier ─ chat

Names and attributes of calls follow OpenTelemetry's semantic conventions for generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from pdr_graph.llm.usage import read_usage

RUN = "pdr"
"""Name of the compiled graph, as `build_graph` sets it."""
OF_A_ROUND = frozenset({"drafter", "distiller"})
NODES = OF_A_ROUND | {"plan", "refiner", "verifier"}

_PARAMETERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
}


class SpanHandler(BaseCallbackHandler):
    """Opens a span where a run, a round, a node or a call begins, and ends it where that ends."""

    run_inline = True
    """Callbacks run in the task of the caller, so that a span begins when its work does."""

    def __init__(self, tracer: Tracer, *, content: bool = False) -> None:
        """Make spans by `tracer`; with `content`, those of calls hold prompts and replies."""
        self._tracer = tracer
        self._content = content
        self._open: dict[UUID, Span] = {}
        self._rounds: dict[UUID, tuple[int, Span]] = {}
        """The open round of each run, by the run's id."""
        self._parents: dict[UUID, UUID | None] = {}
        self._lock = threading.Lock()

    # Any: these signatures are LangChain's.
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Open the span of a run, or of one of its nodes."""
        name, about = more.get("name"), metadata or {}
        with self._lock:
            self._parents[run_id] = parent_run_id
            if name == RUN:
                span = self._start("pdr run", self._above(parent_run_id))
                span.set_attribute("pdr.thread_id", str(about.get("thread_id", "")))
                span.set_attribute("gen_ai.operation.name", "invoke_agent")
                span.set_attribute("gen_ai.agent.name", RUN)
                self._open[run_id] = span
            elif name in NODES and about.get("langgraph_node") == name and parent_run_id:
                self._open[run_id] = self._node(str(name), inputs, parent_run_id)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **more: Any) -> None:
        """End the span of a run or node."""
        self._end(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """End the span of a run or node with the error that stopped it."""
        self._end(run_id, error)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Open the span of one request to the model; each further attempt has its own."""
        asked: Mapping[str, Any] = more.get("invocation_params") or {}
        about = metadata or {}
        model = str(about.get("ls_model_name") or asked.get("model") or "")
        with self._lock:
            span = self._start(f"chat {model}".strip(), self._above(parent_run_id), SpanKind.CLIENT)
            self._open[run_id] = span
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.provider.name", str(about.get("ls_provider", "unknown")))
        if model:
            span.set_attribute("gen_ai.request.model", model)
        for name, attribute in _PARAMETERS.items():
            if isinstance(asked.get(name), int | float):
                span.set_attribute(attribute, asked[name])
        if self._content:
            told = [_message("user", each.text) for batch in messages for each in batch]
            span.set_attribute("gen_ai.input.messages", json.dumps(told))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **more: Any) -> None:
        """End the span of a request with what it cost."""
        span = self._open.get(run_id)
        message = _reply(response)
        if span is not None and message is not None:
            self._describe(span, message)
        self._end(run_id, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """End the span of a request that failed or was cancelled."""
        self._end(run_id, error)

    def _describe(self, span: Span, message: AIMessage) -> None:
        usage = read_usage(message)
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached)
        said = message.response_metadata
        if said.get("model_name"):
            span.set_attribute("gen_ai.response.model", str(said["model_name"]))
        if said.get("finish_reason"):
            span.set_attribute("gen_ai.response.finish_reasons", [str(said["finish_reason"])])
        if self._content:
            told = json.dumps([_message("assistant", message.text)])
            span.set_attribute("gen_ai.output.messages", told)

    def _node(self, name: str, inputs: object, run_id: UUID) -> Span:
        number = inputs.get("round", 0) if isinstance(inputs, dict) else 0
        parent = self._open.get(run_id)
        if name in OF_A_ROUND:
            parent = self._round(run_id, number)
        else:
            self._end_round(run_id)
        span = self._start(name, parent)
        span.set_attribute("pdr.node", name)
        span.set_attribute("pdr.round", number)
        if name == "drafter" and isinstance(inputs, dict):
            span.set_attribute("pdr.draft", inputs.get("index", 0))
        return span

    def _round(self, run_id: UUID, number: int) -> Span:
        current = self._rounds.get(run_id)
        if current is not None and current[0] == number:
            return current[1]
        self._end_round(run_id)
        span = self._start(f"round {number}", self._open.get(run_id))
        span.set_attribute("pdr.round", number)
        self._rounds[run_id] = (number, span)
        return span

    def _end_round(self, run_id: UUID, error: BaseException | None = None) -> None:
        current = self._rounds.pop(run_id, None)
        if current is not None:
            _finish(current[1], error)

    def _end(self, run_id: UUID, error: BaseException | None) -> None:
        with self._lock:
            self._end_round(run_id, error)
            self._parents.pop(run_id, None)
            span = self._open.pop(run_id, None)
        if span is not None:
            _finish(span, error)

    def _above(self, run_id: UUID | None) -> Span | None:
        """Return the nearest open span at or above a step."""
        while run_id is not None and run_id not in self._open:
            run_id = self._parents.get(run_id)
        return None if run_id is None else self._open[run_id]

    def _start(self, name: str, parent: Span | None, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        # Without a parent of ours, a span belongs to the caller's current span.
        context = None if parent is None else trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context=context, kind=kind)


def _finish(span: Span, error: BaseException | None) -> None:
    if error is not None:
        # Only the class: the text of an error may quote the prompt.
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR, type(error).__name__)
    span.end()


def _reply(response: LLMResult) -> AIMessage | None:
    generations: Sequence[Sequence[object]] = response.generations
    first = generations[0][0] if generations and generations[0] else None
    if isinstance(first, ChatGeneration) and isinstance(first.message, AIMessage):
        return first.message
    return None


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}

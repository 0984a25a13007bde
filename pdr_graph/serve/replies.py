"""OpenAI's answer objects, made of a run."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from pdr_graph.result import Result
from pdr_graph.serve.asked import Asked

Json = dict[str, Any]  # Any: plain JSON data


@dataclass(frozen=True, slots=True)
class Replies:
    """What all objects of one reply share."""

    asked: Asked
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result, content: str, reasoning: str, *, cut: bool) -> Json:
        """Return the reply to a request that does not stream."""
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message |= _thought(reasoning)
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(result, cut=cut),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(result),
            "pdr": report_of(result),
        }

    def opening(self) -> Json:
        """Return the first chunk of a stream; it names the thread, in case the stream breaks."""
        chunk = self._chunk({"role": "assistant", "content": ""})
        return {**chunk, "pdr": {"thread_id": self.asked.thread_id}}

    def thought(self, text: str) -> Json:
        """Return a chunk of progress or of the model's own thought."""
        return self._chunk(_thought(text))

    def text(self, text: str) -> Json:
        """Return a chunk of the answer."""
        return self._chunk({"content": text})

    def closing(self, result: Result, *, cut: bool) -> list[Json]:
        """Return the last chunks: why the answer ended, what the run was, what it cost."""
        last = self._chunk({}, finish_reason(result, cut=cut)) | {"pdr": report_of(result)}
        if not self.asked.include_usage:
            return [last]
        bill = self._head("chat.completion.chunk") | {"choices": [], "usage": usage_of(result)}
        return [last, bill]

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}


def finish_reason(result: Result, *, cut: bool) -> str:
    """Return `length` where the model ran into its limit before the answer's end."""
    solution = result.state["solution"]
    truncated = solution is not None and solution["truncated"]
    return "length" if truncated and not cut else "stop"


def usage_of(result: Result) -> Json:
    """Return B_total as OpenAI counts tokens, and the sequential budget beside it.

    All leaves are whole numbers: clients add up the usage of several calls, key by key.
    """
    ledger = result.ledger.to_json()
    rows = result.ledger.rows
    return {
        "prompt_tokens": ledger["prompt_tokens"],
        "completion_tokens": ledger["completion_tokens"],
        "total_tokens": ledger["b_total"],
        "prompt_tokens_details": {"cached_tokens": sum(row["cached_tokens"] for row in rows)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(row["reasoning_tokens"] for row in rows)
        },
        "pdr": {
            name: ledger[name]
            for name in (
                *("b_total", "b_seq", "b_total_nominal", "b_seq_nominal"),
                *("calls", "failed", "aborted"),
            )
        },
    }


def report_of(result: Result) -> Json:
    """Return what a client of PDR may want beyond the protocol."""
    report = {name: value for name, value in result.to_json().items() if name != "solution"}
    report["notes"] = list(result.notes)
    report["estimated"] = result.ledger.estimated
    report["rounds"] = result.state["round"]
    return report


def _thought(text: str) -> Json:
    # vLLM's name for it and the one that most clients read.
    return {"reasoning": text, "reasoning_content": text}

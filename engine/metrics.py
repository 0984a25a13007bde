"""vLLM's own counters, read from its `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx2


@dataclass(frozen=True, slots=True)
class Counters:
    """A server's counts since its start; the difference of two counts what happened in between."""

    prompt_tokens: int
    generation_tokens: int
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int
    """Prompt tokens that were found there."""

    def __sub__(self, earlier: "Counters") -> "Counters":
        return Counters(
            self.prompt_tokens - earlier.prompt_tokens,
            self.generation_tokens - earlier.generation_tokens,
            self.prefix_queries - earlier.prefix_queries,
            self.prefix_hits - earlier.prefix_hits,
        )


def read_metrics(root: str) -> dict[str, float]:
    """Return every metric by name, summed over its labels.

    Args:
        root: The server's address without `/v1`.
    """
    text = httpx2.get(f"{root}/metrics", timeout=30.0).raise_for_status().text
    return parse(text)


def parse(text: str) -> dict[str, float]:
    """Sum Prometheus samples by name.

    One raw row: `vllm:prompt_tokens_total{engine="0",model_name="m"} 81.0`
    """
    metrics: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            sample, _, value = line.rpartition(" ")
            name = sample.partition("{")[0]
            metrics[name] = metrics.get(name, 0.0) + float(value)
    return metrics


def counters(metrics: Mapping[str, float]) -> Counters:
    """Pick the counters of tokens."""
    return Counters(
        prompt_tokens=round(metrics["vllm:prompt_tokens_total"]),
        generation_tokens=round(metrics["vllm:generation_tokens_total"]),
        prefix_queries=round(metrics["vllm:prefix_cache_queries_total"]),
        prefix_hits=round(metrics["vllm:prefix_cache_hits_total"]),
    )

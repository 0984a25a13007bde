"""vLLM's worker for CPUs with a faster sampler: one random number for each token.

On a CPU, vLLM 0.31 samples with exponential noise over the whole vocabulary, and twice for a
request with a seed. For a model of half a billion parameters and 152,000 tokens this took two
thirds of the time. Here a token is found where one uniform number falls in the cumulative
probabilities. The distribution is the same, and each request still draws from the generator of its
own seed, but a seed gives other tokens than vLLM's sampler would.

Used as `--worker-cls benchmarks.studies.sampling_worker.SamplingWorker`, in vLLM's environment.
"""

from collections.abc import Mapping

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.studies.token_draw import draw


class SamplingWorker(CPUWorker):  # type: ignore[misc]  # vLLM has no types here
    """Runs the model as vLLM does, and samples by `draw`."""

    def load_model(self, *arguments: object, **named: object) -> None:
        """Load the model, and replace its sampler by ours."""
        super().load_model(*arguments, **named)
        self.model_runner.sampler.topk_topp_sampler.forward = forward


def forward(
    logits: torch.Tensor,
    generators: Mapping[int, torch.Generator],
    k: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[torch.Tensor, None]:
    """Sample as `TopKTopPSampler.forward_cpu` does; without processed log-probabilities."""
    return draw(apply_top_k_top_p(logits, k, p), generators), None

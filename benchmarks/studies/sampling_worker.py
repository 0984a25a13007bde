"""vLLM's worker for CPUs, drawing one random number for a token instead of one for each word.

vLLM 0.31 samples on a CPU by exponential noise over the whole vocabulary, for a request with a seed
twice: of a model of half a billion parameters and 152,000 words that took two thirds of the time.
Here a token is found where a single uniform number falls in the summed probabilities. It is the
same distribution, each request still draws from its own seed's generator, but the tokens of a seed
are others than vLLM's.

Used as `--worker-cls benchmarks.studies.sampling_worker.SamplingWorker`, in vLLM's environment.
"""

from collections.abc import Mapping

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.studies.drawing import draw


class SamplingWorker(CPUWorker):  # type: ignore[misc]  # vLLM has no types here
    """Runs the model as vLLM does, and samples by `draw`."""

    def load_model(self, *arguments: object, **named: object) -> None:
        """Load the model, and put our sampler into the place of its own."""
        super().load_model(*arguments, **named)
        self.model_runner.sampler.topk_topp_sampler.forward = forward


def forward(
    logits: torch.Tensor,
    generators: Mapping[int, torch.Generator],
    k: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[torch.Tensor, None]:
    """Sample as `TopKTopPSampler.forward_cpu` does; processed log-probabilities are not given."""
    return draw(apply_top_k_top_p(logits, k, p), generators), None

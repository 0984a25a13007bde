"""Whole weights for a vLLM engine in this process, on the same device; adapters are merged.

Each rank has an engine of its own and hands its weights over in memory. On a CPU vLLM computes with
packed copies of the matrices. A reload makes them anew where a layer's weights are loaded, which
those of a head that is tied to the embedding never are: it is packed again afterwards.

A model's weights by the names that its base model's files have, adapters merged in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pdr_graph.errors import ConfigError
from pdr_graph.train.push import PushError

try:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight once, under its name in the base model's files.

    Adapters are added to a copy: merging them in place and taking them out again would leave the
    base weights changed in their last bits.

    Raises:
        ConfigError: an adapter is of a kind that is not known how to merge.
    """
    if not isinstance(model, PeftModel):
        yield from ((name, weight.detach()) for name, weight in model.named_parameters())
        return
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    for name, weight in model.named_parameters():
        if f".{model.prefix}" in name or "lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if "modules_to_save" in name or "original_module" in name:
            raise ConfigError(f"module {plain!r} is trained whole beside adapters; use adapters")
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        merged = weight.detach()
        if layer is not None and name.endswith(".base_layer.weight"):
            with torch.no_grad():
                for adapter in layer.active_adapters:
                    merged = merged + layer.get_delta_weight(adapter).to(merged.dtype)
        yield plain, merged


@dataclass(frozen=True, slots=True)
class ColocatePush:
    """Loads weights into an engine of this process."""

    engine: Any  # Any: vLLM's `LLM`; vLLM is not installed where the types are checked
    """Made with `VLLM_ENABLE_V1_MULTIPROCESSING=0` in the environment."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "most likely the engine in this process does not take this model's weights as they "
            "are loaded; push 'lora' to a server, or draw by policy 'transformers'"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Hand a model's weights over, and forget what was computed by those before.

        Raises:
            ConfigError: the engine runs in another process.
            PushError: it did not take them.
        """
        if not hasattr(self.engine.llm_engine.engine_core, "engine_core"):
            raise ConfigError(
                "push 'colocate' needs vLLM's engine in this process; set "
                "VLLM_ENABLE_V1_MULTIPROCESSING=0"
            )
        try:
            self.engine.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": merged_weights(model)}
            )
            self.engine.apply_model(_pack_heads)
            forgotten = self.engine.reset_prefix_cache()
        # The boundary to vLLM, whose errors are of many kinds.
        except (RuntimeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise PushError(
                f"vLLM in this process did not take the weights of version {version}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        if not forgotten:
            raise PushError(
                "vLLM in this process keeps its prefix cache, which is of the old weights: calls "
                "are still running"
            )


def _pack_heads(model: nn.Module) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)

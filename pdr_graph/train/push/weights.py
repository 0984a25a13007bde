"""A model's weights by the names that its base model's files have, adapters merged in."""

from collections.abc import Iterator

from pdr_graph.errors import ConfigError

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

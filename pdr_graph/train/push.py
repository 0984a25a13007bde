"""How new weights reach the policy that draws the rollouts.

`InProcess`: the policy is the trained model itself. `ColocatePush`: vLLM in this process takes the
weights in memory. `LoraPush`: a vLLM server loads an adapter under a new name each time, since its
prefix cache goes by the name (https://docs.vllm.ai/en/latest/features/lora.html). `DiskReload`: a
vLLM server reads a folder in place of its own weights.

A head that is tied to the embedding needs care on a CPU, where vLLM 0.31 computes with packed
copies of matrices. A reload packs again the layers whose weights are loaded, and those of a tied
head never are. `ColocatePush` packs it afterwards; `DiskReload` refuses such a model: it would keep
its old head while every call answers (`tests/vllm/test_push_http.py` shows it).
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx2

from pdr_graph.errors import ConfigError, PDRError, install_command

try:
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

LORA_NEEDS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank RANK"
RELOAD_NEEDS = "VLLM_SERVER_DEV_MODE=1"
TIMEOUT_S = 600.0
"""Seconds for a request; a large model takes minutes to load."""
TRIES, BETWEEN_S = 20, 0.25
"""Tries to empty the prefix cache, and seconds between: a call may still use a part of it."""


class PushError(PDRError, ConnectionError):
    """The policy did not take the new weights."""


class WeightPush(Protocol):
    """Brings the policy that draws up to the trained model."""

    @property
    def cause(self) -> str:
        """A clause with the most likely cause of a drift after such a push, and its remedy."""

    def push(self, model: nn.Module, version: int) -> None:
        """Make the policy draw by a model's weights from now on.

        Called on every rank, before the first rollouts and then whenever weights have changed.

        Args:
            model: The trained model, unwrapped.
            version: Weight updates before it; rollouts record it.

        Raises:
            PushError: the policy did not take them.
        """


@dataclass(frozen=True, slots=True)
class InProcess:
    """For a policy that holds the trained module itself."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "the policy must hold the trained module itself and draw at the trainer's temperature "
            "from the whole distribution; a copy keeps its old weights"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Do nothing: the weights are there."""


@dataclass(frozen=True, slots=True)
class VLLMAdmin:
    """Administrative requests to a vLLM server."""

    base_url: str
    """Its OpenAI endpoint, with `/v1`."""
    api_key: str | None = None

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def post(self, path: str, body: Mapping[str, Any], *, needs: str) -> dict[str, Any]:
        """Send a request and return the reply, empty if it is no JSON object.

        Args:
            path: Below the address, with its slash.
            body: Sent as JSON.
            needs: How to start a server that knows this path.

        Raises:
            PushError: no server answers, it does not know the path, or it refuses.
        """
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            reply = httpx2.post(
                f"{self.root}{path}", json=dict(body), headers=headers, timeout=TIMEOUT_S
            )
        except httpx2.HTTPError as error:
            raise PushError(
                f"the server at {self.root} does not take weights: {error or type(error).__name__}"
                "; is it up?"
            ) from None
        if reply.status_code == 404 and "not found" in reply.text.lower()[:40]:
            raise PushError(f"the server at {self.root} has no {path}; start it with {needs}")
        if not reply.is_success:
            raise PushError(
                f"the server at {self.root} refuses {path}: HTTP {reply.status_code}: "
                f"{' '.join(reply.text.split())[:300]}"
            )
        try:
            value = reply.json()
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class DiskReload:
    """Has a server read all weights again; for models whose head is not tied."""

    server: VLLMAdmin
    folder: Path
    """Where weights are written; the server reads the same path."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "most likely the server did not read all weights again: it keeps the old head where "
            "that is tied to the embedding; train an adapter and push 'lora'"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Write a model's weights and have the server read them.

        Raises:
            ConfigError: the model's head is tied to its embedding, or it has an adapter.
            PushError: the server did not take them.
        """
        if isinstance(model, PeftModel):
            raise ConfigError("push 'disk' sends whole weights; adapters go by push 'lora'")
        if model.config.get_text_config().tie_word_embeddings:
            raise ConfigError(
                f"push 'disk' would not renew the head of {type(model).__name__}, which is tied to "
                "the embedding; train an adapter and push 'lora'"
            )
        self.send(model, version)

    def send(self, model: nn.Module, version: int) -> None:
        """Write and reload the weights without checking the model.

        Raises:
            PushError: the server did not take them.
        """
        if not PartialState().is_main_process:
            return
        path = (self.folder / f"weights-{version}").resolve()
        for left in self.folder.glob("weights-*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            model.save_pretrained(str(path))
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
            self.server.post("/collective_rpc", body, needs=RELOAD_NEEDS)
            self._forget_prefixes()
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _forget_prefixes(self) -> None:
        for _ in range(TRIES):
            # Servers before 0.31 send no body once they have done it.
            if self.server.post("/reset_prefix_cache", {}, needs=RELOAD_NEEDS).get("success", True):
                return
            time.sleep(BETWEEN_S)
        raise PushError(
            f"the server at {self.server.root} keeps its prefix cache, which holds the old "
            "weights, because other calls are running; give training a server of its own"
        )


@dataclass(slots=True)
class LoraPush:
    """Loads the adapter into a server, and has calls ask for it by its name."""

    server: VLLMAdmin
    folder: Path
    """Where adapters are written; the server reads the same path."""
    use: Callable[[str], None]
    """Has further calls ask for a model of this name; called on every rank."""
    _served: str | None = field(default=None, init=False)

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "most likely calls ask for another model than the adapter that was loaded last "
            f"({self._served}), or the server's base weights are not those that are trained"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Load a model's adapter, and unload the one before it.

        Raises:
            ConfigError: the model has no adapter.
            PushError: the server did not take it.
        """
        if not isinstance(model, PeftModel):
            raise ConfigError(
                f"push 'lora' sends an adapter, and {type(model).__name__} has none; train one, or "
                "push otherwise"
            )
        names = [f"policy-{version}-{uuid4().hex[:8]}"]
        broadcast_object_list(names)
        name = names[0]
        if PartialState().is_main_process:
            self._load(model, name)
            self._clear(name)
        self._served = name
        self.use(name)

    def _load(self, model: PeftModel, name: str) -> None:
        path = (self.folder / name).resolve()
        model.save_pretrained(str(path), save_embedding_layers=False)
        body = {"lora_name": name, "lora_path": str(path)}
        self.server.post("/v1/load_lora_adapter", body, needs=LORA_NEEDS)

    def _clear(self, name: str) -> None:
        """Remove other adapters from server and disk: the last one, and those of a killed run."""
        for path in self.folder.glob("policy-*"):
            if path.name == name:
                continue
            try:
                body = {"lora_name": path.name}
                self.server.post("/v1/unload_lora_adapter", body, needs=LORA_NEEDS)
            except PushError as error:
                # A killed run's server may have been restarted since.
                if path.name == self._served:
                    raise PushError(f"adapter {path.name!r} cannot be unloaded: {error}") from None
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ColocatePush:
    """Loads weights into a vLLM engine of this process; adapters are merged."""

    engine: Any  # Any: vLLM's `LLM`; vLLM is not installed where the types are checked
    """Made with `VLLM_ENABLE_V1_MULTIPROCESSING=0` in the environment."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "most likely the engine in this process does not take this model's weights; push "
            "'lora' to a server, or draw by policy 'transformers'"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Hand a model's weights over, and empty the cache of the old ones.

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
        # The boundary to vLLM, which has many kinds of errors.
        except (RuntimeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise PushError(
                f"vLLM in this process did not take the weights of version {version}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        if not forgotten:
            raise PushError(
                "vLLM in this process keeps its prefix cache, which holds the old weights, because "
                "calls are still running"
            )


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight once, adapters merged in, under its name in the base model's files.

    Adapters are added to a copy: merging in place and taking them out again would change the base
    weights in their last bits.

    Raises:
        ConfigError: an adapter is of a kind that cannot be merged here.
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


def _pack_heads(model: nn.Module) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)

"""How new weights reach the policy that draws the rollouts.

`in_process.py`: it is the trained model itself. `lora.py`: an adapter that a vLLM server loads
under a new name each time. `disk.py`: a folder that the server reads again. `colocate.py`: vLLM in
this process. `nccl.py`: a vLLM server on other GPUs.

What the trainer asks of every way to push weights.

No push: the policy draws from the trained module itself.

Requests that change what a vLLM server serves.

Whole weights for a vLLM server: written to a folder, which it then reads in place of its own.

Refused where the output head is tied to the embedding. On a CPU vLLM 0.31 computes the head with a
packed copy of its matrix, which such a reload does not make anew: the head keeps the old weights
while every call answers as if all were well. `tests/vllm/test_push_http.py` shows it; on other
devices it was not tried.

An adapter for a vLLM server: written to a folder that it reads, and loaded under a new name.

A new name for each version: the server's prefix cache goes by the name, and would answer from the
old weights. Source: https://docs.vllm.ai/en/latest/features/lora.html (dynamically serving).

Whole weights for a vLLM server on other GPUs, over NCCL, by TRL's client.

It gathers what FSDP or DeepSpeed has spread, merges adapters, and sends tensor by tensor. This
module is thin and was not run: it takes two GPUs or more. The server is started with
`VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}'`, and vLLM
is installed beside the trainer as well.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx2
from torch import nn

from pdr_graph.errors import ConfigError, PDRError


class PushError(PDRError, ConnectionError):
    """The policy did not take the new weights."""


class WeightPush(Protocol):
    """Brings the policy that draws up to the model that is trained."""

    @property
    def cause(self) -> str:
        """Half a sentence: what a drift after such a push most likely means, and what to do."""

    def push(self, model: nn.Module, version: int) -> None:
        """Make the policy draw by a model's weights from now on.

        Called on every rank, before the first rollouts and then whenever weights have changed.

        Args:
            model: The trained model, unwrapped.
            version: Number of weight updates before it; rollouts record it.

        Raises:
            PushError: the policy did not take them.
        """


@dataclass(frozen=True, slots=True)
class InProcess:
    """For a policy that holds the very module which is trained."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "the policy must hold the trained module itself and draw at the trainer's temperature "
            "from the whole distribution; a copy keeps its old weights"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Do nothing: the weights are there."""


TIMEOUT_S = 600.0
"""A large model takes minutes to load."""


@dataclass(frozen=True, slots=True)
class VLLMAdmin:
    """A vLLM server, as one who administers it calls it."""

    base_url: str
    """Its OpenAI endpoint, with `/v1`."""
    api_key: str | None = None

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def post(self, path: str, body: Mapping[str, Any], *, needs: str) -> dict[str, Any]:
        """Send a request and return the reply, empty where it is no JSON object.

        Args:
            path: Below the address, with its slash.
            body: Sent as JSON.
            needs: How a server has to be started that knows this path.

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


try:
    from accelerate import PartialState
    from peft import PeftModel
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


RELOAD_NEEDS = "VLLM_SERVER_DEV_MODE=1"
TRIES, BETWEEN_S = 20, 0.25
"""The prefix cache is not emptied while a call still holds a part of it."""


@dataclass(frozen=True, slots=True)
class DiskReload:
    """Has a server read the weights again; for models whose head is not tied."""

    server: VLLMAdmin
    folder: Path
    """Where weights are written; the server reads the same path."""

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return (
            "most likely the server did not read all weights again: it keeps the old head where "
            "that is tied to the embedding; push 'nccl' or 'lora', or train an untied model"
        )

    def push(self, model: nn.Module, version: int) -> None:
        """Write a model's weights and have the server read them.

        Raises:
            ConfigError: its head is tied to its embedding, or it has an adapter.
            PushError: the server did not take them.
        """
        if isinstance(model, PeftModel):
            raise ConfigError("push 'disk' sends whole weights, and adapters go by push 'lora'")
        if model.config.get_text_config().tie_word_embeddings:
            raise ConfigError(
                f"push 'disk' would leave the head of {type(model).__name__} as it was, for it is "
                "tied to the embedding: every call would answer by old weights; push 'nccl', or "
                "train an adapter and push 'lora'"
            )
        self.send(model, version)

    def send(self, model: nn.Module, version: int) -> None:
        """Do so, whatever the model.

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
            # Servers before 0.31 answer without a word, and have done it.
            if self.server.post("/reset_prefix_cache", {}, needs=RELOAD_NEEDS).get("success", True):
                return
            time.sleep(BETWEEN_S)
        raise PushError(
            f"the server at {self.server.root} keeps its prefix cache, which is of the old "
            "weights: calls of others are running there; give training a server of its own"
        )


try:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from peft import PeftModel
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


LORA_NEEDS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank RANK"


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
                f"push 'lora' sends an adapter, and {type(model).__name__} has none; train with "
                "one, or push otherwise"
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
        """Take other adapters from server and disk: the last, and what a killed run has left."""
        for path in self.folder.glob("policy-*"):
            if path.name == name:
                continue
            try:
                body = {"lora_name": path.name}
                self.server.post("/v1/unload_lora_adapter", body, needs=LORA_NEEDS)
            except PushError as error:
                # The server of a killed run may have been started anew since.
                if path.name == self._served:
                    raise PushError(f"adapter {path.name!r} cannot be unloaded: {error}") from None
            shutil.rmtree(path, ignore_errors=True)


try:
    from accelerate import Accelerator
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


@dataclass(slots=True)
class NcclPush:
    """Streams weights to a server's GPUs."""

    server: VLLMAdmin
    tokenizer: Any  # Any: transformers' tokenizer
    group_port: int = 51216
    """Where trainer and server meet; TRL's usual one."""
    _sender: Any = field(default=None, init=False)  # Any: TRL has no types

    @property
    def cause(self) -> str:
        """Half a sentence for a drift."""
        return "most likely the server holds another model than the one that is trained"

    def push(self, model: nn.Module, version: int) -> None:
        """Send a model's weights; the first time, meet the server before it.

        Raises:
            ConfigError: vLLM is not installed here.
            PushError: the server cannot be met, or did not take them.
        """
        try:
            if self._sender is None:
                self._sender = self._met(model)
            self._sender.model = model
            self._sender.sync_weights()
        # The boundary to TRL's client, which raises bare exceptions.
        except Exception as error:
            raise PushError(
                f"the server at {self.server.root} did not take the weights of version {version}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def _met(self, model: nn.Module) -> Any:
        from trl.generation.vllm_generation import VLLMGeneration

        return VLLMGeneration(
            model=model,
            accelerator=Accelerator(),
            processing_class=self.tokenizer,
            mode="server",
            server_base_url=self.server.root,
            group_port=self.group_port,
        )

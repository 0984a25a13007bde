"""An adapter for a vLLM server: written to a folder that it reads, and loaded under a new name.

A new name for each version: the server's prefix cache goes by the name, and would answer from the
old weights. Source: https://docs.vllm.ai/en/latest/features/lora.html (dynamically serving).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pdr_graph.errors import ConfigError

try:
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from peft import PeftModel
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

from pdr_graph.train.push.protocol import PushError
from pdr_graph.train.push.server import Server

NEEDS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank RANK"


@dataclass(slots=True)
class LoraPush:
    """Loads the adapter into a server, and has calls ask for it by its name."""

    server: Server
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
        self.server.post("/v1/load_lora_adapter", body, needs=NEEDS)

    def _clear(self, name: str) -> None:
        """Take other adapters from server and disk: the last, and what a killed run has left."""
        for path in self.folder.glob("policy-*"):
            if path.name == name:
                continue
            try:
                body = {"lora_name": path.name}
                self.server.post("/v1/unload_lora_adapter", body, needs=NEEDS)
            except PushError as error:
                # The server of a killed run may have been started anew since.
                if path.name == self._served:
                    raise PushError(f"adapter {path.name!r} cannot be unloaded: {error}") from None
            shutil.rmtree(path, ignore_errors=True)

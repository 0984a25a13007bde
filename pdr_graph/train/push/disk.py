"""Whole weights for a vLLM server: written to a folder, which it then reads in place of its own.

Refused where the output head is tied to the embedding. On a CPU vLLM 0.31 computes the head with a
packed copy of its matrix, which such a reload does not make anew: the head keeps the old weights
while every call answers as if all were well. `tests/vllm/test_push_http.py` shows it; on other
devices it was not tried.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import ConfigError

try:
    from accelerate import PartialState
    from peft import PeftModel
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

from pdr_graph.train.push.protocol import PushError
from pdr_graph.train.push.server import Server

NEEDS = "VLLM_SERVER_DEV_MODE=1"
TRIES, BETWEEN_S = 20, 0.25
"""The prefix cache is not emptied while a call still holds a part of it."""


@dataclass(frozen=True, slots=True)
class DiskReload:
    """Has a server read the weights again; for models whose head is not tied."""

    server: Server
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
            self.server.post("/collective_rpc", body, needs=NEEDS)
            self._forget_prefixes()
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _forget_prefixes(self) -> None:
        for _ in range(TRIES):
            # Servers before 0.31 answer without a word, and have done it.
            if self.server.post("/reset_prefix_cache", {}, needs=NEEDS).get("success", True):
                return
            time.sleep(BETWEEN_S)
        raise PushError(
            f"the server at {self.server.root} keeps its prefix cache, which is of the old "
            "weights: calls of others are running there; give training a server of its own"
        )

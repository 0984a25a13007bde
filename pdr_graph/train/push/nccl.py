"""Whole weights for a vLLM server on other GPUs, over NCCL, by TRL's client.

It gathers what FSDP or DeepSpeed has spread, merges adapters, and sends tensor by tensor. This
module is thin and was not run: it takes two GPUs or more. The server is started with
`VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}'`, and vLLM
is installed beside the trainer as well.
"""

from dataclasses import dataclass, field
from typing import Any

from pdr_graph.errors import ConfigError

try:
    from accelerate import Accelerator
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

from pdr_graph.train.push.protocol import PushError
from pdr_graph.train.push.server import Server


@dataclass(slots=True)
class NcclPush:
    """Streams weights to a server's GPUs."""

    server: Server
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

"""A judge that is a LoRA adapter of the model whose drafts it weighs (`train/judge.py` makes it).

The server of the model serves it beside the model, under a name of its own; with vLLM:

    vllm serve MODEL --enable-lora --lora-modules judge=FOLDER/adapter

A draft is weighed by one call of one token: "Is this solution correct?" The likelihood of "Yes"
becomes a probability by the two numbers that were fitted on other problems.
"""

import shlex
from typing import ClassVar, Literal

from pydantic import FiniteFloat, SecretStr

from pdr_graph.errors import CallError, ConfigError, EndpointAwayError, EndpointError
from pdr_graph.judge import DraftJudge, Evidence, UnweighedError, log_odds, probability
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.self_check import self_check
from pdr_graph.types import Draft


class AdapterJudge(DraftJudge):
    """Asks an adapter of the same server whether a draft is right."""

    reads: ClassVar[bool] = True

    kind: Literal["adapter"] = "adapter"
    adapter: str
    """Name under which the server serves it."""
    question: str
    """Template of what it is asked, with $problem and $candidates: what it was trained on."""
    scale: FiniteFloat
    shift: FiniteFloat
    """The weight is sigmoid(scale x log-odds of yes + shift)."""

    @property
    def asks(self) -> bool:
        """As `DraftJudge.asks`."""
        return True

    def command(self, folder: str = "FOLDER") -> str:
        """Return the command that serves the adapter; `folder` is the one that judge fit wrote."""
        adapter = shlex.quote(f"{self.adapter}={folder}/adapter")
        return f"vllm serve MODEL --enable-lora --lora-modules {adapter}"

    @property
    def _remedy(self) -> str:
        return f"serve it beside its model, as vLLM does by: {self.command()}"

    async def meet(self, client: ModelClient) -> None:
        """As `DraftJudge.meet`: refuse a server that does not serve the adapter."""
        model = client.named(self.adapter).model
        if not isinstance(model, ChatVLLM):
            return  # it cannot be asked what it serves
        http, key = model.http_async_client, model.openai_api_key
        assert http is not None  # ChatVLLM makes one
        assert isinstance(key, SecretStr)  # and sets one
        try:
            await probe_endpoint(
                http, model.base_url, api_key=key.get_secret_value(), model=self.adapter
            )
        except EndpointAwayError:
            raise
        except EndpointError as error:
            raise ConfigError(f"the judge is an adapter, and {error}; {self._remedy}") from None

    async def weigh(self, draft: Draft, evidence: Evidence) -> float:
        """As `DraftJudge.weigh`, by one call of one token."""
        client = evidence.client.named(self.adapter)
        try:
            said = await self_check(
                client, self.question, evidence.prompt, draft["solution"], evidence.spent
            )
        except CallError as error:
            if error.status != 404:
                raise
            raise UnweighedError(
                f"the server has no model named {self.adapter!r}; {self._remedy}"
            ) from None
        if said is None:
            raise UnweighedError(
                "the server does not tell the likeliest tokens"
                if client.lacks_alternatives
                else f"the adapter {self.adapter!r} says neither yes nor no; is it the one that "
                "the judge was fitted with?"
            )
        return probability(self.scale * log_odds(said) + self.shift)

"""The model that a server was started with, apart from adapters that a killed run left there."""

import re

from pdr_graph.errors import ConfigError
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.train.push.lora import NEEDS
from pdr_graph.train.push.server import Server

_PUSHED = re.compile(r"policy-\d+-[0-9a-f]{8}")
"""As `LoraPush` names them."""


async def base_model(server: Server) -> str:
    """Return the name of the one model that a server has but for adapters of ours.

    Raises:
        EndpointError: no server answers.
        ConfigError: it serves several.
    """
    models = await _models(server)
    own = [name for name in models if not _PUSHED.fullmatch(name)]
    if len(own) != 1:
        raise ConfigError(
            f"{server.base_url} serves {len(own)} models ({', '.join(own) or 'none'}); name the "
            "one that is trained by policy.served_model"
        )
    return own[0]


async def forget_adapters(server: Server) -> None:
    """Take adapters from a server that a run which was killed could not take back.

    Raises:
        EndpointError: no server answers.
        PushError: it does not let go of one.
    """
    for name in await _models(server):
        if _PUSHED.fullmatch(name):
            server.post("/v1/unload_lora_adapter", {"lora_name": name}, needs=NEEDS)


async def _models(server: Server) -> tuple[str, ...]:
    http = make_http_client()
    try:
        info = await probe_endpoint(http, server.base_url, api_key=server.api_key or "EMPTY")
    finally:
        await http.aclose()
    return info.models

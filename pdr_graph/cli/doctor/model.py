"""Checks of the model: endpoint, name, context window, token counts."""

import httpx2

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.cli.doctor.check import Check
from pdr_graph.config import PDRConfig
from pdr_graph.connect import only_model
from pdr_graph.errors import ConfigError
from pdr_graph.llm.endpoint import EndpointInfo, probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.tokens import FileCounter, ServerCounter, TokenCounter
from pdr_graph.local import find_weights
from pdr_graph.settings import Settings

SAMPLE = "What is 6 x 7?"


async def model_checks(settings: Settings) -> list[Check]:
    """Check what answers at the base URL, or what would in its place."""
    if settings.base_url is None:
        return _embedded(settings)
    key = settings.api_key.get_secret_value()
    async with make_http_client() as http:
        info = await probe_endpoint(http, settings.base_url, api_key=key, model=settings.model)
        endpoint = Check("endpoint", "ok", settings.base_url)
        try:
            name = settings.model or only_model(info, settings.base_url)
        except ConfigError as error:
            sentence, _, remedy = str(error).partition("; ")
            return [endpoint, Check("model", "fail", sentence, remedy)]
        return [
            endpoint,
            Check("model", "ok", name),
            _window(info),
            await _tokenizer(settings, http, settings.base_url, name, key),
        ]


def _embedded(settings: Settings) -> list[Check]:
    endpoint = Check(
        "endpoint",
        "warn",
        "none is configured; a small demonstration model runs here, often wrong",
        "set --base-url / PDR_BASE_URL",
    )
    weights = find_weights(settings.data_dir)
    if weights is None:
        size = "98 MB of weights are not here yet"
        return [endpoint, Check("model", "warn", size, "the first run fetches them")]
    return [endpoint, Check("model", "ok", str(weights))]


def _window(info: EndpointInfo) -> Check:
    if info.window is None:
        return Check(
            "context window",
            "warn",
            "the endpoint does not tell its size",
            "mind that prompt and --max-tokens fit it",
        )
    defaults = PDRConfig()
    needed = defaults.kappa + defaults.max_tokens + TEMPLATE_TOKENS
    if info.window < needed:
        return Check(
            "context window",
            "warn",
            f"{info.window:,} tokens; the default budgets need {needed:,} beside the problem",
            "lower --max-tokens and --kappa, or serve a larger window",
        )
    return Check("context window", "ok", f"{info.window:,} tokens")


async def _tokenizer(
    settings: Settings, http: httpx2.AsyncClient, base_url: str, model: str, key: str
) -> Check:
    counter: TokenCounter
    if settings.tokenizer is None:
        counter = ServerCounter(http, base_url, model, key)
    else:
        counter = FileCounter(settings.tokenizer)
    await counter.count(SAMPLE)
    if counter.source == "estimate":
        return Check(
            "token counts",
            "warn",
            "estimated: the endpoint has no /tokenize",
            "name a tokenizer.json by --tokenizer / PDR_TOKENIZER for exact bounds",
        )
    return Check("token counts", "ok", f"exact, by the {counter.source}")

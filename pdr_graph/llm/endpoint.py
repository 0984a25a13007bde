"""Asks an endpoint what it serves, before any draft is paid for."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from pdr_graph.errors import EndpointAwayError, EndpointError


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """What `GET /v1/models` and, on llama.cpp, `GET /props` say."""

    models: tuple[str, ...]
    window: int | None
    """Context window of one request, in tokens; None where the server does not tell."""


async def probe_endpoint(
    http: httpx2.AsyncClient, base_url: str, *, api_key: str, model: str | None = None
) -> EndpointInfo:
    """Ask the endpoint what it serves.

    Args:
        http: The client to ask with.
        base_url: Address with its `/v1`.
        api_key: Sent as a bearer token.
        model: The model that will be asked for; None if any will do.

    Raises:
        EndpointError: no answer, a refused key, or no such model.
    """
    _check_address(base_url, api_key)
    url = base_url.rstrip("/") + "/models"
    try:
        reply = await http.get(
            url, headers={"Authorization": f"Bearer {api_key}"}, timeout=httpx2.Timeout(10.0)
        )
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        text = str(error) or type(error).__name__
        cause = text.removeprefix("All connection attempts failed") or "connection refused"
        raise EndpointAwayError(
            f"no model endpoint answers at {base_url} ({cause}); start the server or set "
            "--base-url / PDR_BASE_URL"
        ) from None
    if reply.status_code in {401, 403}:
        raise EndpointError(
            f"the endpoint {base_url} refuses the API key (HTTP {reply.status_code}); set "
            "--api-key / PDR_API_KEY"
        )
    try:
        entries = reply.raise_for_status().json()["data"]
        models = tuple(str(entry["id"]) for entry in entries)
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        raise EndpointError(
            f"{url} answers HTTP {reply.status_code} without a list of models; is this an OpenAI "
            "endpoint, and does its base URL end in /v1?"
        ) from None
    if model is not None and model not in models:
        raise EndpointError(
            f"model {model!r} is not served at {base_url}; it serves: {', '.join(models) or 'none'}"
        )
    chosen: dict[str, Any] = next((entry for entry in entries if model in {None, entry["id"]}), {})
    return EndpointInfo(models, await _window(http, base_url, chosen))


async def chat_fields(http: httpx2.AsyncClient, base_url: str, *, api_key: str) -> frozenset[str]:
    """Return the fields of a chat request that the endpoint describes; empty if it describes none.

    Servers on FastAPI, such as vLLM and SGLang, have an `/openapi.json`; vLLM needs a second for
    it, once. A field that others do not know may be refused, so that it is sent only where it is
    described.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        reply = await http.get(
            f"{root}/openapi.json",
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(10.0),
        )
        page = reply.raise_for_status().json()
        post = page["paths"]["/v1/chat/completions"]["post"]
        schema = post["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return frozenset(page["components"]["schemas"][name]["properties"])
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def _check_address(base_url: str, api_key: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EndpointError(
            f"base URL {base_url!r} is not an http address; write it like http://127.0.0.1:8000/v1"
        )
    if not (api_key.isascii() and api_key.isprintable()):
        raise EndpointError(
            "the API key holds a character that no HTTP header can carry; check --api-key / "
            "PDR_API_KEY"
        )


async def _window(http: httpx2.AsyncClient, base_url: str, entry: dict[str, Any]) -> int | None:
    if isinstance(entry.get("max_model_len"), int):
        return int(entry["max_model_len"])
    # llama.cpp divides its context among slots; /props tells that of one slot.
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        reply = await http.get(f"{root}/props", timeout=httpx2.Timeout(10.0))
        return int(reply.raise_for_status().json()["default_generation_settings"]["n_ctx"])
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError):
        return None

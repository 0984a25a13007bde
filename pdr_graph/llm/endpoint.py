"""Asks an endpoint what it serves, before any draft is paid for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2

from pdr_graph.errors import (
    EndpointAwayError,
    EndpointError,
    keep_secret,
    keep_secrets_of,
    redacted,
)
from pdr_graph.llm.pool import ask_small
from pdr_graph.llm.retry import BadReplyError
from pdr_graph.validation import is_http_address


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """What `GET /v1/models` and, on llama.cpp, `GET /props` say."""

    models: tuple[str, ...]
    window: int | None
    """Context window of one request, in tokens; None where the server does not tell."""


class Remedies(NamedTuple):
    """Where the user has named an endpoint, for the sentences of errors."""

    url: str = "--base-url / PDR_BASE_URL"
    key: str = "--api-key / PDR_API_KEY"
    model: str = "--model / PDR_MODEL"


async def probe_endpoint(
    http: httpx2.AsyncClient,
    base_url: str,
    *,
    api_key: str,
    model: str | None = None,
    remedies: Remedies | None = None,
) -> EndpointInfo:
    """Ask the endpoint what it serves.

    Args:
        http: The client to ask with.
        base_url: Address with its `/v1`.
        api_key: Sent as a bearer token.
        model: The model that will be asked for; None if any will do.
        remedies: Where the user has named the endpoint; None means in the settings.

    Raises:
        EndpointError: no answer, a refused key, or no such model.
    """
    keep_secret(api_key)
    keep_secrets_of(base_url)
    remedies = remedies or Remedies()
    _check_address(base_url, api_key, remedies)
    url = base_url.rstrip("/") + "/models"
    shown = redacted(base_url)
    try:
        reply = await ask_small(http, "GET", url, api_key=api_key)
    except BadReplyError as error:
        raise EndpointError(f"{redacted(url)} sends no list of models: {error}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        text = str(error) or type(error).__name__
        cause = text.removeprefix("All connection attempts failed") or "connection refused"
        raise EndpointAwayError(
            f"no model endpoint answers at {shown} ({cause}); start the server or set "
            f"{remedies.url}"
        ) from None
    if reply.status in {401, 403}:
        raise EndpointError(
            f"the endpoint {shown} refuses the API key (HTTP {reply.status}); set {remedies.key}"
        )
    try:
        if not 200 <= reply.status < 300:
            raise ValueError
        entries = json.loads(reply.content)["data"]
        models = tuple(str(entry["id"]) for entry in entries)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EndpointError(
            f"{redacted(url)} answers HTTP {reply.status} without a list of models; is this an "
            "OpenAI endpoint, and does its base URL end in /v1?"
        ) from None
    if model is not None and model not in models:
        raise EndpointError(
            f"model {model!r} is not served at {shown}; it serves: {listed(models)}"
        )
    chosen: dict[str, Any] = next((entry for entry in entries if model in {None, entry["id"]}), {})
    return EndpointInfo(models, await _window(http, base_url, api_key, chosen))


def listed(models: Sequence[str]) -> str:
    """Return the names of models for a sentence; if there are many, only the first ones."""
    few = ", ".join(name[:_LONGEST_NAME] for name in models[:_MOST_NAMES])
    more = len(models) - _MOST_NAMES
    return f"{few} and {more} more" if more > 0 else few or "none"


_MOST_NAMES = 20
"""Models that a sentence names."""
_LONGEST_NAME = 200
"""Characters of a model's name that a sentence shows."""
_MOST_WINDOW = 2**31
"""Most tokens of a context window; a larger number is refused."""


async def chat_fields(http: httpx2.AsyncClient, base_url: str, *, api_key: str) -> frozenset[str]:
    """Return the fields of a chat request that the endpoint describes; empty if it describes none.

    Servers on FastAPI, such as vLLM and SGLang, have an `/openapi.json`; vLLM needs a second for
    it, once. Other servers may refuse a field that they do not know, so it is sent only where it is
    described.
    """
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        reply = await ask_small(http, "GET", f"{root}/openapi.json", api_key=api_key)
        page = json.loads(reply.content)
        post = page["paths"]["/v1/chat/completions"]["post"]
        schema = post["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return frozenset(page["components"]["schemas"][name]["properties"])
    except (*_UNREADABLE, AttributeError):
        return frozenset()


_UNREADABLE = (
    *(httpx2.HTTPError, BadReplyError, OSError, ValueError, KeyError, TypeError, RecursionError),
)
"""Errors that end the reading of an optional page of a server."""


def _check_address(base_url: str, api_key: str, remedies: Remedies) -> None:
    if not is_http_address(base_url):
        raise EndpointError(
            f"base URL {base_url!r} is not an http address; write it like http://127.0.0.1:8000/v1"
        )
    if not (api_key.isascii() and api_key.isprintable()):
        raise EndpointError(
            f"the API key holds a character that no HTTP header can carry; check {remedies.key}"
        )


async def _window(
    http: httpx2.AsyncClient, base_url: str, api_key: str, entry: dict[str, Any]
) -> int | None:
    if (window := _size(entry.get("max_model_len"))) is not None:
        return window
    # llama.cpp divides its context among slots; /props tells that of one slot.
    root = base_url.rstrip("/").removesuffix("/v1")
    try:
        reply = await ask_small(http, "GET", f"{root}/props", api_key=api_key)
        return _size(json.loads(reply.content)["default_generation_settings"]["n_ctx"])
    except _UNREADABLE:
        return None


def _size(value: object) -> int | None:
    """Return the size of a window; None for a value that cannot be one."""
    return value if type(value) is int and 0 < value < _MOST_WINDOW else None

"""How many model tokens a text has: asked of the server, read off a tokenizer file, or estimated.

vLLM answers `POST /tokenize` with `{"prompt": ...}`, llama.cpp with `{"content": ...}`. Nothing is
ever downloaded: a tokenizer file is one that the user names.
"""

import asyncio
import logging
from pathlib import Path
from typing import Literal, Protocol

import httpx2

from pdr_graph.errors import ConfigError
from pdr_graph.llm.estimate import estimate_tokens
from pdr_graph.llm.wellformed import wellformed

logger = logging.getLogger(__name__)

Source = Literal["server", "file", "estimate"]


class TokenCounter(Protocol):
    """Counts the model tokens of a text."""

    async def count(self, text: str) -> int:
        """Return the length of `text` in model tokens, special tokens not added."""

    @property
    def source(self) -> Source:
        """Where the last count came from."""


class EstimateCounter:
    """The conservative estimate of `estimate_tokens`."""

    source: Source = "estimate"

    async def count(self, text: str) -> int:
        """Return the estimate."""
        return estimate_tokens(text)


class FileCounter:
    """A Hugging Face `tokenizer.json` on disk, through the `tokenizers` library."""

    source: Source = "file"

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: `tokenizers` is not installed, or the file is not a tokenizer.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                "a tokenizer file needs tokenizers: pip install 'pdr-graph[tokenizers]'"
            ) from None
        if file.is_dir():
            file = file / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"tokenizer file {str(file)!r} does not exist")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  # the library raises bare Exception
            raise ConfigError(f"{str(file)!r} is not a tokenizer.json: {error}") from None

    async def count(self, text: str) -> int:
        """Return the exact count; a long text is counted off the event loop."""
        if len(text) < 4096:  # well under a millisecond
            return self._count(text)
        return await asyncio.to_thread(self._count, text)

    def _count(self, text: str) -> int:
        readable = wellformed(text)
        # A batch of one: only counting batches lets other threads run meanwhile.
        return len(self._tokenizer.encode_batch([readable], add_special_tokens=False)[0].ids)


class ServerCounter:
    """The endpoint's own tokenizer, or the estimate where it offers none."""

    def __init__(self, http: httpx2.AsyncClient, base_url: str, model: str, api_key: str) -> None:
        self._http = http
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/tokenize"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._form: Literal["vllm", "llama.cpp", "none"] | None = None
        self._source: Source = "estimate"

    @property
    def source(self) -> Source:
        """`server`, or `estimate` after a server that does not count."""
        return self._source

    async def count(self, text: str) -> int:
        """Return the server's count, else the estimate."""
        if not text:
            return 0
        if self._form is None:
            self._form = await self._find_form()
        tokens = await self._ask(self._form, text) if self._form != "none" else None
        self._source = "estimate" if tokens is None else "server"
        return estimate_tokens(text) if tokens is None else tokens

    async def _find_form(self) -> Literal["vllm", "llama.cpp", "none"]:
        for form in ("vllm", "llama.cpp"):
            # llama.cpp answers vLLM's form too, with no tokens: only a positive count tells.
            if await self._ask(form, "one two three"):
                return form
        return "none"

    async def _ask(self, form: str, text: str) -> int | None:
        readable = wellformed(text)
        body = (
            {"model": self._model, "prompt": readable, "add_special_tokens": False}
            if form == "vllm"
            else {"content": readable, "add_special": False}
        )
        try:
            reply = await self._http.post(self._url, json=body, headers=self._headers)
            answer = reply.raise_for_status().json()
            return int(answer["count"]) if "count" in answer else len(answer["tokens"])
        except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("tokenize.unavailable url=%s form=%s error=%s", self._url, form, error)
            return None

"""Counts text in model tokens, and cuts it to a number of them.

The server is asked (vLLM: `POST /tokenize` with `{"prompt": ...}`, llama.cpp: with
`{"content": ...}`), or a tokenizer file that the user names is read, or the count is estimated.
Nothing is ever downloaded.
"""

import asyncio
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import httpx2

from pdr_graph.errors import ConfigError, install_command, redacted
from pdr_graph.llm.pool import ask_small
from pdr_graph.llm.retry import BadReplyError

logger = logging.getLogger(__name__)

Source = Literal["server", "file", "estimate"]

_PIECES = re.compile(r"[A-Z]+|[a-z]+|[^\x00-\x7f]+|[ ]+|[^A-Za-z ]")


def estimate_tokens(text: str) -> int:
    """Return a conservative estimate of the length of `text` in model tokens.

    A tokenizer splits text where letter case, digits, marks and white space change, and spends at
    least one token on each piece. The estimate charges a token for every 3 letters begun in a
    piece, for every digit, mark and line break, and for every UTF-8 byte beyond ASCII. On English
    prose that is about 1.5 times the true count; byte-level tokenizers stay below it on the texts
    of `tests/test_tokens.py`.
    """
    return sum(_cost(piece) for piece in _PIECES.findall(text))


def _cost(piece: str) -> int:
    first = piece[0]
    if first == " ":
        return (len(piece) - 1 + 3) // 4  # one space belongs to the word after it
    if first > "\x7f":
        return len(piece.encode("utf-8", "surrogatepass"))
    if first.isalpha():
        return (len(piece) + 2) // 3
    return len(piece)


_TEXTS = ("text", "content", "thinking", "reasoning", "reasoning_content", "summary", "output_text")
"""Names under which a part of a message has its text."""


_DEEPEST = 64
"""Levels of nesting in which text is looked for."""


def flat_text(value: object, depth: int = 0) -> str:
    """Return the text of a value that may be nested; what is no text is left out.

    >>> flat_text([{"type": "reasoning.text", "text": "2 + "}, ["2"]])
    '2 + 2'
    """
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list | tuple):
        return "".join(flat_text(each, depth + 1) for each in value)
    if isinstance(value, dict):
        found = (flat_text(value.get(name), depth + 1) for name in _TEXTS)
        return next((text for text in found if text), "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else ""


_LOOP_TAIL = 8192
"""Characters at the end of a text in which a loop is looked for."""


def is_looping(text: str) -> bool:
    """Tell whether a text ends in a loop: the same words, exactly, over and over.

    A loop has three turns that span 200 characters, or eight that span 40. Turns that differ, as in
    counting up, are no loop. The time is linear in the text.

    >>> is_looping("So let us see. " + "But wait, no. " * 20)
    True
    """
    # Read backwards, a loop is a text that repeats its own start from some place on.
    tail = text[: -_LOOP_TAIL - 1 : -1]
    if tail.count(tail[:6]) < 3:
        return False
    alike, left, right = [0] * len(tail), 0, 0
    for start in range(1, len(tail) // 3 + 1):
        length = min(right - start, alike[start - left]) if start < right else 0
        while start + length < len(tail) and tail[length] == tail[start + length]:
            length += 1
        if start + length > right:
            left, right = start, start + length
        alike[start] = length
        span = start + length
        if (span >= 200 and span >= 3 * start) or (span >= 40 and span >= 8 * start):
            return True
    return False


def wellformed(text: str) -> str:
    """Return `text` with every lone surrogate replaced by a question mark.

    JSON may carry half of a surrogate pair, and Python keeps it in a string that no request, file
    or store can encode. One such draft would fail every call that reads it.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


class TokenCounter(Protocol):
    """Counts the model tokens of a text."""

    async def count(self, text: str) -> int:
        """Return the length of `text` in model tokens, special tokens not added."""

    @property
    def source(self) -> Source:
        """Where the last count came from."""


class EstimateCounter:
    """Counts by `estimate_tokens`."""

    source: Source = "estimate"

    async def count(self, text: str) -> int:
        """Return the estimate."""
        return estimate_tokens(text)


class FileCounter:
    """Counts by a Hugging Face `tokenizer.json` on disk, with the `tokenizers` library."""

    source: Source = "file"

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: `tokenizers` is not installed, or the file is no tokenizer.
        """
        file = tokenizer_file(file)
        from tokenizers import Tokenizer

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
        # A batch of one: only batches are encoded without holding up other threads.
        return len(self._tokenizer.encode_batch([readable], add_special_tokens=False)[0].ids)


def tokenizer_file(named: Path) -> Path:
    """Return the `tokenizer.json` that a setting names by itself or by its folder.

    Raises:
        ConfigError: there is none, or `tokenizers` is not installed.
    """
    if find_spec("tokenizers") is None:
        raise ConfigError(f"a tokenizer file needs tokenizers: {install_command('tokenizers')}")
    file = named / "tokenizer.json" if named.is_dir() else named
    if not file.is_file():
        raise ConfigError(f"tokenizer file {str(file)!r} does not exist")
    return file


class ServerCounter:
    """Counts by the endpoint's own tokenizer, or by the estimate where it offers none."""

    def __init__(self, http: httpx2.AsyncClient, base_url: str, model: str, api_key: str) -> None:
        self._http = http
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/tokenize"
        self._model = model
        self._api_key = api_key
        self._form: Literal["vllm", "llama.cpp", "none"] | None = None
        self._slow = 0
        self.source: Source = "estimate"
        """`server`; `estimate` where the server did not count the last text."""

    async def count(self, text: str) -> int:
        """Return the server's count, else the estimate."""
        if not text:
            return 0
        if self._form is None:
            self._form = await self._find_form()
        tokens = await self._ask(self._form, text) if self._form != "none" else None
        self.source = "estimate" if tokens is None else "server"
        return estimate_tokens(text) if tokens is None else tokens

    async def aclose(self) -> None:
        """Close the connections that this event loop opened."""
        await self._http._transport.aclose()

    async def _find_form(self) -> Literal["vllm", "llama.cpp", "none"]:
        for form in ("vllm", "llama.cpp"):
            # llama.cpp answers vLLM's form too, but with no tokens: only a positive count tells.
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
        size = len(readable.encode())
        try:
            reply = await ask_small(
                self._http,
                "POST",
                self._url,
                api_key=self._api_key,
                json=body,
                # Room for the id and the text of one token for each byte, since there are no more
                # tokens.
                max_bytes=_SMALL_COUNT + 64 * size,
                total_s=_COUNT_S,
            )
            if not 200 <= reply.status < 300:
                raise ValueError(f"HTTP {reply.status}")
            answer = json.loads(reply.content)
            tokens = answer["count"] if "count" in answer else len(answer["tokens"])
            if type(tokens) is not int or not 0 <= tokens <= size + _SPECIAL:
                raise ValueError(f"a count of {tokens!r:.40} for {size} bytes")
        except (
            *(httpx2.HTTPError, BadReplyError, OSError, ValueError, KeyError, TypeError),
            RecursionError,
        ) as error:
            self._failed(form, error)
            return None
        self._slow = 0
        return tokens

    def _failed(self, form: str, error: Exception) -> None:
        logger.debug(
            "tokenize.unavailable url=%s form=%s error=%s",
            redacted(self._url),
            form,
            redacted(str(error)),
        )
        self._slow += isinstance(error, BadReplyError)
        if self._slow >= _PATIENCE and self._form != "none":
            logger.warning("tokenize.given_up %s; text is counted by an estimate", error)
            self._form = "none"


_COUNT_S = 30.0
"""Seconds that a count may take at a busy server."""
_SMALL_COUNT = 2**16
"""Bytes of a count's reply beside its tokens."""
_SPECIAL = 16
"""Tokens that a server may add to a text."""
_PATIENCE = 3
"""Replies in a row that are too slow or too large, after which the server is not asked again."""


CUT = "[...]"
"""Mark that stands where text was cut."""

_CHARS_PER_TOKEN = 16
"""Text beyond this many characters per allowed token is dropped before anything is counted: no
tokenizer packs prose that densely, and a million characters need not cross the network."""


async def clip(
    text: str, limit: int, counter: TokenCounter, *, keep: str = "", end: bool = False
) -> str:
    """Cut `text` to at most `limit` model tokens; its head stays, or its end.

    The counter may be a server, so the cut is found in a few counts.

    Args:
        text: Anything at all.
        limit: In model tokens, at least 0.
        counter: Counts the tokens.
        keep: A closing line that survives the cut, unless it alone passes the limit.
        end: Whether the end of the text stays, which has no need of a closing line.
    """
    if surely_fits(text, limit):
        return text
    size = len(text)
    if size <= limit * _CHARS_PER_TOKEN:
        tokens = await counter.count(text)
        if tokens <= limit:
            return text
        size = int(size * limit / tokens)
    else:
        size = limit * _CHARS_PER_TOKEN
    if keep and not surely_fits(keep, limit // 2) and await counter.count(keep) > limit:
        keep = ""
    while True:
        part = (CUT, text[len(text) - size :].lstrip()) if end else (text[:size].rstrip(), CUT)
        shorter = "\n".join(filter(None, (*part, keep)))
        tokens = await counter.count(shorter)
        if tokens <= limit:
            return shorter
        if size == 0:
            # Not even the mark fits.
            return keep if keep and await counter.count(keep) <= limit else ""
        size = min(size - 1, int(size * limit / tokens * 0.95))


def surely_fits(text: str, limit: int) -> bool:
    """Tell whether `text` is so short that it need not be counted.

    No tokenizer makes more tokens than bytes, plus one for the leading space that sentencepiece
    models add.
    """
    return len(text) < limit and len(text.encode("utf-8", "surrogatepass")) < limit

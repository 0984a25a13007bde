"""Why a call failed, in the server's own words, and when it is sent again.

Servers of the same protocol agree on no error body. It may be `{"error": {"message": …}}` (OpenAI,
vLLM, llama.cpp), the same without `error` (SGLang), `{"error": "…"}` (TGI, Ollama), `{"detail": …}`
with a text or a list (FastAPI), a list around it (Google), another body within the message
(OpenRouter, LiteLLM), plain text, or a proxy's page of HTML.

429, 5xx and lost connections are tried again, after the server's Retry-After where it names one.
Any other refusal would only be repeated. Waits and attempts are capped, so that a dead endpoint
ends in an error and not in silence.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time
from typing import Any

import httpx2
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from pdr_graph.errors import CallError, CallLostError, ContextWindowError, PDRError, redacted

LONGEST = 400
"""Characters of a server's words that are handed on."""


class BadReplyError(PDRError, RuntimeError):
    """A reply without a usable answer: broken off, an error in its place, or of an unknown form."""

    def __init__(
        self,
        message: str,
        *,
        body: object = None,
        status: int | None = None,
        broken: bool = False,
        transient: bool = False,
        said: str = "",
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the reply.

        Args:
            message: The sentence for the user.
            body: What came in place of an answer, if anything did; kept without secrets.
            status: The code that an error object states; None if it states none.
            broken: Whether the connection, or the server, ended the reply before it was whole.
            transient: Whether the same request may succeed later; a broken reply may.
            said: What the model had said until then.
            usage: What the server says the reply cost; None if it said nothing.
        """
        self.body = _without_secrets(body)
        self.status = status
        self.broken = broken
        self.transient = transient or broken
        self.said = said
        self.usage = usage
        super().__init__(message)

    @property
    def is_refusal(self) -> bool:
        """Whether the server turned the request away, which costs nothing."""
        refused = self.status is not None and 400 <= self.status < 500
        return refused and not self.said and self.usage is None


def call_error(error: Exception) -> CallError:
    """Say in one sentence why a call failed."""
    status = status_of(error)
    body = _body_of(error)
    if status is None:
        lead = "connection to the model lost" if is_connection_error(error) else "call failed"
        text = words_of(str(error)) or words_of(body) or type(error).__name__
    else:
        lead = f"HTTP {status}"
        text = words_of(body) or _phrase(status, body)
    kind = CallLostError if is_transient(error) else CallError
    if is_overflow(error):
        kind = ContextWindowError
    # Redacted before it is cut: a cut may leave half of a key.
    return kind(f"{lead}: {redacted(text)[:LONGEST]}", status=status)


def scrubbed(error: BaseException) -> BaseException:
    """Take keys and passwords out of another package's error and of its causes; return it.

    Servers quote the key that they refuse, and HTTP libraries the address. Tracers of calls receive
    the error as it is.
    """
    for link in _causes(error):
        link.args = tuple(redacted(each) if isinstance(each, str) else each for each in link.args)
        for name in ("message", "body"):
            value = getattr(link, name, None)
            if value is not None and redacted(str(value)) != str(value):
                with suppress(AttributeError):
                    setattr(link, name, _without_secrets(value))
    return error


def _without_secrets(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict) and depth < _DEEPEST:
        return {name: _without_secrets(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list) and depth < _DEEPEST:
        return [_without_secrets(each, depth + 1) for each in value]
    return value if isinstance(value, int | float | None) else redacted(str(value))


def status_in(body: object) -> int | None:
    """Return the HTTP status that an error object names, by number or by words; None if none."""
    for value in _labels(body):
        if value.isdecimal() and 400 <= int(value) < 600:
            return int(value)
    return 400 if any(_REFUSAL.search(value) for value in _labels(body)) else None


_REFUSAL = re.compile(
    r"invalid|bad_?request|validation|authenti|permission|not_?found|content_?filter", re.I
)


# ---------------------------------------------------------------------------- the server's words

_WORDS = (
    *("message", "error", "detail", "details", "error_message", "errorMessage", "error_msg"),
    *("description", "msg", "reason", "title", "errors"),
)
"""Names under which servers put their words, the most telling first."""
_LABELS = ("code", "type", "error_type", "status", "status_code")
"""Names under which they put a short label, for programs."""
_HTML = re.compile(r"<\s*(?:!doctype|html|head|body|title|h1|center|p|div|pre)\b", re.I)
_TITLE = re.compile(r"<(title|h1)\b[^>]*>([^<]{1,80})</\1>", re.I)
_DEEPEST = 6
"""Levels of nesting that are searched."""


def words_of(value: object, depth: int = 0) -> str:
    """Return what an error body says, in one line; empty if it has no words for a reader.

    >>> words_of({"detail": [{"loc": ["body", "seed"], "msg": "Input should be a number"}]})
    'body.seed: Input should be a number'
    """
    if depth > _DEEPEST:
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return _line(value, depth)
    if isinstance(value, list | tuple):
        said = [words for each in value[:3] if (words := words_of(each, depth + 1))]
        return "; ".join(said)
    if not isinstance(value, Mapping):
        return ""
    words = next((words for name in _WORDS if (words := words_of(value.get(name), depth + 1))), "")
    place = value.get("loc")
    if words and isinstance(place, list | tuple):
        words = f"{'.'.join(map(str, place))}: {words}"
    metadata = value.get("metadata")
    if isinstance(metadata, Mapping) and (raw := words_of(metadata.get("raw"), depth + 1)):
        # OpenRouter: "Provider returned error", and beside it what the provider said.
        words = f"{words}: {raw}" if words else raw
    return words or next((each for each in _labels(value, depth) if not each.isdecimal()), "")


def _line(text: str, depth: int) -> str:
    text = text.strip()
    if text[:1] in {"{", "["}:
        try:
            return words_of(json.loads(text), depth + 1)
        except (ValueError, RecursionError):
            pass
    if _HTML.search(text[:2000]):
        # A proxy's page: its heading, or else nothing that is worth a reader's time.
        title = _TITLE.search(text[:4000])
        return " ".join(html.unescape(title.group(2)).split()) if title else ""
    return " ".join(text.split())


def _phrase(status: int, body: object) -> str:
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "no reason given"
    is_page = isinstance(body, str) and _HTML.search(body[:2000])
    return f"{phrase} (the answer is a page of HTML)" if is_page else phrase


def _labels(value: object, depth: int = 0) -> Iterator[str]:
    """Yield every code and type of an error body."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list | tuple):
        for each in value[:3]:
            yield from _labels(each, depth + 1)
    if not isinstance(value, Mapping):
        return
    for name in _LABELS:
        label = value.get(name)
        if isinstance(label, str | int) and not isinstance(label, bool) and label != "":
            yield " ".join(str(label).split())
    for inner in value.values():
        yield from _labels(inner, depth + 1)


def _body_of(error: BaseException) -> object:
    """Return the body that an SDK's error carries: as it was sent, before the SDK took it apart."""
    response = getattr(error, "response", None)
    try:
        # Every SDK's response has the text; of a stream that was not read it raises.
        text = getattr(response, "text", None)
    except Exception:  # noqa: BLE001  # each HTTP library has its own error for it
        text = None
    if isinstance(text, str) and text.strip():
        return text
    return getattr(error, "body", None)


# ---------------------------------------------------------------------------- the context window

_WINDOW = re.compile(r"context[\s_-]*(?:length|size|window|limit)|\bcontext\b.*\b(?:length|size)")
"""The window by its name; it has overflowed if a word of `_TOO_MUCH` stands beside it."""
_TOO_MUCH = re.compile(
    r"exceed|overflow|maximum|longer|larger|greater|beyond|too |only|at most|limit|reduce|fit|"
    r"not enough|no smaller"
)
_OVERFLOWS = re.compile(
    "|".join(
        (
            r"(?:prompt|inputs?|messages?)\b(?: \([^)]*\))? (?:is |are )?too (?:long|large)",
            r"(?:prompt|inputs?|messages?)\b.{0,80}\blonger than\b",
            r"maximum (?:model|prompt|input|sequence) length|max_(?:model|seq|input)_?len",
            r"(?:inputs?|prompt|total|requested|model)`? (?:input )?tokens?\b.{0,80}"
            r"(?:exceed|must be <=)",
            r"`inputs` must have less than \d+ tokens",
            r"exceed\w* (?:the )?(?:model|configured|input|prompt)\b.{0,30}(?:token|length|limit)",
            r"too many (?:input |prompt )?tokens|token limit exceeded|too large for model with",
            r"prompt length\b.{0,120}exceed",
            r"(?:reduce|shorten) (?:the|your|their) (?:length|prompt|input|messages)",
        )
    )
)
"""An overflow in other words: Anthropic and Bedrock, vLLM and SGLang, xAI and TensorRT-LLM, Google
and OpenAI, TGI, Moonshot, Mistral, Groq."""
_ALLOWANCE = re.compile(r"per[\s_-](?:second|minute|hour|day)|quota|rate.?limit|\btp[md]\b")
"""An allowance of tokens by time, which is no window."""


def is_overflow(error: BaseException) -> bool:
    """Tell whether the server says that prompt and completion do not fit its context window."""
    status = status_of(error)
    if status == 429 or (status is None and is_connection_error(error)):
        return False
    body = _body_of(error)
    if isinstance(body, str) and body.lstrip()[:1] in {"{", "["}:
        with suppress(ValueError, RecursionError):
            body = json.loads(body)
    said = words_of(body) or words_of(str(error))
    text = " ".join([said[:2000], *_labels(body)]).lower()[:4000]
    if _ALLOWANCE.search(text):
        return False
    named = _WINDOW.search(text) and _TOO_MUCH.search(text)
    return bool(named or _OVERFLOWS.search(text))


# ---------------------------------------------------------------------------- the kind of failure


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an SDK's error carries, None if no answer came."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed later."""
    if is_overflow(error):
        return False  # whatever its status: some servers say 500
    status = status_of(error)
    if isinstance(error, BadReplyError):
        if error.status is None:
            return error.transient
        status = error.status
    if status is not None:
        return status in {408, 409, 425, 429} or status >= 500
    return is_connection_error(error)


def is_connection_error(error: BaseException) -> bool:
    """Tell whether the connection failed, before or after the request was sent."""
    return any(
        isinstance(link, (ConnectionError, TimeoutError, httpx2.TransportError))
        or (isinstance(link, BadReplyError) and link.broken)
        for link in _causes(error)
    )


def never_sent(error: BaseException) -> bool:
    """Tell whether the server never saw the request, which then cost nothing."""
    kinds = (ConnectionRefusedError, httpx2.ConnectError, httpx2.ConnectTimeout)
    return any(isinstance(link, kinds) for link in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, what it was raised from, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


# ---------------------------------------------------------------------------- another attempt


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is tried, and how long it waits between attempts."""

    attempts: int = 4
    """Requests at most, the first included."""
    backoff_s: float = 0.5
    """Scale of the exponential wait between attempts, before jitter."""
    max_wait_s: float = 20.0
    """Longest wait before an attempt, whatever Retry-After says."""

    def controller(self) -> AsyncRetrying:
        """Return tenacity's loop over attempts, which raises the last error."""
        return AsyncRetrying(
            stop=stop_after_attempt(self.attempts),
            retry=retry_if_exception(is_transient),
            wait=self._wait,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        named = retry_after_s(error) if error else None
        if named is not None:
            return min(named, self.max_wait_s)
        return wait_random_exponential(multiplier=self.backoff_s, max=self.max_wait_s)(state)


def retry_after_s(error: BaseException) -> float | None:
    """Return the seconds that the server asks to wait, None if it does not."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError):
        return None

"""Reads what endpoints of the OpenAI protocol send, as odd as it may be.

The SDK and LangChain trust a reply. To them, a stream that ends after half an answer is a complete
answer. They add up usage that comes with every piece, and pass on a list in place of a text. Here a
reply is made plain before they see it, or refused with a message:

- A stream is complete if the server gave a `finish_reason`, `[DONE]` or its final usage. Otherwise
  it broke off, and the call failed.
- Of several usages the last one counts: servers that send one with every piece send the sum so far.
- A `finish_reason` of `abort` or `error` is no answer either: the server gave the request up.
- Text and reasoning may come as parts, nested in any way. Their text is what counts.
- A reply has bounds: its bytes by what was asked for, its pieces, its time. Impossible counts count
  as absent.

The way in is the SDK's own: `SentCompletions` takes the place of its `chat.completions`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, cast

import httpx2
import openai
from openai import AsyncStream, RequestOptions, Stream
from openai._legacy_response import LegacyAPIResponse
from openai._streaming import ServerSentEvent
from openai.resources.chat.completions import AsyncCompletions, Completions

from pdr_graph.errors import keep_secret, keep_secrets_of, redacted
from pdr_graph.llm.pool import BoundedTransport, ReplyBounds, bounded, current_bounds
from pdr_graph.llm.retry import BadReplyError, scrubbed, status_in, words_of
from pdr_graph.llm.tokens import flat_text
from pdr_graph.llm.usage import MOST_TOKENS, REFUSED_USAGE

Json = dict[str, Any]
"""What a server sent; its values are checked where they are read."""

GIVEN_UP = frozenset({"abort", "error"})
"""Finish reasons of a request that the server gave up: vLLM, SGLang and OpenRouter send them."""

MOST_CHOICES = 128
"""Choices of one reply, as OpenAI has it."""
_MOST_CALLS = 128
"""Tool calls of one message, as OpenAI has it."""
_LONGEST_REASON = 64
"""Characters of a finish reason."""

# ---------------------------------------------------------------------------- one reply


def read_reply(response: httpx2.Response) -> Json:
    """Return a reply made plain.

    Raises:
        BadReplyError: it broke off, holds an error in place of an answer, or no answer.
    """
    try:
        body = _parsed(response.content)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        return plain_reply(body)
    text = response.text.strip()
    if body is None and text.startswith("{"):
        raise BadReplyError("the reply ended before its JSON did", broken=True)
    said = words_of(text) or ("nothing" if not text else "a page of HTML" if "<" in text else text)
    said = " ".join(redacted(said).split())[:200]
    raise BadReplyError(f"the endpoint's reply is not a JSON object: {said!r}")


def _parsed(text: bytes | str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
    # No field of a reply needs a number of thousands of digits, and it is no reason to lose the
    # reply.
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 99 else None)


def _found(value: object) -> str:
    """Return the beginning of a value of the wrong form, for a message."""
    return redacted(f"{value!r}")[:40]


def plain_reply(body: Json) -> Json:
    """Return the body of a reply with messages and usage made plain.

    Raises:
        BadReplyError: it holds an error in place of an answer, or no answer.
    """
    usage = plain_usage(body.get("usage"))
    choices = body.get("choices")
    if body.get("error") or (not choices and body.get("object") == "error"):
        raise error_reply(body, usage=usage)
    if not isinstance(choices, list) or not choices:
        found = "no list of choices" if choices is None else f"{_found(choices)} for its choices"
        if choices == []:
            found = "an empty list of choices"
        raise BadReplyError(f"the endpoint's reply has {found}, so no answer", usage=usage)
    if len(choices) > MOST_CHOICES:
        many = f"{len(choices)} choices, and {MOST_CHOICES} are the most that can be asked for"
        raise BadReplyError(f"the endpoint's reply has {many}", usage=usage)
    plain = [_plain_choice(choice, usage) for choice in choices]
    return body | {"choices": plain, "usage": usage}


def error_reply(body: Json, *, said: str = "", usage: Json | None = None) -> BadReplyError:
    """Return the error that a server sent in place of a reply, or in the middle of one."""
    inner = body["error"] if body.get("error") else body
    words = words_of(inner) or words_of(body) or "an error without words"
    status = status_in(inner) or status_in({**body, "choices": None})
    return BadReplyError(
        words, body=body, status=status, transient=status is None, said=said, usage=usage
    )


def _plain_choice(choice: object, usage: Json | None) -> Json:
    if not isinstance(choice, dict):
        raise BadReplyError(f"the endpoint's reply has {_found(choice)} for a choice", usage=usage)
    message = choice.get("message")
    if not isinstance(message, dict):
        if not isinstance(choice.get("text"), str):
            found = "no message" if message is None else f"{_found(message)} for a message"
            raise BadReplyError(f"the endpoint's reply has {found} in its choice", usage=usage)
        message = {"content": choice["text"]}
    plain = plain_message(message)
    reason = plain_reason(choice.get("finish_reason"))
    if reason in GIVEN_UP:
        raise _given_up(reason, plain["content"], usage)
    return choice | {"message": plain, "finish_reason": reason}


def _given_up(reason: str, said: str, usage: Json | None) -> BadReplyError:
    return BadReplyError(
        f"the server gave the request up (finish_reason {reason!r})",
        broken=True,
        said=said,
        usage=usage,
    )


_THOUGHTS = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks")
"""Names under which servers send the reasoning; the first that has text counts."""
_THINKS = ("thinking", "reasoning", "thought")
"""Beginnings of the type of a part that holds reasoning."""


def plain_message(message: Json) -> Json:
    """Return a message, or a piece of one, with its text and its reasoning each one string."""
    content, thought = message.get("content"), ""
    for name in _THOUGHTS:
        if (found := message.get(name)) and (thought := flat_text(found)):
            break
    if not isinstance(content, str):
        parts = content if isinstance(content, list) else [content]
        if not thought:
            thought = "".join(flat_text(part) for part in parts if _is_thought(part))
        content = "".join(flat_text(part) for part in parts if not _is_thought(part))
    plain = {name: value for name, value in message.items() if name not in _THOUGHTS}
    plain |= {"role": "assistant", "content": content}
    if thought:
        plain["reasoning_content"] = thought
    if "tool_calls" in plain:
        calls = plain["tool_calls"] if isinstance(plain["tool_calls"], list) else []
        plain["tool_calls"] = [
            {"index": 0, **each} for each in calls[:_MOST_CALLS] if _is_call(each)
        ]
    return plain


def _is_thought(part: object) -> bool:
    return isinstance(part, dict) and str(part.get("type", "")).startswith(_THINKS)


def _is_call(call: object) -> bool:
    return isinstance(call, dict) and isinstance(call.get("function"), dict)


def plain_reason(reason: object) -> str | None:
    """Return why a reply ended; SGLang's own form is `{"type": "length"}`."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    return reason[:_LONGEST_REASON] if isinstance(reason, str) and reason else None


def _refuse(usage: Json) -> None:
    refused = REFUSED_USAGE.get()
    if refused is not None and not refused:
        figures = {name: usage[name] for name in _FIGURES if name in usage}
        refused.append(_found(figures) if len(str(figures)) < 99 else "figures of no use")


_FIGURES = ("prompt_tokens", "completion_tokens", "total_tokens")


def plain_usage(usage: object) -> Json | None:
    """Return usage with whole counts; None if the server sent no possible count."""
    if not isinstance(usage, dict):
        return None
    given = {name: usage.get(name) for name in _FIGURES}
    counts = {name: _count(value) for name, value in given.items()}
    if any(counts[name] is None for name, value in given.items() if value is not None):
        _refuse(usage)
        return None
    prompt, completion, total = counts.values()
    if total is not None:
        prompt = total - completion if prompt is None and completion is not None else prompt
        completion = total - prompt if completion is None and prompt is not None else completion
    if prompt is None or completion is None or not prompt + completion:
        return None
    if min(prompt, completion) < 0:
        _refuse(usage)
        return None
    details = {name: _details(usage.get(name)) for name in _DETAILS if name in usage}
    plain = {"prompt_tokens": prompt, "completion_tokens": completion}
    return usage | plain | {"total_tokens": prompt + completion} | details


_DETAILS = ("prompt_tokens_details", "completion_tokens_details")


def _details(value: object) -> Json | None:
    if not isinstance(value, dict):
        return None
    return {name: count for name, each in value.items() if (count := _count(each)) is not None}


def _count(value: object) -> int | None:
    """Return a count; None for any other value.

    Numbers below 0 or too large, fractions, texts and truth values are no counts. Some programs
    write every number as a fraction: 7.0 is 7.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= cast(int, value) < MOST_TOKENS else None  # type: ignore[return-value]  # an int


# ---------------------------------------------------------------------------- one stream


class _PlainEvent(ServerSentEvent):
    """An event whose data has been read."""

    def __init__(self, value: Json) -> None:
        super().__init__(data="{}")
        self._value = value

    def json(self) -> Json:
        """Return the data."""
        return self._value


_DONE = ServerSentEvent(data="[DONE]")
_LOST = (openai.APIConnectionError, httpx2.TransportError, UnicodeDecodeError)
"""Errors of a connection that ends within a stream."""


@dataclass(slots=True)
class _Reading:
    """What one stream has brought so far."""

    bounds: ReplyBounds
    last_piece: float = field(default_factory=monotonic)
    """Time of the last piece of the answer, or of the start."""
    pieces: int = 0
    said: list[str] = field(default_factory=list)
    usage: Json | None = None
    usage_is_final: bool = False
    """Whether the last event had usage in the form of a final one."""
    reason: str | None = None
    index: object = None
    """Number of the choice that is read; None before the first."""
    begun: bool = False
    done: bool = False
    """Whether the server said `[DONE]`."""
    lost: BaseException | None = None
    """The error that ended the connection; None if it ended in order."""
    last: Json = field(default_factory=dict)
    """The last event, for the head of one of our own."""

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Read within this block; a connection that is lost ends it."""
        try:
            yield
        except _LOST as error:
            self.lost = error

    def read(self, event: ServerSentEvent) -> Iterator[ServerSentEvent]:
        """Yield an event made plain, without its usage; nothing if it has nothing for the reply.

        Raises:
            BadReplyError: it is an error, or no JSON.
        """
        self.done = event.data.startswith("[DONE]")
        if not self.done and (plain := self._plain(event)) is not None:
            yield _PlainEvent(plain)

    def _plain(self, event: ServerSentEvent) -> Json | None:
        if not event.data.strip():
            return None
        try:
            chunk = _parsed(event.data)
        except (ValueError, RecursionError):
            raise self._broken("the stream broke off within a line") from None
        if not isinstance(chunk, dict):
            return None
        choices = chunk.get("choices")
        if chunk.get("error") or (
            not choices and (event.event == "error" or chunk.get("object") == "error")
        ):
            raise error_reply(chunk, said="".join(self.said), usage=self.usage)
        mine = self._mine(choices)
        self._note_usage(chunk, mine)
        if mine is None:
            return None
        delta = mine.get("delta")
        if not isinstance(delta, dict):
            message = mine.get("message")
            delta = message if isinstance(message, dict) else {"content": mine.get("text")}
        plain = plain_message(delta)
        said = f"{plain['content']}{plain.get('reasoning_content', '')}"
        if said or plain.get("tool_calls"):
            self.last_piece = monotonic()
        self.said.append(said)
        self.pieces += 1
        if self.pieces > self.bounds.max_pieces:
            raise self._refused(
                f"the stream has more than {self.bounds.max_pieces} pieces, which is more than it "
                "can need; it was not read to its end"
            )
        reason = plain_reason(mine.get("finish_reason"))
        self.reason = reason or self.reason
        if reason in GIVEN_UP:
            reason = None  # said at the end, when the usage is known
        self.last = chunk | {"choices": [mine | {"delta": plain, "finish_reason": reason}]}
        self.last["usage"] = None
        return self.last

    def _mine(self, choices: object) -> Json | None:
        """Return the choice that is read: of several, the first to come."""
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            if not self.begun:
                self.begun, self.index = True, choice.get("index")
            if choice.get("index") == self.index:
                return choice
        return None

    def _note_usage(self, chunk: Json, choice: Json | None) -> None:
        usage = plain_usage(chunk.get("usage"))
        if usage is None and choice is not None:
            usage = plain_usage(choice.get("usage"))  # Moonshot
        if usage is None:
            self.usage_is_final = False
        else:
            self.usage_is_final = choice is None or self.usage is None
            self.usage = usage

    def end(self) -> Iterator[ServerSentEvent]:
        """Yield the usage, if the server sent any, and the end.

        Raises:
            BadReplyError: the stream broke off, or the server gave the request up.
        """
        if self.reason in GIVEN_UP:
            raise _given_up(self.reason or "", "".join(self.said), self.usage)
        if self.lost is not None and self.reason is None:
            cause = self.lost.__cause__ or self.lost
            raise self._broken(words_of(str(cause)) or type(cause).__name__) from self.lost
        if not self.begun:
            raise self._broken("the stream ended before the reply began")
        if not (self.done or self.reason or self.usage_is_final):
            raise self._broken("the stream ended without finish_reason, [DONE] or final usage")
        if self.usage is not None:
            yield _PlainEvent(
                self.last | {"choices": [], "usage": self.usage, "service_tier": None}
            )
        yield _DONE

    async def next_of(self, events: AsyncIterator[ServerSentEvent]) -> ServerSentEvent | None:
        """Return the next event, None at the end.

        Raises:
            BadReplyError: it has been too long since a piece of the answer.
        """
        left = self.last_piece + self.bounds.idle_s - monotonic()
        try:
            async with asyncio.timeout(max(0.0, left) if left < _FOREVER_S else None) as limit:
                if left < 0:
                    await asyncio.sleep(0)
                return await anext(events)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._broken(
                f"the stream brought nothing of the answer for {self.bounds.idle_s:g} s"
            ) from None

    def _refused(self, message: str) -> BadReplyError:
        return BadReplyError(message, said="".join(self.said), usage=self.usage)

    def _broken(self, message: str) -> BadReplyError:
        return BadReplyError(message, broken=True, said="".join(self.said), usage=self.usage)


_FOREVER_S = 10 * 365 * 86_400.0
_TURN_S = 0.002
"""Seconds for which one stream may be read without a pause, while others wait."""
_NO_BOUNDS = ReplyBounds(2**62, float("inf"))


class SentStream(AsyncStream[object]):
    """The pieces of a reply made plain, the last one with the usage."""

    def __init__(self, **parts: Any) -> None:  # Any: as the SDK calls it
        self._bounds = current_bounds() or _NO_BOUNDS
        super().__init__(**parts)

    async def _iter_events(self) -> AsyncIterator[ServerSentEvent]:
        reading = _Reading(self._bounds)
        events = super()._iter_events()
        with reading.connection():
            turn = monotonic()
            while (event := await reading.next_of(events)) is not None:
                for plain in reading.read(event):
                    yield plain
                if reading.done:
                    break
                if monotonic() - turn > _TURN_S:
                    # If the server sends without a pause, reading alone gives other tasks no turn.
                    await asyncio.sleep(0)
                    turn = monotonic()
        for last in reading.end():
            yield last


class SyncSentStream(Stream[object]):
    """The same, for a caller without an event loop."""

    def _iter_events(self) -> Iterator[ServerSentEvent]:
        reading = _Reading(_NO_BOUNDS)
        with reading.connection():
            for event in super()._iter_events():
                yield from reading.read(event)
                if reading.done:
                    break
        yield from reading.end()


# ---------------------------------------------------------------------------- the SDK's place


def _options(payload: Json) -> RequestOptions:
    """Take the fields out of a payload that are not its body, as the SDK's `create` does."""
    options: Json = {}
    if (headers := payload.pop("extra_headers", None)) is not None:
        options["headers"] = headers
    if (query := payload.pop("extra_query", None)) is not None:
        options["params"] = query
    if "timeout" in payload:
        options["timeout"] = payload.pop("timeout")
    payload |= payload.pop("extra_body", None) or {}
    if not payload.get("stream"):
        # The SDK calls it where the caller wants the headers too, and reads the reply itself.
        options["post_parser"] = read_reply
    return cast(RequestOptions, options)


IDLE_S = 3600.0
"""Longest time of a stream without a piece of the answer. A call may wait long in a busy server's
queue."""
TOTAL_S = 6 * 3600.0
"""Longest time of one request. A thought may take long, but not for ever."""
_ROOM = 2**20
"""Bytes of a reply for what is not counted below."""
_TOKEN_BYTES = 256
"""Bytes for the text of a token, escaped, at the longest average, and for its id."""
_LOGPROB_BYTES = 512
"""Bytes for the log-probability of a token, and for each alternative's."""
_PIECE_BYTES = 2048
"""Bytes for the frame in which a stream sends each token."""
_PIECES = 8
"""Pieces of a stream for each token: some servers send letters."""
_UNBOUNDED_TOKENS = 2**17
"""Tokens of a reply whose length was not limited."""


def bounds_of(payload: Json, *, idle_s: float = IDLE_S, total_s: float = TOTAL_S) -> ReplyBounds:
    """Return generous bounds on the reply to a request, by what it asks for."""
    limit = payload.get("max_tokens") or payload.get("max_completion_tokens")
    tokens = limit if isinstance(limit, int) and limit > 0 else _UNBOUNDED_TOKENS
    tokens *= max(1, payload.get("n") or 1)
    streamed = bool(payload.get("stream"))
    each = _TOKEN_BYTES + (_PIECE_BYTES if streamed else 0)
    if payload.get("logprobs"):
        each += _LOGPROB_BYTES * (1 + (payload.get("top_logprobs") or 0))
    # The prompt may come back, as text and as ids.
    prompt = sum(len(str(each.get("content"))) for each in payload.get("messages") or ())
    return ReplyBounds(
        max_bytes=_ROOM + 32 * prompt + each * tokens,
        total_s=total_s,
        idle_s=idle_s,
        max_pieces=4096 + _PIECES * tokens,
        streamed=streamed,
    )


class SentCompletions(AsyncCompletions):
    """Sends requests as plain JSON, and returns what comes made plain.

    The SDK's own method looks at every value of payload and reply, which is half of what a call
    costs, and LangChain then undoes the types.
    """

    def __init__(
        self, client: openai.AsyncOpenAI, *, idle_s: float = IDLE_S, total_s: float = TOTAL_S
    ) -> None:
        super().__init__(client)
        self._idle_s, self._total_s = idle_s, total_s
        keep_secret(client.api_key)
        keep_secrets_of(str(client.base_url))
        http = client._client
        if not isinstance(http._transport, BoundedTransport):
            # It does nothing outside of `bounded`, since the client may be shared.
            http._transport = BoundedTransport(http._transport)
            http._mounts = {
                pattern: None if each is None else BoundedTransport(each)
                for pattern, each in http._mounts.items()
            }

    async def create(self, **payload: Any) -> Any:  # Any: as LangChain asks
        """Send one request.

        Raises:
            BadReplyError: the reply is malformed, or beyond its bounds.
            openai.OpenAIError: the server refuses, or the connection is lost.
        """
        options = _options(payload)
        post = partial(self._post, "/chat/completions", body=payload, options=options)
        bounds = bounds_of(payload, idle_s=self._idle_s, total_s=self._total_s)
        try:
            with bounded(bounds):
                if payload.get("stream"):
                    return await post(cast_to=object, stream=True, stream_cls=SentStream)
                reply = await post(cast_to=httpx2.Response)
        except openai.OpenAIError as error:
            # The SDK takes what ends a reply for a lost connection.
            refused = error.__cause__ if isinstance(error.__cause__, BadReplyError) else None
            if refused is not None:
                raise refused from None
            scrubbed(error)
            raise
        return reply if isinstance(reply, LegacyAPIResponse) else read_reply(reply)


class SyncSentCompletions(Completions):
    """The same, for a caller without an event loop."""

    def create(self, **payload: Any) -> Any:  # Any: as LangChain asks
        """Send one request."""
        options = _options(payload)
        post = partial(self._post, "/chat/completions", body=payload, options=options)
        if payload.get("stream"):
            return post(cast_to=object, stream=True, stream_cls=SyncSentStream)
        reply = post(cast_to=httpx2.Response)
        return reply if isinstance(reply, LegacyAPIResponse) else read_reply(reply)


def plain_clients(model: object) -> Json:
    """Return the fields of a model of langchain-openai whose clients make replies plain.

    A client of the caller's own making is left as it is.
    """
    fields: Json = {}
    if type(client := getattr(model, "async_client", None)) is AsyncCompletions:
        fields["async_client"] = SentCompletions(
            client._client,
            idle_s=getattr(model, "idle_timeout_s", IDLE_S),
            total_s=getattr(model, "reply_timeout_s", TOTAL_S),
        )
    if type(client := getattr(model, "client", None)) is Completions:
        fields["client"] = SyncSentCompletions(client._client)
    return fields

"""An OpenAI-compatible endpoint that invents its replies, in a process of its own.

The text of a reply depends only on (`seed`, `messages`), never on the order of arrival, so a run
against it can be repeated, killed and resumed, and compared byte for byte. It counts what it
served, which is what ledgers are checked against. What it does wrong on request (status codes,
dropped connections, hangs, empty or cut replies) is a set of `Rules`.

By hand: `python -m tests.mock_endpoint --port 8000 --rules '{"delay_s": 0.5}'`. In a test:

    with MockEndpoint(delay_s=0.5) as mock:
        ... mock.url ...
        assert mock.stats()["peak_in_flight"] == 16

Shapes follow vLLM's OpenAI server (`vllm/entrypoints/openai`).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

# JSON travels through this file; its values are checked where they are used.
Json = dict[str, Any]

# --------------------------------------------------------------------------------------- tokens

_PIECE = re.compile(r"\w{1,4}|[^\w\s]|\s+")
# What a chat template adds around each message, and to open the reply.
_TOKENS_PER_MESSAGE = 4
_TOKENS_TO_OPEN_REPLY = 3


def pieces(text: str) -> list[str]:
    """Split text into this server's tokens: words in fours, marks one by one, runs of space."""
    return _PIECE.findall(text)


@lru_cache(maxsize=4096)
def count(text: str) -> int:
    """Count the tokens of a text."""
    return len(pieces(text))


def token_ids(tokens: Sequence[str]) -> list[int]:
    """Give every token a number that is the same in every process."""
    return [zlib.crc32(token.encode()) % 100_000 for token in tokens]


def text_of(message: Json) -> str:
    """Return the text of one chat message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def count_messages(messages: list[Json], *, open_reply: bool = True) -> int:
    """Count a conversation as `usage.prompt_tokens` does: text plus the chat template."""
    tokens = sum(count(text_of(message)) + _TOKENS_PER_MESSAGE for message in messages)
    return tokens + _TOKENS_TO_OPEN_REPLY * open_reply


# ---------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, slots=True)
class Rules:
    """What the endpoint does; each may be changed while it runs."""

    model: str | list[str] = "mock-model"
    """Name or names served; any other is answered 404."""
    api_key: str | None = None
    """When set, `/v1` needs it as a bearer token, else 401."""
    max_model_len: int = 131_072
    list_max_model_len: bool = True
    """Whether `/v1/models` tells `max_model_len`, as vLLM does."""
    overflow: str = "error"
    """Prompt + max_tokens over the limit: "error" (400), or "clamp" max_tokens silently."""
    chat_fields: list[str] | None = None
    """Fields of a chat request that `/openapi.json` lists; None serves no such page (404)."""
    tokenize: str | None = "vllm"
    """Form of `/tokenize` at the server's root: "vllm", "llama_cpp", or None (404)."""
    embeddings: str | None = None
    """Form of `/v1/embeddings`: "vllm" (of messages), "llama_cpp" (of a text that its
    `/apply-template` makes), or None (404)."""
    embedding_size: int = 8
    """Numbers of an embedding; they depend on the text alone."""

    delay_s: float = 0.0
    delay_lognormal: list[float] | None = None
    """[mu, sigma] of a further delay in seconds, drawn from (seed, messages)."""
    stream_delay_s: float = 0.0
    """Pause between two chunks of a stream."""
    chunk_tokens: int = 8
    """Tokens in each chunk of a stream."""

    completion_tokens: int = 64
    """Length of a reply in tokens, reasoning included; never below its answer line."""
    reasoning_tokens: int = 32
    """How many of them are reasoning, where `reasoning` is on."""
    keeps_thinking_budget: bool = True
    """Whether `thinking_token_budget` ends the reasoning, as in vLLM."""
    loop: str | None = None
    """Text that the reply repeats until it is cut: by `repetition_detection`, as in vLLM, or by its
    limit, or after `completion_tokens`."""
    reasoning: str | None = None
    """"reasoning", "reasoning_content", "think_tags", "unclosed_think", or None."""
    answers: list[str] | None = None
    """Drawn from by hash; None draws an integer from 0 to 999."""
    answer_format: str = "The answer is \\boxed{{{answer}}}."
    replies: list[Json] = field(default_factory=list)
    """[{"contains": text, "answers": [...]} or {"contains": text, "content": text}]; the first
    whose text is in a message holds for the call. Its `top`, {token: log-probability}, are the
    alternatives of each token."""
    tells_alternatives: bool = True
    """Whether `top_logprobs` is heeded."""
    empty: bool = False
    """Replies have no content."""
    finish_reason: str | None = None
    """Overrides what is reported."""
    no_usage: bool = False
    cached_tokens: int | None = None
    """Reported in `prompt_tokens_details`; None leaves the details out, as vLLM does by default."""
    ignore_n: bool = True
    """One choice whatever `n` asks for."""

    status: list[Json] = field(default_factory=list)
    """[{"match": {...}, "status": s, "times": k, ...}], see `StatusRule`."""
    record: bool = True
    """Keep request bodies for `/mock/requests`; off for long measurements."""

    def changed(self, changes: Mapping[str, Any]) -> Rules:
        """Return a copy with some rules changed.

        Raises:
            ValueError: A name is not a rule.
        """
        known = {each.name for each in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"unknown rules {unknown}, known: {sorted(known)}")
        rules = replace(self, **changes)
        for each in rules.status:
            StatusRule(**each)
        return rules

    @property
    def models(self) -> list[str]:
        """Names served."""
        return [self.model] if isinstance(self.model, str) else self.model


@dataclass(slots=True)
class StatusRule:
    """A fault: which calls it befalls, what they get, and how often."""

    match: Json = field(default_factory=dict)
    """All must hold: `call` n (from 1, in order of arrival), `every` n, `contains` text, `seed` s,
    `first_per_seed` (this seed was not seen before), `asks_for` a field. Empty matches every
    call."""
    status: int | str = 500
    """An HTTP status; "drop" (the connection is cut), "hang" (no reply until the client goes).
    200 replies as usual, so that `delay_s` makes a straggler of one call."""
    times: int | None = None
    """How many calls it befalls; None is for ever."""
    retry_after: float | None = None
    body: Json | str | None = None
    """What is sent with a status other than 200; None is an error in vLLM's form."""
    sent: Json | str | list[Json | str] | None = None
    """With 200, what is sent in place of a reply: a body, or the events of a stream. An event that
    is an object goes out as `data: {…}`, a text as it is."""
    dropped: bool = False
    """With `sent`, whether the connection is cut at its end instead of closed in order."""
    delay_s: float | None = None
    """Wait before it; for 200 this replaces the delay of the rules."""
    after_chunks: int | None = None
    """With "drop" or "hang" on a stream: chunks that are sent first."""
    hits: int = 0

    def befalls(self, number: int, body: Json, *, seed_is_new: bool) -> bool:
        """Tell whether the call is hit, and count it."""
        match = self.match
        hit = (
            (self.times is None or self.hits < self.times)
            and match.get("call", number) == number
            and number % int(match.get("every", 1)) == 0
            and ("seed" not in match or match["seed"] == body.get("seed"))
            and (not match.get("first_per_seed") or seed_is_new)
            and ("asks_for" not in match or bool(body.get(match["asks_for"])))
            and (
                "contains" not in match
                or any(match["contains"] in text_of(each) for each in body["messages"])
            )
        )
        self.hits += hit
        return hit


# ---------------------------------------------------------------------------------------- reply

_PROSE = """so let x be the sum of two odd n then we get an even k and if k is not one it must hold
that a over b has no cube root mod p now try n plus one add up all of them next take away half test
the case once more this time with y in p as well it fits"""
_POOL_WORDS = 32_768
# Words of at most four letters, so that each is one token, and so is each space.
_POOL = [t for word in Random(0).choices(_PROSE.split(), k=_POOL_WORDS) for t in (word, " ")]


def filler(tokens: int, draw: Random) -> list[str]:
    """Return prose of exactly so many tokens that neither starts nor ends with a space."""
    if tokens <= 0:
        return []
    start = 2 * draw.randrange(_POOL_WORDS)
    words = _POOL[start : start + tokens]
    while len(words) < tokens:
        words += _POOL[: tokens - len(words)]
    return words if tokens % 2 else [*words[:-1], "."]


def paragraphs(parts: Sequence[list[str]]) -> list[str]:
    """Join token lists by blank lines, leaving out the empty ones."""
    joined: list[str] = []
    for part in filter(None, parts):
        joined += ["\n\n", *part] if joined else part
    return joined


@dataclass(frozen=True, slots=True)
class Reply:
    """One choice, in tokens."""

    thought: list[str]
    content: list[str]
    finish_reason: str

    @property
    def length(self) -> int:
        """Completion tokens."""
        return len(self.thought) + len(self.content)


def scripted_for(rules: Rules, messages: list[Json]) -> Json:
    """Return the rule for a reply to these messages, empty if there is none."""
    return next(
        (r for r in rules.replies if any(r["contains"] in text_of(m) for m in messages)), {}
    )


def write_reply(rules: Rules, body: Json, draw: Random, limit: int | None) -> Reply:
    """Invent a reply from nothing but the rules, the request and the draw; cut it at `limit`."""
    messages: list[Json] = body["messages"]
    scripted = scripted_for(rules, messages)
    choices = scripted.get("answers", rules.answers)
    answer = draw.choice(choices) if choices else str(draw.randrange(1000))
    ending = pieces(rules.answer_format.format(answer=answer))
    thinks_apart = rules.reasoning in ("reasoning", "reasoning_content")
    thought = filler(rules.reasoning_tokens, draw) if thinks_apart else []
    budget = body.get("thinking_token_budget")
    if budget is not None and rules.keeps_thinking_budget:
        thought = thought[:budget]
    before: list[list[str]] = []
    if rules.reasoning in ("think_tags", "unclosed_think"):
        before = [pieces("<think>"), filler(rules.reasoning_tokens, draw)]
    if rules.reasoning == "think_tags":
        before.append(pieces("</think>"))
    if "content" in scripted:
        content = pieces(scripted["content"])
    elif rules.empty:
        content = []
    else:
        room = rules.completion_tokens - len(thought) - len(paragraphs([*before, ending])) - 1
        content = paragraphs([*before, filler(room, draw), ending])
    finish = "stop"
    if rules.loop is not None:
        turn = pieces(rules.loop)
        most = (limit or rules.completion_tokens) - len(thought)
        content, finish = (turn * (most // len(turn) + 1))[:most], "length"
        rule = body.get("repetition_detection") or {}
        # The shortest pattern of vLLM's that is a whole number of turns.
        size = -(-int(rule.get("min_pattern_size") or 1) // len(turn)) * len(turn)
        least = size * int(rule.get("min_count") or 0)
        if size <= int(rule.get("max_pattern_size") or 0) and least < most:
            content, finish = content[:least], "repetition"
    if limit is not None and len(thought) + len(content) > limit:
        finish, thought = "length", thought[:limit]
        content = content[: limit - len(thought)]
    return Reply(thought, content, rules.finish_reason or finish)


def logprobs_of(tokens: Sequence[str], top: int, likely: Mapping[str, float]) -> Json:
    """Invent the log-probability of every token; the alternatives are those that are likely."""
    rows = []
    others = [
        {"token": token, "logprob": p, "bytes": list(token.encode())}
        for token, p in sorted(likely.items(), key=lambda each: -each[1])
    ]
    for token in tokens:
        p = -(zlib.crc32(token.encode()) % 1000) / 1000
        row: Json = {"token": token, "logprob": p, "bytes": list(token.encode())}
        rows.append({**row, "top_logprobs": (others or [row])[:top]})
    return {"content": rows}


# --------------------------------------------------------------------------------------- server


class RefusalError(Exception):
    """A call that gets an error body in vLLM's form."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class Served:
    """What was asked and what was served since the last reset."""

    calls: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    aborted: int = 0
    aborted_prompt_tokens: int = 0
    aborted_completion_tokens: int = 0
    models_calls: int = 0
    tokenize_calls: int = 0
    openapi_calls: int = 0
    embeddings: int = 0
    embedded_tokens: int = 0


class Mock:
    """The endpoint's state: rules, counts, and the record of requests."""

    def __init__(self, rules: Rules) -> None:
        self.first_rules = rules
        self.reset()

    def reset(self) -> None:
        """Forget the counts and the record, and return to the rules it was started with."""
        # A call of before the reset keeps writing to the old counts and the old record.
        self.served = Served()
        self.requests: list[Json] = []
        self.seeds: set[object] = set()
        self.use(self.first_rules)

    def use(self, rules: Rules) -> None:
        """Work by other rules; their `times` start anew."""
        self.rules = rules
        self.faults = [StatusRule(**each) for each in rules.status]

    def fault_of(self, number: int, body: Json) -> StatusRule | None:
        """Return the first fault that befalls a call."""
        seed = body.get("seed")
        seed_is_new = seed not in self.seeds
        self.seeds.add(seed)
        return next(
            (f for f in self.faults if f.befalls(number, body, seed_is_new=seed_is_new)), None
        )

    # -- chat completions, as a bare ASGI app: it must see the client leave

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call, and count it however it ends."""
        served = self.served
        served.calls += 1
        served.in_flight += 1
        served.peak_in_flight = max(served.peak_in_flight, served.in_flight)
        row: Json = {"call": served.calls, "started": time.time(), "ended": None, "status": None}
        row |= {"disconnected": False, "prompt_tokens": 0, "completion_tokens": 0, "body": None}
        self.requests.append(row)
        try:
            await _Call(self, row, scope, receive, send).serve()
        finally:
            served.in_flight -= 1
            row["ended"] = time.time()
            row["status"] = row["status"] or "aborted"
            served.by_status[str(row["status"])] += 1
            if row["disconnected"]:
                served.aborted += 1
                served.aborted_prompt_tokens += row["prompt_tokens"]
                served.aborted_completion_tokens += row["completion_tokens"]
            elif row["status"] == 200:
                served.prompt_tokens += row["prompt_tokens"]
                served.completion_tokens += row["completion_tokens"]

    def admit(self, scope: Scope, body: Json) -> tuple[int, int | None]:
        """Return the prompt's tokens and the limit on the reply.

        Raises:
            RefusalError: A request that vLLM would refuse.
        """
        rules = self.rules
        name = body.get("model", rules.models[0])
        if name not in rules.models:
            raise RefusalError(404, f"The model `{name}` does not exist.", "NotFoundError", "model")
        if not isinstance(body.get("messages"), list):
            raise RefusalError(400, "messages: Field required", "Bad Request", "messages")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and limit < 1:
            text = f"max_tokens must be at least 1, got {limit}."
            raise RefusalError(400, text, "BadRequestError", "max_tokens")
        prompt, most = count_messages(body["messages"]), rules.max_model_len
        opening = f"This model's maximum context length is {most} tokens. However, you requested"
        if prompt >= most:
            text = f"{opening} {prompt} tokens in the messages, Please reduce their length."
            raise RefusalError(400, text, "BadRequestError", "messages")
        if limit is None or (rules.overflow == "clamp" and prompt + limit > most):
            return prompt, most - prompt
        if prompt + limit > most:
            text = (
                f"{opening} {prompt + limit} tokens ({prompt} in the messages, {limit} in the "
                "completion). Please reduce the length of the messages or completion."
            )
            raise RefusalError(400, text, "BadRequestError", "max_tokens")
        return prompt, limit

    # -- the other endpoints

    def allowed(self, scope: Scope) -> bool:
        """Tell whether the call carries the key, where one is asked for."""
        if self.rules.api_key is None:
            return True
        return (b"authorization", b"Bearer " + self.rules.api_key.encode()) in scope["headers"]

    async def models(self, request: Request) -> Response:
        """List the models served."""
        self.served.models_calls += 1
        if not self.allowed(request.scope):
            return JSONResponse({"error": "Unauthorized"}, 401)
        rows = []
        for name in self.rules.models:
            row: Json = {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
            row |= {"root": name, "parent": None}
            if self.rules.list_max_model_len:
                row["max_model_len"] = self.rules.max_model_len
            rows.append(row)
        return JSONResponse({"object": "list", "data": rows})

    async def embed(self, request: Request) -> Response:
        """Return numbers for a conversation or a text, and count its tokens."""
        rules, body = self.rules, await request.json()
        if rules.embeddings is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if rules.embeddings == "vllm" and isinstance(body.get("messages"), list):
            text = "".join(text_of(each) for each in body["messages"])
            tokens = count_messages(body["messages"])
        elif isinstance(body.get("input"), str):
            text, tokens = body["input"], count(body["input"])
        else:
            raise RefusalError(400, "input: Field required", "Bad Request", "input")
        self.served.embeddings += 1
        self.served.embedded_tokens += tokens
        rng = Random(text)
        numbers = [rng.gauss(0, 1) for _ in range(rules.embedding_size)]
        data = [{"object": "embedding", "index": 0, "embedding": numbers}]
        usage = {} if rules.no_usage else {"usage": {"prompt_tokens": tokens}}
        return JSONResponse({"object": "list", "data": data, "model": rules.models[0], **usage})

    async def apply_template(self, request: Request) -> Response:
        """Write a conversation as one text, as llama.cpp does."""
        if self.rules.embeddings != "llama_cpp":
            return JSONResponse({"detail": "Not Found"}, 404)
        messages = (await request.json())["messages"]
        return JSONResponse({"prompt": "".join(f"<{m['role']}>{text_of(m)}" for m in messages)})

    async def tokenize(self, request: Request) -> Response:
        """Count the tokens of a prompt or of messages, in the form that the rules name."""
        self.served.tokenize_calls += 1
        rules, body = self.rules, await request.json()
        if rules.tokenize is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if rules.tokenize == "llama_cpp":
            # Like llama.cpp's: a body in another form is no error, and has no tokens.
            return JSONResponse({"tokens": token_ids(pieces(body.get("content", "")))})
        if "messages" in body:
            messages, opened = body["messages"], body.get("add_generation_prompt", True)
            ids = token_ids([piece for each in messages for piece in pieces(text_of(each))])
            ids += [1] * (count_messages(messages, open_reply=opened) - len(ids))
        elif "prompt" in body:
            ids = token_ids(pieces(body["prompt"]))
        else:
            raise RefusalError(400, "prompt: Field required", "Bad Request", "prompt")
        head = {"count": len(ids), "max_model_len": rules.max_model_len}
        return JSONResponse({**head, "tokens": ids, "token_strs": None})

    async def openapi(self, request: Request) -> Response:
        """Describe a chat request, as servers on FastAPI do."""
        self.served.openapi_calls += 1
        if self.rules.chat_fields is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        schema = {"properties": {name: {} for name in self.rules.chat_fields}}
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}}
        operation = {"post": {"requestBody": {"content": content}}}
        return JSONResponse(
            {
                "openapi": "3.1.0",
                "paths": {"/v1/chat/completions": operation},
                "components": {"schemas": {"ChatRequest": schema}},
            }
        )

    async def health(self, request: Request) -> Response:
        """Say that the server is there."""
        return Response()

    async def control(self, request: Request) -> Response:
        """Serve `/mock/…`: stats, requests, configure, reset."""
        match request.path_params["what"]:
            case "stats":
                return JSONResponse(vars(self.served))
            case "requests":
                return JSONResponse(self.requests)
            case "configure":
                try:
                    self.use(self.rules.changed(await request.json()))
                except (ValueError, TypeError) as error:
                    return JSONResponse({"error": str(error)}, 400)
            case "reset":
                self.reset()
        return JSONResponse({})

    def app(self) -> Starlette:
        """Build the ASGI application."""
        chat = _Asgi(self.chat)
        return Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/apply-template", self.apply_template, methods=["POST"]),
                Route("/openapi.json", self.openapi),
                Route("/health", self.health),
                Route("/mock/{what}", self.control, methods=["GET", "POST"]),
            ],
            exception_handlers={RefusalError: _refuse},
        )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return JSONResponse(error.body, error.status)


@dataclass(frozen=True)
class _Asgi:
    """Marks a coroutine function as an ASGI app, which `Route` knows by its being an object."""

    serve: Any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.serve(scope, receive, send)


class _GoneError(Exception):
    """The client left before its reply was complete."""


class _Call:
    """One chat completion: read, delayed, refused or replied to."""

    def __init__(self, mock: Mock, row: Json, scope: Scope, receive: Receive, send: Send) -> None:
        self.mock, self.rules, self.row = mock, mock.rules, row
        self.scope, self.receive, self.send = scope, receive, send

    async def serve(self) -> None:
        raw = await self._read()
        self.gone = asyncio.ensure_future(self.receive())  # ends when the client leaves
        try:
            await self._reply(raw)
        except _GoneError:
            self.row["disconnected"] = True
        except RefusalError as refusal:
            await self._json(refusal.status, refusal.body)
        finally:
            self.gone.cancel()

    async def _read(self) -> bytes:
        raw, more = b"", True
        while more:
            event = await self.receive()
            raw, more = raw + event.get("body", b""), event.get("more_body", False)
        return raw

    async def _reply(self, raw: bytes) -> None:
        if not self.mock.allowed(self.scope):
            return await self._json(401, {"error": "Unauthorized"})
        try:
            body: Json = json.loads(raw)
        except ValueError:
            raise RefusalError(400, "the body is not JSON", "Bad Request") from None
        if self.rules.record:
            self.row["body"] = body
        prompt, limit = self.mock.admit(self.scope, body)
        self.row["prompt_tokens"] = prompt
        fault = self.mock.fault_of(self.row["call"], body)
        in_mid_stream = fault is not None and fault.after_chunks is not None and body.get("stream")
        if fault is not None and fault.status != 200 and not in_mid_stream:
            return await self._fail(fault)
        identity = json.dumps([body.get("seed"), body["messages"]], sort_keys=True).encode()
        digest = blake2b(identity, digest_size=8).digest()
        draw = Random(digest)
        delay = self.rules.delay_s
        if self.rules.delay_lognormal is not None:
            delay += Random(digest + b"delay").lognormvariate(*self.rules.delay_lognormal)
        if fault is not None and fault.delay_s is not None:
            delay = fault.delay_s
        await self._wait(delay)
        if fault is not None and fault.sent is not None:
            return await self._send_as_it_is(fault)
        copies = 1 if self.rules.ignore_n else body.get("n") or 1
        replies = [write_reply(self.rules, body, draw, limit) for _ in range(copies)]
        if body.get("stream"):
            return await self._stream(body, prompt, replies, fault)
        self.row["completion_tokens"] = sum(reply.length for reply in replies)
        choices = [self._choice(body, i, reply) for i, reply in enumerate(replies)]
        result = self._head(body, "chat.completion") | {"choices": choices}
        if body.get("return_token_ids"):
            result["prompt_token_ids"] = [1] * prompt
        if not self.rules.no_usage:
            result["usage"] = self._usage(prompt, sum(r.length for r in replies), replies)
        await self._json(200, result)

    # -- the parts of a reply

    def _head(self, body: Json, kind: str) -> Json:
        model = body.get("model", self.rules.models[0])
        number = self.row["call"]
        return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time())} | {
            "model": model
        }

    def _usage(self, prompt: int, completion: int, replies: list[Reply]) -> Json:
        usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        if self.rules.cached_tokens is not None:
            usage["prompt_tokens_details"] = {
                "cached_tokens": min(self.rules.cached_tokens, prompt)
            }
        if thought := sum(len(reply.thought) for reply in replies):
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        return usage

    def _choice(self, body: Json, index: int, reply: Reply) -> Json:
        tokens = reply.thought + reply.content
        message: Json = {"role": "assistant", "content": "".join(reply.content)}
        if reply.thought and self.rules.reasoning:
            message[self.rules.reasoning] = "".join(reply.thought)
        choice: Json = {"index": index, "message": message, "finish_reason": reply.finish_reason}
        top = (body.get("top_logprobs") or 0) * self.rules.tells_alternatives
        likely = scripted_for(self.rules, body["messages"]).get("top", {})
        choice["logprobs"] = logprobs_of(tokens, top, likely) if body.get("logprobs") else None
        if body.get("return_token_ids"):
            choice["token_ids"] = token_ids(tokens)
        return choice

    async def _stream(
        self, body: Json, prompt: int, replies: list[Reply], fault: StatusRule | None
    ) -> None:
        head = self._head(body, "chat.completion.chunk")
        options = body.get("stream_options") or {}
        with_usage = options.get("include_usage") and not self.rules.no_usage
        await self._start(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
        step, sent, chunks = self.rules.chunk_tokens, 0, 0

        async def event(choices: list[Json], **more: Any) -> None:
            if with_usage and options.get("continuous_usage_stats"):
                more.setdefault("usage", self._usage(prompt, sent, replies))
            data = json.dumps(head | {"choices": choices} | more)
            await self._body(f"data: {data}\n\n".encode(), more=True)

        first: Json = {"prompt_token_ids": [1] * prompt} if body.get("return_token_ids") else {}
        opening = {"role": "assistant", "content": ""}
        for index in range(len(replies)):
            await event([{"index": index, "delta": opening, "finish_reason": None}], **first)
        for index, reply in enumerate(replies):
            parts = ((self.rules.reasoning, reply.thought), ("content", reply.content))
            for name, tokens in parts:
                for start in range(0, len(tokens), step):
                    if fault is not None and chunks == fault.after_chunks:
                        return await self._fail(fault)
                    await self._wait(self.rules.stream_delay_s)
                    piece = tokens[start : start + step]
                    delta = {"index": index, "delta": {name: "".join(piece)}}
                    choice: Json = delta | {"finish_reason": None, "logprobs": None}
                    if body.get("logprobs"):
                        choice["logprobs"] = logprobs_of(piece, body.get("top_logprobs") or 0, {})
                    if body.get("return_token_ids"):
                        choice["token_ids"] = token_ids(piece)
                    sent, chunks = sent + len(piece), chunks + 1
                    self.row["completion_tokens"] = sent
                    await event([choice])
            finish = {"index": index, "delta": {}, "finish_reason": reply.finish_reason}
            await event([finish])
        if with_usage:
            await event([], usage=self._usage(prompt, sent, replies))
        await self._body(b"data: [DONE]\n\n")

    # -- the wire

    async def _wait(self, delay_s: float) -> None:
        """Wait, unless the client leaves."""
        if delay_s > 0:
            await asyncio.wait({self.gone}, timeout=delay_s)
        else:
            await asyncio.sleep(0)  # let a departure be seen
        if self.gone.done():
            raise _GoneError

    async def _fail(self, fault: StatusRule) -> None:
        if fault.delay_s:
            await self._wait(fault.delay_s)
        if fault.status == "hang":
            await asyncio.wait({self.gone})
            raise _GoneError
        elif fault.status == "drop":
            self.row["status"] = "drop"
            # Only the server's own request object knows the connection; ASGI has no word for it.
            self.receive.__self__.transport.abort()  # type: ignore[attr-defined]
            await asyncio.wait({self.gone})
        else:
            status = int(fault.status)
            message = f"rule: status {status}"
            default = RefusalError(status, message, "InternalServerError").body
            body = default if fault.body is None else fault.body
            await self._json(status, body, fault.retry_after)

    async def _send_as_it_is(self, fault: StatusRule) -> None:
        if not isinstance(fault.sent, list):
            assert fault.sent is not None
            return await self._json(200, fault.sent)
        await self._start(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
        for event in fault.sent:
            data = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
            await self._body(data.encode(), more=True)
        if fault.dropped:
            await asyncio.sleep(0.02)  # what was sent before is to arrive
            self.receive.__self__.transport.abort()  # type: ignore[attr-defined]  # as above
            await asyncio.wait({self.gone})
        else:
            await self._body(b"")

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.row["status"] = status
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, data: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def _json(self, status: int, value: Json | str, retry_after: float | None = None) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        headers = [(b"content-type", b"application/json")]
        headers.append((b"content-length", str(len(data)).encode()))
        if retry_after is not None:
            headers.append((b"retry-after", f"{retry_after:g}".encode()))
        await self._start(status, headers)
        await self._body(data)


def main() -> None:
    """Serve until told to stop; the first line printed is the URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--rules", default="{}", help="rules as a JSON object")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    mock = Mock(Rules().changed(json.loads(options.rules)))
    listener = socket.create_server(("127.0.0.1", options.port), backlog=4096)
    # asyncio does this only for sockets that name their protocol; without it, head and body of a
    # reply wait 40 ms for each other. Accepted connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    if options.until_eof:

        def end_with_parent() -> None:
            sys.stdin.read()
            os._exit(0)

        threading.Thread(target=end_with_parent, daemon=True).start()
    config = uvicorn.Config(
        mock.app(), log_level="critical", access_log=False, lifespan="off", timeout_keep_alive=300
    )
    uvicorn.Server(config).run(sockets=[listener])


# --------------------------------------------------------------------------------------- helper


class MockEndpoint:
    """Runs the endpoint in a child process for the length of a `with` block."""

    def __init__(self, **rules: Any) -> None:
        self._rules = rules
        Rules().changed(rules)

    def __enter__(self) -> Self:
        # By path, and without the script's folder on the path: `tests` need not be a package.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--until-eof"]
        self._process = subprocess.Popen(
            [*command, "--rules", json.dumps(self._rules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        # The listener is bound before the line is printed: a call made now waits in its queue.
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self.__exit__()
            raise RuntimeError(f"the mock endpoint ended with {self._process.returncode}")
        self._ask("GET", "/health")
        return self

    def __exit__(self, *exc: object) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # which is what the child waits for
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def root(self) -> str:
        """The server's URL without `/v1`."""
        return self.url.removesuffix("/v1")

    def configure(self, **rules: Any) -> None:
        """Change some rules; the others stay.

        Raises:
            ValueError: A name is not a rule.
        """
        self._ask("POST", "/mock/configure", rules)

    def reset(self) -> None:
        """Forget counts and requests, and return to the rules it was started with."""
        self._ask("POST", "/mock/reset", {})

    def stats(self) -> Json:
        """Return the counts since the last reset, see `Served`."""
        stats: Json = self._ask("GET", "/mock/stats")
        return stats

    async def until(self, holds: Callable[[Json], bool], timeout_s: float = 60) -> Json:
        """Wait until something holds of the counts, and return them.

        Raises:
            TimeoutError: It did not come to hold.
        """
        async with asyncio.timeout(timeout_s):
            # The event would be in another process.
            while not holds(stats := self.stats()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return stats

    def requests(self) -> list[Json]:
        """Return every chat call since the last reset, in order of arrival."""
        rows: list[Json] = self._ask("GET", "/mock/requests")
        return rows

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        host = self.root.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        value = json.loads(data) if data else None
        if response.status != 200:
            raise ValueError(value)
        return value


if __name__ == "__main__":
    main()

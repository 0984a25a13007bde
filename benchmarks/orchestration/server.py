"""A model endpoint that costs almost nothing, so that what is measured is its client.

It speaks as much of the OpenAI protocol as the measured clients need: `/v1/models`,
`/v1/chat/completions` (with `n`), vLLM's `/tokenize`, and `/bench/settings` and `/bench/stats` for
the benchmark itself. Requests are read by hand, one at a time on each kept connection; nothing is
streamed. How long a call takes and what it answers depend on its prompt's length and
its seed alone, if it has one.

`python -m benchmarks.orchestration.server` prints its port and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, cast

from benchmarks.orchestration.files import allow_many_files

CHARACTERS_PER_TOKEN = 4
MODEL = "bench"
_WORDS = "so let x be the sum of two odd n then we get an even k and it must hold that a over b "
_PROSE = _WORDS * 2000


@dataclass(frozen=True, slots=True)
class Settings:
    """How the endpoint answers."""

    delay_s: float = 0.0
    """Seconds that a call takes."""
    lognormal: tuple[float, float] | None = None
    """Median in seconds, and sigma, of a log-normal call time that takes the place of `delay_s`."""
    tokens: int = 256
    """Completion tokens of a call."""
    tokens_per_s: float | None = None
    """Pace of a call; completion tokens are then this times its seconds, and not `tokens`."""
    answers: int = 5
    """How many different answers there are."""


@dataclass(slots=True)
class Served:
    """What was served since the settings were last set."""

    calls: int = 0
    """Chat completions that were begun."""
    choices: int = 0
    """Completions that were sent; one call may ask for several."""
    tokenized: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    aborted: int = 0
    """Calls whose client left before the reply."""
    prompt_tokens: int = 0
    """Of completed calls."""
    completion_tokens: int = 0
    """Of completed calls."""
    aborted_tokens: int = 0
    """Completion tokens that aborted calls had been given by then, at the pace of their reply."""
    cpu_s: float = field(default=0.0)
    """CPU time of this process."""


class Endpoint:
    """What all connections share."""

    def __init__(self) -> None:
        self.configure({})

    def configure(self, changes: dict[str, Any]) -> None:
        """Take new settings and forget what was served."""
        self.settings = Settings(**changes)
        self.served = Served()
        self._cpu_s = time.process_time()

    def stats(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        self.served.cpu_s = time.process_time() - self._cpu_s
        return asdict(self.served)

    def draw(self, body: dict[str, Any]) -> Draw:
        """Decide on a reply."""
        settings = self.settings
        length = sum(len(message["content"]) for message in body["messages"])
        seed = body.get("seed")
        # Without a seed every call is a sample of its own.
        draw = Random(f"{self.served.calls if seed is None else seed} {length}")
        seconds = settings.delay_s
        if settings.lognormal is not None:
            median, sigma = settings.lognormal
            seconds = median * draw.lognormvariate(0.0, sigma)
        tokens = settings.tokens
        if settings.tokens_per_s is not None:
            tokens = max(16, round(seconds * settings.tokens_per_s))
        prompt = length // CHARACTERS_PER_TOKEN + 8
        return Draw(seconds, prompt, tokens, draw.randrange(settings.answers), body.get("n") or 1)


@dataclass(frozen=True, slots=True)
class Draw:
    """One reply, before it is sent."""

    seconds: float
    prompt_tokens: int
    tokens: int
    answer: int
    copies: int

    def body(self) -> dict[str, Any]:
        """Write the reply."""
        ending = f"\nThe answer is \\boxed{{{self.answer}}}."
        length = max(0, self.tokens * CHARACTERS_PER_TOKEN - len(ending))
        start = 7 * self.answer
        text = _PROSE[start : start + length] + ending
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": None,
            }
            for index in range(self.copies)
        ]
        completion = self.tokens * self.copies
        return {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": choices,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": completion,
                "total_tokens": self.prompt_tokens + completion,
            },
        }


class Connection(asyncio.Protocol):
    """One client connection, whose requests come one after another."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._buffer = bytearray()
        self._call: tuple[Draw, float, asyncio.TimerHandle, Served] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is complete."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).split(b"\r\n")
        length = next(
            (int(line[15:]) for line in head if line[:15].lower() == b"content-length:"), 0
        )
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        self._serve(head[0].split(b" ")[1].decode(), json.loads(body) if body else {})

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the call that is under way, and note how far it had come."""
        if self._call is None:
            return
        draw, began, timer, served = self._call
        timer.cancel()
        served.in_flight -= 1
        served.aborted += 1
        share = min(1.0, (time.perf_counter() - began) / draw.seconds) if draw.seconds else 1.0
        served.aborted_tokens += round(share * draw.tokens * draw.copies)

    def _serve(self, path: str, body: dict[str, Any]) -> None:
        endpoint, served = self._endpoint, self._endpoint.served
        if path == "/v1/chat/completions":
            draw = endpoint.draw(body)
            served.calls += 1
            served.in_flight += 1
            served.peak_in_flight = max(served.peak_in_flight, served.in_flight)
            timer = asyncio.get_running_loop().call_later(draw.seconds, self._finish)
            self._call = draw, time.perf_counter(), timer, served
        elif path == "/tokenize":
            served.tokenized += 1
            self._send({"count": -(-len(body["prompt"]) // CHARACTERS_PER_TOKEN)})
        elif path == "/v1/models":
            self._send({"object": "list", "data": [{"id": MODEL, "max_model_len": 1_000_000}]})
        elif path == "/bench/settings":
            endpoint.configure(body)
            self._send({})
        elif path == "/bench/stats":
            self._send(endpoint.stats())
        else:
            self._send({"error": {"message": f"no such path: {path}"}}, status="404 Not Found")

    def _finish(self) -> None:
        assert self._call is not None
        draw, _, _, served = self._call
        self._call = None
        served.in_flight -= 1
        served.choices += draw.copies
        served.prompt_tokens += draw.prompt_tokens
        served.completion_tokens += draw.tokens * draw.copies
        self._send(draw.body())

    def _send(self, value: dict[str, Any], *, status: str = "200 OK") -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
        self._transport.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)


async def serve(listener: socket.socket) -> None:
    """Serve until the process ends."""
    endpoint = Endpoint()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(endpoint), sock=listener, backlog=8192)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Tell the port, then serve for as long as standard input stays open."""
    allow_many_files()
    # By name: what "localhost" stands for on this machine is what clients will connect to.
    listener = socket.create_server(("localhost", 0), backlog=8192)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    try:
        import uvloop
    except ImportError:  # slower, and as correct
        asyncio.run(serve(listener))
    else:
        uvloop.run(serve(listener))


if __name__ == "__main__":
    main()

"""Clients that connect and keep the server waiting, hundreds at once; all on loopback."""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import httpx2
import openai
import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.server import OpenConnections, SolveServer, listen
from tests.serve.conftest import ASK, SMALL
from tests.serve.test_chat import ask

pytestmark = pytest.mark.security

SHORT = {"head_s": 0.5, "body_s": 0.5, "idle_s": 0.5, "stall_s": 0.5}
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
CHAT = json.dumps({"model": SMALL, "messages": ASK}).encode()
RUN = POST + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT

# What is sent at once, and what is sent again and again until the server has had enough.
WAYS = {
    "nothing": (b"", b""),
    "half a line": (b"GET /hea", b""),
    "half a head": (HEALTH, b""),
    "a head bit by bit": (HEALTH, b"X: y\r\n"),
    "a line bit by bit": (b"GET /", b"a"),
    "nothing more": (HEALTH + b"\r\n", b""),
    "half a second request": (HEALTH + b"\r\n" + HEALTH, b""),
    "half a body": (POST + b"Content-Length: 99\r\n\r\n{", b""),
    "a body bit by bit": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a body that is not asked for": (HEALTH + b"Content-Length: 99999\r\n\r\n", b"x"),
    "half a body that is not asked for": (HEALTH + b"Content-Length: 9\r\n\r\n", b""),
}


def port_of(served) -> int:
    return int(served.root.rpartition(":")[2])


@contextmanager
def sockets(
    port: int, size: int, source: str = "127.0.0.1", *, buffer: int = 4096
) -> Iterator[list[socket.socket]]:
    """Connect so often from one address of this machine; the system reads ahead so many bytes."""
    opened: list[socket.socket] = []
    try:
        for _ in range(size):
            each = socket.socket()
            opened.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            each.bind((source, 0))
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(("127.0.0.1", port))
        yield opened
    finally:
        for each in opened:
            each.close()


def is_open(each: socket.socket) -> bool:
    """Tell whether the server has not closed the connection, without reading what it has sent."""
    state = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in {1, 2}  # established, or being so


async def until_few(opened: list[socket.socket], most: int) -> None:
    """Wait until no more than so many are open."""
    async with asyncio.timeout(60):
        while sum(map(is_open, opened)) > most:  # noqa: ASYNC110  # the system tells it, no event
            await asyncio.sleep(0.05)


async def until_closed(opened: list[socket.socket], within_s: float, drip: bytes = b"") -> int:
    """Return how many are still open after that time."""
    until = time.monotonic() + within_s
    while left := [each for each in opened if is_open(each)]:
        if time.monotonic() > until:
            break
        for each in left if drip else ():
            with suppress(OSError):
                each.send(drip)
        await asyncio.sleep(0.05)
    return len(left)


@asynccontextmanager
async def healthy(served) -> AsyncIterator[list[float]]:
    """Ask for the health all the time, by connections of its own; seconds of each answer."""
    seconds: list[float] = []

    async def poll() -> None:
        while True:
            began = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(served))
            try:
                writer.write(HEALTH + b"Connection: close\r\n\r\n")
                async with asyncio.timeout(30):
                    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.close()
                await writer.wait_closed()
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.02)

    polling = asyncio.create_task(poll())
    try:
        yield seconds
        assert not polling.done(), polling.exception()
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)


def assert_prompt(seconds: list[float]) -> None:
    """Others are served meanwhile: most at once, each within seconds, on a crowded machine too."""
    assert statistics.median(seconds) < 0.5
    assert max(seconds) < 15


@pytest.mark.parametrize("way", WAYS)
async def test_who_keeps_the_server_waiting_is_disconnected(serve, way):
    """Whatever is not sent; others are answered meanwhile."""
    served = await serve(**SHORT)
    begin, drip = WAYS[way]
    async with healthy(served) as seconds:
        with sockets(port_of(served), 100) as opened:
            await asyncio.sleep(0.2)
            for each in opened if begin else ():
                each.send(begin)
            # The sweep comes every half second.
            assert await until_closed(opened, 60, drip) == 0
    assert len(seconds) > 2
    assert_prompt(seconds)


async def test_half_a_request_is_told_why(serve):
    """408 in OpenAI's form."""
    served = await serve(**SHORT)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(served))
    writer.write(HEALTH)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["message"] == "the head of the request took too long"
    writer.close()


async def test_a_client_that_closes_its_half_is_forgotten(serve):
    """Before, in and after a request."""
    served = await serve()
    for begin in (b"", HEALTH, HEALTH + b"\r\n", POST + b"Content-Length: 99\r\n\r\n{"):
        with sockets(port_of(served), 50) as opened:
            await asyncio.sleep(0.1)
            for each in opened:
                each.send(begin)
                each.shutdown(socket.SHUT_WR)
            for each in opened:
                each.setblocking(True)
                each.settimeout(2)
                while await asyncio.to_thread(each.recv, 4096):
                    pass


async def test_replies_that_nobody_reads(serve):
    """Requests are sent in a row and no reply is read, until all buffers are full."""
    served = await serve(**SHORT)
    large = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    async with healthy(served) as seconds:
        with sockets(port_of(served), 20) as opened:
            await asyncio.sleep(0.1)
            for each in opened:
                each.send(large)
            assert await until_closed(opened, 60) == 0
    assert_prompt(seconds)


async def test_a_stream_that_nobody_reads(serve):
    """The application learns that its client is gone; a client that reads slowly is served on."""
    left = []

    async def endless(scope, receive, send) -> None:
        head = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        gone = asyncio.ensure_future(receive())
        gone = asyncio.ensure_future(receive())
        try:
            while not gone.done():
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        finally:
            gone.cancel()
            left.append(scope["path"])

    options = ServeOptions(_env_file=None, **SHORT)
    runner = (await serve()).runner
    server = SolveServer(endless, runner, drain_s=0, say=lambda line: None, options=options)
    listener = listen("127.0.0.1", 0)
    running = asyncio.create_task(server.run(listener))
    await asyncio.sleep(0.05)
    try:
        port = listener.getsockname()[1]
        with sockets(port, 50) as opened, sockets(port, 1, buffer=2**18) as (reader,):
            await asyncio.sleep(0.1)
            for each in opened:
                each.send(b"GET /unread HTTP/1.1\r\nHost: localhost\r\n\r\n")
            reader.send(b"GET /read HTTP/1.1\r\nHost: localhost\r\n\r\n")
            began = time.monotonic()
            while time.monotonic() < began + 3:
                with suppress(BlockingIOError):
                    assert reader.recv(2**18)
                await asyncio.sleep(0.05)
            assert await until_closed(opened, 60) == 0
            assert left == ["/unread"] * 50
            assert is_open(reader)
    finally:
        server.stop()
        server.stop()
        await running


async def test_a_crowd_keeps_nobody_out(serve, mock):
    """Whoever has sent no request goes first, once there are too many."""
    served = await serve(connections=60, max_by_address=60)
    async with healthy(served) as seconds:
        with sockets(port_of(served), 300, "127.0.0.2") as opened:
            await until_few(opened, 60)
            assert "boxed" in (await ask(served)).choices[0].message.content
    assert_prompt(seconds)


async def test_one_address_takes_not_all(serve, mock):
    """Its own connections go for it; those of others stay."""
    served = await serve(connections=60, max_by_address=20)
    with sockets(port_of(served), 5, "127.0.0.3") as others:
        await asyncio.sleep(0.1)
        with sockets(port_of(served), 100, "127.0.0.2") as opened:
            await until_few(opened, 20)
            assert all(map(is_open, others))


async def test_a_server_full_of_work_says_so(serve, mock):
    """Running requests are not interrupted: new ones get 503, and the health is still told."""
    mock.configure(delay_s=1.0)
    served = await serve(connections=24, max_by_address=24)
    runs = [asyncio.create_task(ask(served, model="long_cot")) for _ in range(21)]
    await mock.until(lambda stats: stats["in_flight"] == 21)
    async with healthy(served):
        async with httpx2.AsyncClient() as http:
            reply = await http.get(f"{served.url}/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_busy")
        assert reply.headers["retry-after"]
        with pytest.raises(openai.InternalServerError, match="as many connections as it may"):
            await ask(served)
    assert all("boxed" in each.choices[0].message.content for each in await asyncio.gather(*runs))
    assert [each.id async for each in served.client.models.list()]


def test_the_bound_follows_the_open_files():
    """Half of them, three quarters of that for one address; more than there are is refused."""
    options = ServeOptions(_env_file=None)
    found = OpenConnections.within(400, options)
    assert (found.most, found.most_by_address) == (200, 150)
    greedy = options.model_copy(update={"connections": 400})
    with pytest.raises(ConfigError, match="--connections 400 needs as many open files"):
        OpenConnections.within(400, greedy)


async def test_the_descriptors_are_never_used_up(mock, clean):
    """A process that may have 400 files, and 1500 clients that say nothing."""
    words = "serve --port 0 --quiet --checkpoint memory --head-s 1"
    process = subprocess.Popen(  # noqa: ASYNC220  # it returns at once
        [
            *("sh", "-c", 'ulimit -n 400; exec "$0" -m pdr_graph.cli "$@"', sys.executable),
            *words.split(),
            *("--base-url", mock.url),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        root = (await asyncio.to_thread(process.stdout.readline)).strip().removesuffix("/v1")
        port = int(root.rpartition(":")[2])
        with sockets(port, 700, "127.0.0.2") as early, sockets(port, 800, "127.0.0.3") as late:
            async with httpx2.AsyncClient(timeout=5) as http:
                for _ in range(10):
                    assert (await http.get(f"{root}/health")).status_code == 200
                    await asyncio.sleep(0.05)
            await until_few([*early, *late], 200)
            assert await until_closed([*early, *late], 8) == 0
    finally:
        process.terminate()
        _, said = await asyncio.to_thread(process.communicate, None, 30)
    assert "socket.accept" not in said

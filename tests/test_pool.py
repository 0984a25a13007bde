"""The HTTP connections: kept, lent to one call at a time, closed in the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

import pdr_graph.llm.pool as pool_module
from pdr_graph.llm.pool import LoopTransport, make_http_client

DESCRIPTORS = Path("/proc/self/fd")


class Server:
    """Answers every request after `delay_s`, and knows its connections."""

    def __init__(self) -> None:
        self.opened = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.delay_s = 0.0
        self.hang_up = 0
        """So many requests more are read and answered by closing their connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.writers.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(self.delay_s)
                if self.hang_up:
                    self.hang_up -= 1
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    state = Server()
    listener = await asyncio.start_server(state.serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    yield state
    listener.close()
    for writer in list(state.writers):
        writer.close()
    await asyncio.sleep(0.01)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with make_http_client() as client:
        yield client


async def settled(holds) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # the server's side has no event for it
            await asyncio.sleep(0.005)


async def test_calls_after_one_another_share_a_connection(server, http):
    """A kept connection saves the handshake."""
    for _ in range(5):
        assert (await http.get(server.url)).text == "ok"
    assert server.opened == 1


async def test_calls_side_by_side_have_a_connection_each_and_keep_it(server, http):
    """Forty at once open forty connections, and the next forty open none."""
    server.delay_s = 0.1
    for _ in range(2):
        replies = await asyncio.gather(*(http.get(server.url) for _ in range(40)))
        assert [reply.text for reply in replies] == ["ok"] * 40
        assert server.opened == 40


async def test_a_cancelled_call_closes_its_connection_at_the_server(server, http):
    """What nobody waits for must not go on, and its connection is not handed to the next call."""
    server.delay_s = 30
    call = asyncio.create_task(http.get(server.url))
    await settled(lambda: server.opened == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    server.delay_s = 0
    assert (await http.get(server.url)).text == "ok"
    assert server.opened == 2


async def test_a_connection_that_the_server_closed_is_replaced(server, http):
    """A server that restarts costs a handshake and no call."""
    await http.get(server.url)
    for writer in list(server.writers):
        writer.close()
    await settled(lambda: not server.writers)
    assert (await http.get(server.url)).text == "ok"
    assert server.opened == 2


async def test_a_kept_connection_that_closes_under_a_request_is_replaced(server, http):
    """A server may give it up just as the request is on its way, and has not worked on it."""
    await http.get(server.url)
    server.hang_up = 1
    assert (await http.post(server.url, content=b"\r\n\r\n")).text == "ok"
    assert server.opened == 2


@pytest.mark.parametrize(
    ("kept", "delay_s"), [(False, 0.0), (True, 0.4)], ids=["new connection", "later"]
)
async def test_a_request_that_may_have_been_worked_on_is_not_sent_again(
    server, http, kept, delay_s
):
    """A server that dies over a call has cost something, which the caller must learn."""
    if kept:
        await http.get(server.url)
    server.hang_up, server.delay_s = 1, delay_s
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.get(server.url)
    assert server.opened == 1


async def test_a_body_that_is_closed_twice_frees_its_connection_once(server, http):
    """Otherwise two calls would share one connection."""
    async with http.stream("GET", server.url) as reply:
        await reply.aread()
    await reply.aclose()
    await reply.stream.aclose()
    server.delay_s = 0.05
    await asyncio.gather(*(http.get(server.url) for _ in range(2)))
    assert server.opened == 2


async def test_a_body_that_is_left_half_read_frees_a_usable_connection(server, http):
    """A reader that stops early leaves no rest of its reply to the next call."""
    async with http.stream("GET", server.url) as reply:
        assert reply.status_code == 200
    assert (await http.get(server.url)).text == "ok"


async def test_free_connections_are_bounded(server, http, monkeypatch):
    """A burst does not keep its connections for ever."""
    monkeypatch.setattr(pool_module, "_MOST_IDLE", 4)
    server.delay_s = 0.05
    await asyncio.gather(*(http.get(server.url) for _ in range(20)))
    await http.get(server.url)
    await settled(lambda: len(server.writers) == 5)


async def test_free_connections_grow_old(server, http, monkeypatch):
    """Those that a quieter time does not need are closed."""
    server.delay_s = 0.02
    await asyncio.gather(*(http.get(server.url) for _ in range(10)))
    monkeypatch.setattr(pool_module, "_IDLE_S", 0.0)
    await http.get(server.url)
    await settled(lambda: len(server.writers) == 1)


async def test_closing_ends_every_connection_and_a_later_call_opens_one(server):
    """A transport that was closed is as good as new."""
    transport = LoopTransport()
    async with httpx2.AsyncClient(transport=transport) as http:
        server.delay_s = 0.02
        await asyncio.gather(*(http.get(server.url) for _ in range(3)))
        await transport.aclose()
        await settled(lambda: not server.writers)
        assert (await http.get(server.url)).text == "ok"


async def test_a_refused_connection_says_so(http):
    """The pool adds nothing to the error that tells a dead server."""
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    with pytest.raises(httpx2.ConnectError):
        await http.get(f"http://127.0.0.1:{port}/")


def test_one_client_serves_one_event_loop_after_another():
    """`asyncio.run` twice with the same client, as scripts do."""
    http = make_http_client()

    async def once() -> str:
        state = Server()
        listener = await asyncio.start_server(state.serve, "127.0.0.1", 0)
        async with listener:
            reply = await http.get(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
            await http._transport.aclose()
            await settled(lambda: not state.writers)
        return reply.text

    assert [asyncio.run(once()) for _ in range(2)] == ["ok", "ok"]


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts descriptors in /proc")
async def test_nothing_stays_open(server):
    """After a hundred calls, some of them cancelled, closing leaves no descriptor behind."""
    server.delay_s = 0.05
    before = num_open()
    async with make_http_client() as http:
        calls = [asyncio.create_task(http.get(server.url)) for _ in range(100)]
        await settled(lambda: server.opened > 50)
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await settled(lambda: not server.writers)
    await settled(lambda: num_open() <= before)


def num_open() -> int:
    """Descriptors of this process."""
    return len(list(DESCRIPTORS.iterdir()))

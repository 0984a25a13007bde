"""Every refusal is counted and logged once, whichever layer makes it."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress

import httpx2
import openai
import pytest
from prometheus_client import CollectorRegistry

from pdr_graph.serve.refusal import GUESSES, MOST_LINES, RefusalError, RefusalLog
from tests.serve.conftest import ASK, SMALL
from tests.serve.test_chat import ask

BODY = {"model": SMALL, "messages": ASK}
CHAT = json.dumps(BODY).encode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def http():
    async with httpx2.AsyncClient() as client:
        yield client


@pytest.fixture
def lines(caplog):
    """What the server logs of refusals."""
    caplog.set_level(logging.INFO, logger="pdr_graph.serve")
    return lambda: [
        each.getMessage()
        for each in caplog.records
        if each.getMessage().startswith("request.refused")
    ]


def refused(served) -> dict[tuple[str, str], int]:
    """Refusals by status and reason, as `/metrics` shows them."""
    text = served.runner.metrics.text().decode()
    found = re.findall(r'^pdr_refusals_total\{reason="(\w+)",status="(\d+)"\} (\S+)', text, re.M)
    return {(status, reason): int(float(number)) for reason, status, number in found}


async def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def sent(served, data: bytes, *, then: float = 0.0) -> bytes:
    """Send bytes on a connection of one's own, and read until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.root.rpartition(":")[2]))
    writer.write(data)
    await asyncio.sleep(then)
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    return reply


REFUSED = [
    ("GET", "/v1/models", {}, b"", {"Host": "evil.example"}, ("403", "host_not_allowed")),
    ("POST", "/v1/chat/completions", {}, b"{", JSON, ("400", "invalid_json")),
    ("POST", "/v1/chat/completions", {}, b"[1]", JSON, ("400", "invalid_request")),
    ("POST", "/v1/chat/completions", {}, b"a=b", {}, ("415", "body_not_json")),
    ("POST", "/v1/chat/completions", {}, b" " * 3000, JSON, ("413", "body_too_large")),
    ("POST", "/v1/chat/completions", {"temperature": 9}, b"", JSON, ("400", "invalid_request")),
    ("POST", "/v1/chat/completions", {"model": "x"}, b"", JSON, ("404", "model_not_found")),
    ("POST", "/v1/chat/completions", {"no": 1}, b"", JSON, ("400", "unsupported_parameter")),
    ("GET", "/v1/nothing", {}, b"", {}, ("404", "not_found")),
    ("GET", "/v1/chat/completions", {}, b"", {}, ("405", "method_not_allowed")),
    ("GET", "/v1/responses/resp_1", {}, b"", {}, ("404", "response_not_found")),
]


@pytest.mark.security
@pytest.mark.parametrize(
    ("method", "path", "fields", "content", "headers", "key"), REFUSED, ids=lambda each: str(each)
)
async def test_a_refusal_is_counted_once(
    serve, mock, http, lines, method, path, fields, content, headers, key
):
    """With its status and its reason; the log has one line that names who was refused what."""
    served = await serve(max_body_bytes=2000)
    if fields:
        content = json.dumps({**BODY, **fields}).encode()
    reply = await http.request(method, served.root + path, content=content or None, headers=headers)
    assert str(reply.status_code) == key[0], reply.text
    assert refused(served) == {key: 1}
    [line] = lines()
    assert f"status={key[0]} reason={key[1]} client=127.0.0.1 request='{method} {path}'" in line


@pytest.mark.security
async def test_what_no_application_sees_is_counted(serve, mock, lines):
    """What is no HTTP, half a head, half a body, and silence."""
    served = await serve(head_s=0.3, body_s=0.3)
    assert b" 400 " in await sent(served, b"\x16\x03\x01 no http\r\n\r\n")
    assert b" 408 " in await sent(served, b"GET /hea")
    assert b" 408 " in await sent(
        served,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    )
    assert await sent(served, b"") == b""
    assert refused(served) == {
        ("400", "invalid_http"): 1,
        ("408", "head_too_slow"): 1,
        ("408", "too_slow"): 1,
        ("0", "connection_silent"): 1,
    }
    assert len(lines()) == 4


@pytest.mark.security
async def test_connections_beyond_the_bound_are_counted(serve, mock):
    """One that makes room for another, and one for which there is no room."""
    served = await serve(connections=8, max_by_address=2)
    port = int(served.root.rpartition(":")[2])
    ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await until(lambda: refused(served) == {("0", "connection_displaced"): 1})
    for _, writer in ends:
        writer.close()
    await asyncio.sleep(0.3)
    mock.configure(delay_s=10.0)
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(CHAT)
    )
    busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for _, writer in busy:
        writer.write(request + CHAT)
        await writer.drain()
    await until(lambda: served.runner.admission.running == 2)
    reader, third = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            assert await reader.read(1) == b""
    assert refused(served)["0", "connection_full"] == 1
    for writer in (third, *(writer for _, writer in (*ends, *busy))):
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_that_goes_is_not_refused(serve, mock, http, lines):
    """Nor is one who asks a stopping server for its health."""
    served = await serve()
    assert (await http.get(f"{served.root}/health")).is_success
    mock.configure(delay_s=5)
    with pytest.raises(httpx2.ReadTimeout):
        await http.post(f"{served.url}/chat/completions", json=BODY, timeout=0.5)
    await asyncio.sleep(0.2)
    served.runner.admission.close()
    assert (await http.get(f"{served.root}/health")).status_code == 503
    assert refused(served) == {}
    assert lines() == []


async def test_a_refusal_in_a_stream_is_counted(serve, mock):
    """Its status went out before, so that the reply itself says 200."""
    mock.configure(status=[{"status": 400, "body": {"error": {"message": "no"}}}])
    served = await serve()
    with pytest.raises(openai.APIError):
        async for _ in await ask(served, stream=True):
            pass
    assert refused(served) == {("502", "model_failed"): 1}


@pytest.mark.security
async def test_guessing_of_keys_shows(serve, mock, http, caplog):
    """By kind in the metrics, from zero on; many from one address are a warning without the key."""
    served = await serve(key="sesame")
    text = served.runner.metrics.text().decode()
    assert 'pdr_authentication_failures_total{reason="wrong"} 0.0' in text
    await http.get(f"{served.url}/models")
    await http.get(f"{served.url}/models", headers={"Authorization": "Basic c2VzYW1l"})
    for number in range(GUESSES):
        await http.get(f"{served.url}/models", headers={"Authorization": f"Bearer guess{number}"})
    text = served.runner.metrics.text().decode()
    for kind, number in (("missing", 1), ("not_bearer", 1), ("wrong", GUESSES)):
        assert f'pdr_authentication_failures_total{{reason="{kind}"}} {number}.0' in text
    assert refused(served) == {("401", "invalid_api_key"): GUESSES + 2}
    [warning] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert warning.getMessage().startswith("key.guessing client=127.0.0.1: 10 wrong keys within")
    assert "guess1" not in caplog.text


@pytest.mark.security
async def test_labels_and_lines_are_not_of_a_clients_making(serve, mock, http, lines):
    """A thousand paths are one series; what breaks a line is escaped, and the rest is cut."""
    served = await serve()
    for number in range(20):
        await http.get(f"{served.root}/made-up-{number}")
    await http.get(f"{served.root}/%0Arequest.refused%20status=200%1b[2J" + "x" * 500)
    assert refused(served) == {("404", "not_found"): 21}
    assert "made-up" not in served.runner.metrics.text().decode()
    assert all(line.isprintable() and len(line) < 300 for line in lines())


def test_a_flood_does_not_fill_the_log(lines):
    """All are counted; of those in one second some are logged, and the next line has the rest."""
    log = RefusalLog(CollectorRegistry())
    for _ in range(3 * MOST_LINES):
        log.note(RefusalError(404, "nothing"))
    shown = lines()
    assert MOST_LINES <= len(shown) <= 2 * MOST_LINES + 1
    log._second = -1
    log.note(RefusalError(404, "nothing"))
    assert f"left_out={3 * MOST_LINES - len(shown)}" in lines()[-1]

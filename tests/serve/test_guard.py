"""What never reaches the application."""

import asyncio

import httpx2
import pytest

from tests.serve.conftest import ASK, SMALL

BODY = {"model": SMALL, "messages": ASK}


@pytest.fixture
async def http():
    async with httpx2.AsyncClient() as client:
        yield client


@pytest.mark.security
async def test_a_key_is_asked_for(serve, mock, http):
    """By everything but the health check; a wrong one of any kind is refused."""
    served = await serve(key="sesame")
    for header in (None, "Bearer", "Bearer sesam", "Bearer sesame2", "Basic sesame", "Bearer é"):
        headers = {} if header is None else {"Authorization": header.encode()}
        reply = await http.get(f"{served.url}/models", headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        refused = await http.post(f"{served.url}/chat/completions", json=BODY, headers=headers)
        assert refused.status_code == 401
        assert (await http.get(f"{served.root}/metrics", headers=headers)).status_code == 401
    assert (await http.get(f"{served.root}/health")).json()["status"] == "ok"
    assert [each.id async for each in await served.client.models.list()]
    assert mock.stats()["calls"] == 0


@pytest.mark.security
async def test_a_large_body_is_refused(serve, mock, http):
    """Whether it says its length or comes in pieces."""
    served = await serve(max_body_bytes=2000)
    body = {**BODY, "messages": [{"role": "user", "content": "x" * 3000}]}

    async def pieces():
        for _ in range(30):
            yield b" " * 100

    json_kind = {"Content-Type": "application/json"}
    url = f"{served.url}/chat/completions"
    assert (await http.post(url, json=body)).status_code == 413
    assert (await http.post(url, content=pieces(), headers=json_kind)).status_code == 413
    assert (await http.post(url, json=BODY)).status_code == 200


JSON = "application/json"
NOT_JSON = [
    (b"{", JSON, 400),
    (b"", JSON, 400),
    (b"[1]", JSON, 400),
    (b"\xff\xfe", JSON, 400),
    (b'{"model": NaN}', JSON, 400),
    (b"[" * 100_000, JSON, 400),
    (b'{"model": "pdr", "messages": [{"role": "user", "content": "a"}]}', "text/plain", 415),
    (b"a=b", "application/x-www-form-urlencoded", 415),
]


@pytest.mark.security
async def test_what_is_no_json_is_refused(serve, mock, http, subtests):
    """In OpenAI's form, whatever it is; a web page cannot send JSON without being allowed to."""
    served = await serve()
    url = f"{served.url}/chat/completions"
    for content, kind, status in NOT_JSON:
        with subtests.test(content=content[:20], kind=kind):
            reply = await http.post(url, content=content, headers={"Content-Type": kind})
            assert reply.status_code == status
            assert reply.json()["error"]["message"]


@pytest.mark.security
async def test_half_a_character_is_read_as_a_mark(serve, mock, http):
    """A lone surrogate can be in JSON and in no request to a model."""
    served = await serve()
    content = b'{"model": "long_cot", "messages": [{"role": "user", "content": "a\\ud800b"}]}'
    reply = await http.post(
        f"{served.url}/chat/completions",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    assert reply.status_code == 200


@pytest.mark.security
async def test_another_host_name_is_refused_without_a_key(serve, mock, http):
    """A web page could otherwise reach the server by a name of its own."""
    served = await serve()
    for host, status in (
        ("evil.example", 403),
        ("localhost", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
    ):
        reply = await http.get(f"{served.url}/models", headers={"Host": host})
        assert reply.status_code == status, host
    keyed = await serve(key="k")
    headers = {"Host": "proxy.example", "Authorization": "Bearer k"}
    assert (await http.get(f"{keyed.url}/models", headers=headers)).status_code == 200


async def test_unknown_paths_and_methods(serve, mock, http):
    """Are refused in the same form."""
    served = await serve()
    missing = await http.get(f"{served.url}/nothing")
    assert (missing.status_code, missing.json()["error"]["message"]) == (
        404,
        "there is nothing at /v1/nothing",
    )
    wrong = await http.get(f"{served.url}/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    several = await http.patch(f"{served.url}/responses/resp_1", json={})
    assert (several.status_code, several.headers["allow"]) == (405, "DELETE, GET")
    assert (await http.get(f"{served.url}/models/nothing")).status_code == 404


@pytest.mark.security
async def test_a_client_that_leaves_before_its_body_has_come(serve, mock, http, caplog):
    """Is forgotten, and nothing is logged as a defect."""
    served = await serve()
    host, _, port = served.root.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # Whoever comes next is served, and nothing is left of who went.
    assert (await http.get(f"{served.root}/health")).json()["running"] == 0
    assert served.runner.admission.running == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

"""What never reaches the application."""

import asyncio

import httpx2
import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.serve.options import ServeOptions
from pdr_graph.settings import read_settings
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


STRANGE = [
    b"evil.example",
    b"evil.example:8100",
    b"localhost.evil.example",
    b"evil.localhost",
    b"localhost:80:80",
    b"localhost:80a",
    b"localhost, evil.example",
    b"localhost@evil.example",
    b"evil.example#localhost",
    b"localhost/evil.example",
    b"127.0.0.1.evil.example",
    b"127.1",
    b"2130706433",
    b"[::1",
    b"::1",
    b"[127.0.0.1]",
    b"[::1]evil.example",
    b"localhost..",
    b"\xc4\xb0localhost",
    b"",
]
OURS = ["localhost", "LocalHost:1", "localhost.", "127.0.0.1:", "127.9.9.9", "[::1]", "[0:0::1]:80"]


async def status_of(served, *heads: bytes, target: bytes = b"/v1/models", version=b"1.1") -> int:
    """Ask by a request of one's own, whatever it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.root.rpartition(":")[2]))
    lines = [b"GET %s HTTP/%s" % (target, version), *heads, b"Connection: close", b"", b""]
    writer.write(b"\r\n".join(lines))
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(reply.split(b" ", 2)[1])


@pytest.mark.security
@pytest.mark.parametrize(
    "fields", [{}, {"keyless": True}, {"host": "0.0.0.0", "keyless": True}], ids=str
)
async def test_no_page_reaches_a_server_by_a_name_of_its_own(serve, mock, fields):
    """However the name is written, and wherever a server without a key listens."""
    served = await serve(**fields)
    for host in STRANGE:
        for more in ((), (b"X-Forwarded-Host: localhost", b"Forwarded: host=localhost")):
            assert await status_of(served, b"Host: " + host, *more) in {400, 403}, host
    assert await status_of(served, version=b"1.0") == 403
    assert await status_of(served, b"Host: localhost", b"Host: evil.example") == 400
    assert await status_of(served, b"Host: evil.example", b"Host: localhost") == 400
    for target in (b"http://evil.example/v1/models", b"//evil.example/v1/models", b"*"):
        assert await status_of(served, b"Host: localhost", target=target) in {400, 404}
        assert await status_of(served, b"Host: evil.example", target=target) in {400, 403}
    for host in OURS:
        assert await status_of(served, b"Host: " + host.encode()) == 200, host


@pytest.mark.security
async def test_names_of_a_server_are_allowed_one_by_one(serve, mock, http):
    """By option; an address is no name that a page can give itself."""
    named = {"allowed_hosts": ("pdr.example", "GPU-box")}
    for fields in (named, {**named, "key": "k"}):
        served = await serve(**fields)
        for host, status in {
            **{"pdr.example": 200, "PDR.example.:9": 200, "gpu-box:8100": 200},
            **{"a.pdr.example": 403, "evil.example": 403, "10.0.0.5": 403},
        }.items():
            headers = {"Host": host, "Authorization": "Bearer k"}
            reply = await http.get(f"{served.url}/models", headers=headers)
            assert reply.status_code == status, host
    assert "--allowed-host" in reply.json()["error"]["message"]
    public = await serve(host="0.0.0.0", keyless=True)
    for host, status in {"10.0.0.5:8100": 200, "[fe80::1]": 200, "evil.example": 403}.items():
        reply = await http.get(
            f"http://127.0.0.1:{public.root.rpartition(':')[2]}/v1/models", headers={"Host": host}
        )
        assert reply.status_code == status, host
    anybody = await serve(allowed_hosts=("*",))
    assert (await http.get(f"{anybody.url}/models", headers={"Host": "a.example"})).is_success


@pytest.mark.parametrize("name", ["https://a.example", "a.example:80", "a b", "é", ""])
def test_what_is_no_host_name(name):
    """One sentence says how a name is written."""
    with pytest.raises(ConfigError, match="is no host name; write it without scheme and port"):
        read_settings(ServeOptions, {"allowed_hosts": (name,)})


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

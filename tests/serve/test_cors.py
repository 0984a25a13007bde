"""Pages of other origins: which may call the server, and which a browser keeps from it."""

import asyncio
import html
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.serve.options import ServeOptions
from pdr_graph.settings import read_settings
from tests.page.browser import CHROMIUM, dom_of
from tests.serve.conftest import ASK

PAGE = "https://app.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
BODY = {"model": "long_cot", "messages": ASK}


@pytest.fixture
async def http():
    async with httpx2.AsyncClient() as client:
        yield client


def allowed(reply) -> str | None:
    return reply.headers.get("access-control-allow-origin")


@pytest.mark.security
async def test_without_the_option_no_page_is_let_in(serve, mock, http):
    """As before: a preflight is refused, and replies say nothing to a browser."""
    served = await serve()
    url = f"{served.url}/chat/completions"
    preflight = await http.options(url, headers={"Origin": PAGE, **PREFLIGHT})
    assert preflight.status_code == 405
    reply = await http.post(url, json=BODY, headers={"Origin": PAGE})
    assert not [name for name in (*preflight.headers, *reply.headers) if "access-control" in name]


@pytest.mark.security
async def test_a_named_origin_is_let_in(serve, mock, http):
    """By its preflight, which has no key, and on replies of every kind; no other origin is."""
    served = await serve(cors=(PAGE, "http://localhost:3000"), key="sesame")
    url = f"{served.url}/chat/completions"
    preflight = await http.options(url, headers={"Origin": PAGE, **PREFLIGHT})
    assert (preflight.status_code, allowed(preflight)) == (200, PAGE)
    assert (
        preflight.headers["access-control-allow-headers"]
        == (PREFLIGHT["Access-Control-Request-Headers"])
    )
    key = {"Authorization": "Bearer sesame", "Origin": PAGE}
    for body, headers, status in [
        (BODY, key, 200),
        (BODY | {"stream": True}, key, 200),
        (BODY | {"model": "gpt-5"}, key, 404),
        (BODY | {"model": "gpt-5", "stream": True}, key, 404),
        (BODY | {"temperature": 9}, key, 400),
        (BODY, {"Origin": PAGE}, 401),
    ]:
        reply = await http.post(url, json=body, headers=headers)
        assert (reply.status_code, allowed(reply)) == (status, PAGE)
        assert "origin" in reply.headers["vary"].lower()
        exposed = reply.headers["access-control-expose-headers"].lower()
        assert "x-pdr-thread-id" in exposed
        assert "retry-after" in exposed
    other = {"Origin": "https://evil.example"}
    assert allowed(await http.options(url, headers={**other, **PREFLIGHT})) is None
    assert allowed(await http.post(url, json=BODY, headers=key | other)) is None
    again = await http.get(
        f"{served.url}/models", headers=key | {"Origin": "http://localhost:3000"}
    )
    assert (again.status_code, allowed(again)) == (200, "http://localhost:3000")


async def test_failures_of_the_server_can_be_read_too(serve, mock, http):
    """A page learns the status of a defect, which no handler of ours foresaw."""
    served = await serve(cors=(PAGE,))
    admission, served.runner.admission = served.runner.admission, None
    reply = await http.get(f"{served.root}/health", headers={"Origin": PAGE})
    served.runner.admission = admission
    assert (reply.status_code, allowed(reply)) == (500, PAGE)
    assert reply.json()["error"]["message"] == "internal error; see the server's log"


@pytest.mark.security
async def test_any_origin_may_be_let_in_but_without_credentials(serve, mock, http):
    """A browser then sends no cookie along, and no page is named."""
    served = await serve(cors=("*",))
    reply = await http.get(f"{served.url}/models", headers={"Origin": PAGE, "Cookie": "a=b"})
    preflight = await http.options(served.url, headers={"Origin": PAGE, **PREFLIGHT})
    for each in (reply, preflight):
        assert allowed(each) == "*"
        assert "access-control-allow-credentials" not in each.headers


@pytest.mark.security
async def test_the_guard_is_as_strict_as_before(serve, mock, http):
    """For what a page is let in by neither: another host name, a body that is no JSON."""
    served = await serve(cors=("*",))
    url = f"{served.url}/chat/completions"
    rebound = {"Origin": PAGE, "Host": "evil.example"}
    for reply in (
        await http.options(url, headers={**rebound, **PREFLIGHT}),
        await http.post(url, json=BODY, headers=rebound),
    ):
        assert reply.status_code == 403
    plain = {"Origin": PAGE, "Content-Type": "text/plain"}
    assert (await http.post(url, content=json.dumps(BODY), headers=plain)).status_code == 415
    assert mock.stats()["calls"] == 0


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://App.Example/", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("HTTP://LOCALHOST:80", "http://localhost"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
    ],
)
def test_an_origin_is_read_as_a_browser_writes_it(given, origin):
    """Whatever the operator types; several in the environment are separated by commas."""
    assert ServeOptions(cors=(given,), _env_file=None).cors == (origin,)


@pytest.mark.parametrize(
    "given",
    [
        *("null", "app.example", "https://", "https://app.example/chat", "https://*.example", ""),
        *("//a", "https://me@app.example", "https://app.example:port", "https://a.example?b=c"),
    ],
)
def test_what_is_no_origin(given):
    """One sentence with the value and the remedy; `null` is the origin of any sandboxed page."""
    with pytest.raises(ConfigError, match=r"is no origin; write scheme and host") as refused:
        read_settings(ServeOptions, {"cors": (given,)})
    assert repr(given) in str(refused.value)


def test_origins_in_the_environment(monkeypatch):
    """Separated by commas."""
    monkeypatch.setenv("PDR_SERVE_CORS", "https://a.example, http://localhost:3000/")
    assert ServeOptions(_env_file=None).cors == ("https://a.example", "http://localhost:3000")


PAGE_TEXT = """<!doctype html><title>caller</title><pre id="told"></pre><script>
const told = []
async function call(path, body) {
  try {
    const reply = await fetch("SERVER" + path, {
      method: "POST",
      headers: {"Content-Type": "application/json", "X-Stainless-OS": "any"},
      body: JSON.stringify(body),
    })
    const thread = reply.headers.get("x-pdr-thread-id")
    told.push([reply.status, thread !== null, await reply.text()])
  } catch (error) { told.push([String(error)]) }
}
async function calls() {
  const ask = {model: "long_cot", messages: [{role: "user", content: "What is 17 + 25?"}]}
  await call("/chat/completions", ask)
  await call("/responses", {model: "long_cot", input: "What is 17 + 25?", stream: true})
  await call("/chat/completions", {...ask, temperature: 9})
  if (parent !== window) { parent.postMessage(told, "*") }
  return told
}
async function both() {
  const other = new Promise(resolve => { onmessage = event => resolve(event.data) })
  const frame = document.body.appendChild(document.createElement("iframe"))
  frame.src = "OTHER"
  const all = {named: await calls(), other: await other}
  document.getElementById("told").textContent = JSON.stringify(all)
}
onload = location.hostname === "localhost" ? calls : both
</script>
"""


@asynccontextmanager
async def page_server(text: Callable[[int], str]) -> AsyncIterator[int]:
    """Serve one page at any path; yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = text(writer.get_extra_info("sockname")[1]).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")
@pytest.mark.security
async def test_in_a_real_browser(serve, mock, tmp_path):
    """The page of a named origin reads answer, stream and error; another one reads nothing."""
    address = ""

    def text(port: int) -> str:
        return PAGE_TEXT.replace("SERVER", address).replace("OTHER", f"http://localhost:{port}/")

    async with page_server(text) as port:
        address = (await serve(cors=(f"http://127.0.0.1:{port}",))).url
        page = f"http://127.0.0.1:{port}/"
        dom = await asyncio.to_thread(dom_of, page, tmp_path, "--virtual-time-budget=20000")
    told = json.loads(html.unescape(dom.partition('id="told">')[2].partition("<")[0]))
    whole, stream, refused = told["named"]
    assert whole[:2] == [200, True]
    assert "boxed" in whole[2]
    assert stream[:2] == [200, True]
    assert "event: response.completed" in stream[2]
    assert refused[:2] == [400, False]
    assert "temperature" in refused[2]
    assert told["other"] == [["TypeError: Failed to fetch"]] * 3

"""What an endpoint serves, and every way in which it may not."""

import socket
from collections.abc import Callable

import httpx2
import pytest

from pdr_graph.errors import EndpointError
from pdr_graph.llm.endpoint import EndpointInfo, chat_fields, probe_endpoint
from pdr_graph.llm.pool import make_http_client


@pytest.fixture
async def http():
    """A client as the process has it."""
    async with make_http_client() as client:
        yield client


def client_on(handler: Callable[[httpx2.Request], httpx2.Response]) -> httpx2.AsyncClient:
    """Return a client whose requests are answered by a function."""
    return httpx2.AsyncClient(transport=httpx2.MockTransport(handler))


async def refusal(http, url: str, *, api_key: str = "k", model: str | None = None) -> str:
    """Return the sentence with which an endpoint is refused."""
    with pytest.raises(EndpointError) as refused:
        await probe_endpoint(http, url, api_key=api_key, model=model)
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def test_models_and_window_are_told(mock, http):
    """VLLM lists the window beside each model."""
    mock.configure(model=["one", "two"], max_model_len=4096)
    info = await probe_endpoint(http, mock.url, api_key="k", model="two")
    assert info == EndpointInfo(("one", "two"), 4096)


async def test_the_window_is_that_of_the_model_asked_for():
    """A server of several models tells each one's window."""
    entries = [{"id": "one", "max_model_len": 1000}, {"id": "two", "max_model_len": 2000}]
    http = client_on(lambda request: httpx2.Response(200, json={"data": entries}))
    for model, window in (("one", 1000), ("two", 2000), (None, 1000)):
        info = await probe_endpoint(http, "http://x/v1", api_key="k", model=model)
        assert info.window == window


async def test_without_a_model_the_first_ones_window_is_told(mock, http):
    """The first is the one that will be asked."""
    assert (await probe_endpoint(http, mock.url, api_key="k")).window == 131_072


async def test_the_window_may_be_unknown(mock, http):
    """Most servers do not tell it; nothing is then checked against it."""
    mock.configure(list_max_model_len=False)
    info = await probe_endpoint(http, mock.url, api_key="k", model="mock-model")
    assert info == EndpointInfo(("mock-model",), None)


async def test_llama_cpp_tells_the_window_of_a_slot():
    """Its context is shared out to slots; `/props` at the root tells one slot's."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/props":
            return httpx2.Response(200, json={"default_generation_settings": {"n_ctx": 2048}})
        return httpx2.Response(200, json={"data": [{"id": "small"}]})

    info = await probe_endpoint(client_on(answer), "http://x/v1/", api_key="k", model="small")
    assert info == EndpointInfo(("small",), 2048)


async def test_a_dead_endpoint_is_named_with_the_remedy(http):
    """The address, the cause, and what to set."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    assert await refusal(http, url) == (
        f"no model endpoint answers at {url} (connection refused); "
        "start the server or set --base-url / PDR_BASE_URL"
    )


async def test_an_unknown_host_is_named(http):
    """A misspelt host has another message than a server that is down."""
    sentence = await refusal(http, "http://nowhere.invalid/v1")
    assert sentence.startswith("no model endpoint answers at http://nowhere.invalid/v1 (")


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost:8000/v1", "ftp://x/v1", ""])
async def test_an_address_without_http_is_told_how_to_write_it(http, url):
    """The most common slip."""
    assert await refusal(http, url) == (
        f"base URL {url!r} is not an http address; write it like http://127.0.0.1:8000/v1"
    )


async def test_a_port_that_does_not_exist_is_told_in_a_sentence(http):
    """99999 is no port."""
    assert "99999" in await refusal(http, "http://127.0.0.1:99999/v1")


async def test_a_wrong_model_name_lists_the_right_ones(mock, http):
    """So that the user can copy one."""
    mock.configure(model=["one", "two"])
    assert await refusal(http, mock.url, model="tow") == (
        f"model 'tow' is not served at {mock.url}; it serves: one, two"
    )


async def test_a_refused_key_is_told(mock, http):
    """With the place where it is set."""
    mock.configure(api_key="secret")
    assert await refusal(http, mock.url, api_key="wrong") == (
        f"the endpoint {mock.url} refuses the API key (HTTP 401); set --api-key / PDR_API_KEY"
    )
    assert await probe_endpoint(http, mock.url, api_key="secret")


async def test_a_key_that_no_header_can_carry_is_told(mock, http):
    """A key pasted with a typographic character is no traceback."""
    assert "API key" in await refusal(http, mock.url, api_key="“secret”")


async def test_a_missing_v1_is_suspected(mock, http):
    """The server is there, but not under this address."""
    sentence = await refusal(http, mock.root)
    assert "answers HTTP 404 without a list of models" in sentence
    assert "does its base URL end in /v1?" in sentence


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, text="<html>hello</html>"),
        httpx2.Response(200, json={"models": []}),
        httpx2.Response(200, json={"data": None}),
        httpx2.Response(200, json={"data": [{"name": "x"}]}),
        httpx2.Response(200, json={"data": {"id": "x"}}),
        httpx2.Response(200, json=[]),
        httpx2.Response(500, text="no"),
        httpx2.Response(302, headers={"location": "http://elsewhere"}),
    ],
)
async def test_a_page_that_lists_no_models_is_no_endpoint(reply):
    """Some other server answers there."""
    sentence = await refusal(client_on(lambda request: reply), "http://x/v1")
    assert f"answers HTTP {reply.status_code} without a list of models" in sentence


async def test_an_endpoint_that_serves_nothing_says_so():
    """A router without any worker behind it."""
    http = client_on(lambda request: httpx2.Response(200, json={"data": []}))
    assert (await refusal(http, "http://x/v1", model="m")).endswith("it serves: none")


async def test_asking_takes_ten_seconds_at_most():
    """A machine that answers nothing is found out soon, though replies may take for ever."""
    limits: list[dict] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        limits.append(request.extensions["timeout"])
        return httpx2.Response(200, json={"data": [{"id": "m"}]})

    await probe_endpoint(client_on(answer), "http://x/v1", api_key="k")
    assert [limit["read"] for limit in limits] == [10.0, 10.0]


async def test_the_fields_of_a_request_are_told(mock, http):
    """Servers on FastAPI describe them; a field that is not described is not sent."""
    mock.configure(chat_fields=["model", "repetition_detection"])
    fields = await chat_fields(http, mock.url, api_key="k")
    assert fields == {"model", "repetition_detection"}


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(200, text="<html>docs</html>"),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"paths": {}}),
        httpx2.Response(200, json={"paths": {"/v1/chat/completions": {"post": None}}}),
        httpx2.Response(200, json={"paths": {"/v1/chat/completions": {"post": {}}}}),
    ],
)
async def test_a_server_that_describes_nothing_is_no_error(reply):
    """llama.cpp, Ollama, and any server with its documents off."""
    http = client_on(lambda request: reply)
    assert await chat_fields(http, "http://x/v1/", api_key="k") == frozenset()


async def test_a_server_that_is_gone_describes_nothing(http):
    """The probe has said so, or the first call will."""
    assert await chat_fields(http, "http://127.0.0.1:1/v1", api_key="k") == frozenset()

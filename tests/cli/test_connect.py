"""From settings to a client that is ready, and closed again."""

import pytest

from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError, EndpointError
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.settings import load_settings

SAMPLING = Sampling(max_tokens=64, temperature=1.0, top_p=1.0, seed=1)


async def test_the_client_is_ready(clean, mock):
    """Model, window and token counts come from the endpoint; a call works."""
    async with open_client(load_settings(base_url=mock.url, retries=0)) as client:
        reply = await client.ask("What is 6 x 7?", SAMPLING, Spent())
        assert (client.name, client.window) == ("mock-model", 131_072)
        assert await client.counter.count("one two") == 3
        assert client.counter.source == "server"
        assert client.retry.attempts == 1
    assert reply.usage.completion == 64


async def test_the_environment_is_enough(clean, mock, monkeypatch):
    """A library user sets variables and asks for a client."""
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    async with open_client() as client:
        assert client.name == "mock-model"


async def test_the_key_reaches_the_endpoint(clean, mock):
    """Probe and calls carry the key."""
    mock.configure(api_key="right")
    async with open_client(load_settings(base_url=mock.url, api_key="right")) as client:
        await client.ask("hi", SAMPLING, Spent())
    with pytest.raises(EndpointError, match="refuses the API key"):
        async with open_client(load_settings(base_url=mock.url, api_key="wrong")):
            pass


@pytest.mark.parametrize("fields", [None, ["model"], ["model", "repetition_detection"]])
async def test_the_server_is_asked_to_end_loops_where_it_can(clean, mock, fields):
    """It is known before the first call, by one question that costs nobody a failure."""
    mock.configure(chat_fields=fields)
    async with open_client(load_settings(base_url=mock.url)) as client:
        for _ in range(2):
            await client.ask("What is 6 x 7?", SAMPLING, Spent())
    known = fields is not None and "repetition_detection" in fields
    asked = ["repetition_detection" in row["body"] for row in mock.requests()]
    assert asked == [known, known]
    assert mock.stats()["openapi_calls"] == 1
    assert mock.stats()["by_status"] == {"200": 2}


async def test_no_such_weights(clean):
    """A file of weights that is not there is named."""
    with pytest.raises(ConfigError, match=r"model file 'my.gguf' does not exist"):
        async with open_client(load_settings(model="my.gguf", data_dir=clean)):
            pass

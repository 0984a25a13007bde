"""`pdr-graph serve` as a process of its own: its address, its refusals, its deaths."""

import asyncio
import json
import signal
import socket
import subprocess

import httpx2
import openai
import pytest
from pdr_checkpoints import open_checkpointer

from pdr_graph.servers import embedded_valkey
from tests.cli.conftest import cli
from tests.embed.stored import until_drafts_are_stored
from tests.serve.conftest import ASK, CALLS, SMALL

__all__ = ["cli"]

pytestmark = pytest.mark.redis
NAMED = {"model": SMALL, "messages": ASK, "metadata": {"thread_id": "served"}}


def start(spawn, *words: str) -> tuple[subprocess.Popen[str], str]:
    process = spawn("serve", "--port", "0", *words)
    address = process.stdout.readline().strip()
    assert address, process.stderr.read()
    return process, address


def client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0)


async def test_a_run_survives_the_server(spawn, mock, data_dir):
    """Killed in mid-round; another server resumes it, and asks for no finished draft again."""
    mock.configure(status=[{"match": {"call": 3}, "status": "hang"}])
    process, address = await asyncio.to_thread(start, spawn)
    async with client(address) as first:
        run = asyncio.ensure_future(first.chat.completions.create(**NAMED))
        await mock.until(lambda stats: stats["calls"] == 3 and stats["in_flight"] == 1, 60)
        async with embedded_valkey(data_dir) as url, open_checkpointer(url) as saver:
            await until_drafts_are_stored(saver, "served", 2)
        process.kill()
        process.wait()
        with pytest.raises(openai.APIConnectionError):
            await run
    mock.configure(status=[])
    process, address = await asyncio.to_thread(start, spawn)
    async with client(address) as second:
        async with asyncio.timeout(120):
            while True:
                try:
                    reply = await second.chat.completions.create(**NAMED)
                    break
                except openai.ConflictError:  # the dead server's lease has yet to run out
                    await asyncio.sleep(1.0)
        again = await second.chat.completions.create(**NAMED)
    assert "boxed" in reply.choices[0].message.content
    assert again.choices[0].message.content == reply.choices[0].message.content
    assert mock.stats()["calls"] == CALLS + 1


async def test_the_first_signal_drains(spawn, mock):
    """Calls in flight are waited for, the client learns how to resume, and the exit is clean."""
    mock.configure(delay_s=1.0)
    process, address = await asyncio.to_thread(start, spawn, "--cors", "*")
    body = {**NAMED, "metadata": {"thread_id": "drained"}}
    async with client(address) as api:
        run = asyncio.ensure_future(api.chat.completions.create(**body))
        await mock.until(lambda stats: stats["in_flight"] == 3, timeout_s=60)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError, match="shutting down; send the request"):
            await run
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert mock.stats()["aborted"] == 0
    said = process.stderr.read()
    assert "for the calls of 1 run; a second signal stops at once" in said
    assert "there is no key; any web page that you open can use this server" in said


async def test_the_second_signal_stops_at_once(spawn, mock):
    """Calls are cancelled at the model, and the client still learns how to resume."""
    mock.configure(delay_s=60)
    process, address = await asyncio.to_thread(start, spawn)
    async with client(address) as api:
        body = {**NAMED, "metadata": {"thread_id": "cut"}}
        run = asyncio.ensure_future(api.chat.completions.create(**body))
        await mock.until(lambda stats: stats["in_flight"] == 3, timeout_s=60)
        process.send_signal(signal.SIGINT)
        # Two signals at once may be one.
        while "a second signal stops at once" not in await asyncio.to_thread(
            process.stderr.readline
        ):
            pass
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.InternalServerError, match="shutting down; send the request"):
            await run
    assert await asyncio.to_thread(process.wait, 60) == 0
    await mock.until(lambda stats: stats["in_flight"] == 0)
    assert "rror" not in process.stderr.read()


def test_a_taken_port(cli):
    """It is refused at once, with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cli("serve", "--port", str(port))
    assert outcome.code == 2
    assert outcome.err == (
        f"error: port {port} on 127.0.0.1 is taken; choose another by --port, or 0 for any free "
        "one\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "set a key by --key-file / PDR_SERVE_KEY, or say --keyless"),
        (["--host", "no.such.host.invalid", "--key", "k"], "'no.such.host.invalid' cannot be"),
        (["--port", "99999"], "port '99999': input should be less than or equal to 65535"),
        (["--max-runs", "0"], "max_runs '0'"),
        (["--key", "ein Schlüssel"], "key: an API key holds printable ASCII"),
        (["--answer", "essay"], "essay"),
        (["--cors", "*", "--cors", "app.example"], "'app.example' is no origin; write scheme"),
        (["--base-url", "http://127.0.0.1:9/v1", "--port", "0"], "no model endpoint answers"),
    ],
)
def test_what_cannot_be_served(cli, words, sentence):
    """One sentence, no traceback, and no key in it."""
    outcome = cli("serve", *words, "--checkpoint", "memory")
    assert outcome.code in {1, 2}
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert "Schlüssel" not in outcome.err


def test_json_tells_the_address(spawn, mock):
    """For programs that start a server; each `--cors` lets in the pages of one origin."""
    origins = ("https://a.example/", "https://b.example")
    words = [word for origin in origins for word in ("--cors", origin)]
    process = spawn("serve", "--port", "0", "--json", "--quiet", "--checkpoint", "memory", *words)
    text = ""
    while not text.endswith("}\n"):
        text += process.stdout.readline()
    address = json.loads(text)["base_url"]
    assert address.startswith("http://127.0.0.1:")
    for origin in ("https://a.example", "https://b.example", "https://c.example"):
        reply = httpx2.get(f"{address}/models", headers={"Origin": origin})
        named = origin != "https://c.example"
        assert reply.headers.get("access-control-allow-origin") == (origin if named else None)
    process.terminate()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""

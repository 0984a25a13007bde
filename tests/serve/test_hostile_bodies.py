"""One request stops no server: bodies made to be slow to refuse, with the health check beside."""

import asyncio
import json
import random
import time
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from pdr_graph.errors import PDRError
from pdr_graph.serve.chat import ChatRequest
from pdr_graph.serve.guard import MOST_VALUES, ValueCount
from pdr_graph.serve.protocol import MOST_FIELDS, MOST_ITEMS, read_request
from pdr_graph.serve.refusal import RefusalError
from tests.serve.conftest import ASK, SMALL

LIMIT = 4 * 2**20 - 64
MIB = 2**20


def filled(begin: str, item: str, end: str, most: int = LIMIT) -> bytes:
    """Return a body with as many items as fit."""
    count = (most - len(begin) - len(end)) // (len(item) + 1)
    return (begin + ",".join([item] * count) + end).encode()


def fields(begin: str, end: str, count: int) -> bytes:
    return (begin + ",".join(f'"a{index}":0' for index in range(count)) + end).encode()


CHAT = '{"model":"pdr","messages":'
ASKED = f"{CHAT}{json.dumps(ASK)},"
RESPONSE = '{"model":"pdr","input":'
WORK = "chat/completions"
BODIES = {
    # The three of the report, and what is slow for the same reason.
    "wrong messages": (WORK, filled(f"{CHAT}[", "1", "]}")),
    "bad widths": (WORK, filled(f'{ASKED}"pdr":{{"widths":[', "-1", "]}}")),
    "unknown fields": (WORK, fields("{", "}", 300_000)),
    "empty messages": (WORK, filled(f"{CHAT}[", "{}", "]}")),
    "messages without text": (WORK, filled(f"{CHAT}[", '{"role":"user"}', "]}")),
    "unknown settings": (WORK, fields(f'{ASKED}"pdr":{{', "}}", 300_000)),
    "settings in settings": (WORK, filled(f'{ASKED}"pdr":{{"widths":[', "[]", "]}}")),
    "bad stops": (WORK, filled(f'{ASKED}"stop":[', "1", "]}")),
    "labels": (WORK, fields(f'{ASKED}"metadata":{{', "}}", 300_000)),
    "tools": (WORK, filled(f'{ASKED}"tools":[', "{}", "]}")),
    "bad parts": (WORK, filled(f'{CHAT}[{{"role":"user","content":[', "1", "]}]}")),
    "bad items": ("responses", filled(f"{RESPONSE}[", "1", "]}")),
    "bad includes": ("responses", filled(f'{RESPONSE}"x","include":[', "1", "]}")),
    "bad fields": ("responses", fields(f'{RESPONSE}"x",', "}", 300_000)),
    "a list of lists": (WORK, b"[" * LIMIT),
    "no string ends": (WORK, b'"\\' * (LIMIT // 2)),
    "sixteen bits": (WORK, filled(f"{CHAT}[", "1", "]}", LIMIT // 2).decode().encode("utf-16")),
    # As much as may be sent, so that it is read.
    "just few enough": (WORK, filled(f"{CHAT}[", "1", "]}", 2 * MOST_VALUES - 64)),
    "settings just few enough": (
        WORK,
        filled(f'{ASKED}"pdr":{{"widths":[', "-1", "]}}", 3 * MOST_ITEMS),
    ),
    "fields just few enough": (WORK, fields(f'{ASKED}"pdr":{{', "}}", MOST_ITEMS - 1)),
    "a long name": (WORK, f'{ASKED}"pdr":{{"{"a" * (LIMIT - 200)}":0}}}}'.encode()),
    "a long field": (WORK, f'{ASKED}"{"a" * (LIMIT - 200)}":0}}'.encode()),
    "one large number": (WORK, f'{ASKED}"seed":{"9" * (LIMIT - 200)}}}'.encode()),
}


@pytest.fixture
async def http() -> Iterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=60) as client:
        yield client


@pytest.mark.security
async def test_hostile_bodies(serve, mock, http, subtests):
    """Each is refused as the client's fault; the server answers others meanwhile, and stays small.

    Server and client share a process here, so that the figures are upper bounds. Seconds are of the
    processor, since the wait for it on a crowded machine is not what is measured.
    """
    served = await serve()
    process = psutil.Process()
    waits: list[float] = []

    async def poll() -> None:
        async with httpx2.AsyncClient(timeout=60) as other:
            while True:
                began = time.process_time()
                reply = await other.get(f"{served.root}/health")
                waits.append(time.process_time() - began)
                assert reply.status_code == 200
                await asyncio.sleep(0.01)

    polling = asyncio.create_task(poll())
    try:
        for name, (path, body) in BODIES.items():
            with subtests.test(body=name):
                assert len(body) <= LIMIT + 64
                waits.clear()
                before = process.memory_info().rss
                reply = await http.post(
                    f"{served.url}/{path}",
                    content=body,
                    headers={"Content-Type": "application/json"},
                )
                await asyncio.sleep(0.03)
                assert reply.status_code in {400, 413}, reply.text
                message = reply.json()["error"]["message"]
                assert 0 < len(message) < 500
                assert max(waits) < 1.0
                assert process.memory_info().rss - before < 200 * MIB
    finally:
        polling.cancel()
    assert mock.stats()["calls"] == 0


@pytest.mark.security
async def test_many_at_once(serve, http):
    """Sixteen such requests beside each other hold nobody up either."""
    served = await serve()
    _, body = BODIES["just few enough"]
    kind = {"Content-Type": "application/json"}
    posts = [
        asyncio.create_task(http.post(f"{served.url}/{WORK}", content=body, headers=kind))
        for _ in range(16)
    ]
    waits = []
    while not all(each.done() for each in posts):
        began = time.process_time()
        assert (await http.get(f"{served.root}/health")).status_code == 200
        waits.append(time.process_time() - began)
    assert max(waits) < 2.0
    assert {each.result().status_code for each in posts} == {400}


async def test_what_clients_send_still_passes(serve, mock, http):
    """A long conversation of a full body is answered; so are a million commas in its text."""
    served = await serve()
    turns = [{"role": "user", "content": 'a, [b], {c}: \\"d\\" ' * 20}] * 2_000
    for messages in (turns, [{"role": "user", "content": ',"[{' * 300_000}]):
        body = {"model": SMALL, "messages": messages}
        reply = await http.post(f"{served.url}/{WORK}", json=body)
        assert reply.status_code in {200, 400}, reply.text
        assert "values" not in reply.text


@pytest.mark.security
async def test_a_name_with_many_settings(serve, http):
    """What is read from an address is bounded too."""
    served = await serve()
    query = "&".join(f"a{index}=0" for index in range(6_000))
    began = time.process_time()
    reply = await http.get(f"{served.url}/models/pdr%3F{query.replace('&', '%26')}")
    assert (reply.status_code, "512 are the most" in reply.text) == (400, True)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_values_are_counted_as_they_come(size):
    """However a body is cut, no value is missed, and text counts as one."""
    draw = random.Random(size)

    def value(depth: int) -> object:
        kind = draw.randrange(5 if depth else 2)
        if kind == 0:
            return draw.randrange(100)
        if kind in {1, 2}:
            return "".join(draw.choice('ab,[]{}:"\\\né') for _ in range(draw.randrange(12)))
        if kind == 3:
            return [value(depth - 1) for _ in range(draw.randrange(5))]
        return {f'{index},"[\\': value(depth - 1) for index in range(draw.randrange(5))}

    def number(given: object) -> int:
        inner = given.values() if isinstance(given, dict) else given
        return 1 + (sum(map(number, inner)) if isinstance(given, dict | list) else 0)

    for _ in range(50):
        given = value(4)
        text = json.dumps(given, ensure_ascii=draw.random() < 0.5).encode()
        count = ValueCount()
        for at in range(0, len(text), size):
            count.add(text[at : at + size])
        # An empty list or object counts as if it held something.
        assert number(given) <= count.values <= 2 * number(given)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({f"a{index}": 0 for index in range(MOST_FIELDS + 1)}, "the body has 257 fields"),
        ({"pdr": {"widths": [1] * (MOST_ITEMS + 1)}}, "pdr.widths has 4097 items"),
        ({"stop": ["a"] * (MOST_ITEMS + 1)}, "stop has 4097 items, and 4096 are the most"),
        ({"pdr": {"a" * 257: 0}}, "a name in pdr has 257 characters, and 256 are the most"),
        ([], "the body"),
        ("x", "the body"),
    ],
)
def test_the_sentence_names_what_is_too_much(data, sentence):
    """The field, its number and the limit."""
    with pytest.raises(RefusalError) as refused:
        read_request(ChatRequest, json.dumps(data).encode())
    assert sentence in str(refused.value)
    assert refused.value.status == 400
    assert isinstance(refused.value, PDRError)

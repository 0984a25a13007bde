"""No body fails the server: whatever a field holds, it is the client's fault, and named."""

import json
import math
import time

import httpx2
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pdr_graph.config import PDRConfig, preset
from pdr_graph.serve.chat import ChatRequest
from pdr_graph.serve.protocol import read_request
from pdr_graph.serve.refusal import refusal_of
from pdr_graph.serve.request import Catalogue, Repeats, ThreadSpace, understand
from pdr_graph.serve.responses import ResponsesRequest
from tests.serve.conftest import ASK, SMALL

pytestmark = pytest.mark.security

KINDS = {"chat/completions": ChatRequest, "responses": ResponsesRequest}
ASKED = {"chat/completions": {"messages": ASK}, "responses": {"input": "What is 17 + 25?"}}
JSON = {"Content-Type": "application/json"}

# A field of the request, its JSON, and what the refusal names.
CHAT = [
    ("max_tokens", "1" + "0" * 400, "max_tokens"),
    ("max_tokens", "1" + "0" * 5000, "max_tokens"),
    ("max_tokens", str(2**64), "max_tokens"),
    ("max_tokens", "1e400", "max_tokens"),
    ("max_tokens", '"7"', "max_tokens"),
    ("max_tokens", "true", "max_tokens"),
    ("max_tokens", "[7]", "max_tokens"),
    ("max_completion_tokens", str(-(2**70)), "max_completion_tokens"),
    ("temperature", "NaN", "temperature"),
    ("temperature", "-Infinity", "temperature"),
    ("temperature", "1e999", "temperature"),
    ("temperature", '"0.5"', "temperature"),
    ("top_p", "true", "top_p"),
    ("seed", str(2**64), "seed"),
    ("seed", "1.5", "seed"),
    ("stream", '"yes"', "stream"),
    ("stream", "1", "stream"),
    ("n", "9" * 30, "n"),
    ("messages", '[{"role": "user", "content": "a\\ud800b"}]', "messages.0.content"),
    (
        "messages",
        '[{"role": "user", "content": [{"type": "text", "text": "\\udc00"}]}]',
        "messages",
    ),
    ("messages", '[{"role": "user", "name": "\\ud800", "content": "a"}]', "messages.0.name"),
    ("metadata", '{"thread_id": "\\ud800"}', "metadata.thread_id"),
    ("metadata", '{"thread_id": "a\\u0000b"}', "metadata.thread_id"),
    ("metadata", '{"thread_id": 5}', "metadata.thread_id"),
    ("metadata", '{"\\ud800": "a"}', "metadata"),
    ("metadata", '"t1"', "metadata"),
    ("stop", '["a", "\\ud83d"]', "stop.1"),
    ("stop", '{"a": 1}', "stop"),
    ("user", '"\\ud800"', "user"),
    ("unknown", "1" * 30, "unknown"),
    ("stream_options", '{"include_usage": "yes"}', "stream_options.include_usage"),
    ("pdr", '{"kappa": 1' + "0" * 30 + "}", "pdr.kappa"),
    ("pdr", '{"max_total_tokens": 18446744073709551615}', "pdr"),
    ("pdr", '{"max_total_tokens": "1' + "0" * 40 + '"}', "pdr"),
    ("pdr", '{"deadline_s": "inf"}', "pdr"),
    ("pdr", '{"deadline_s": 1e308}', "pdr"),
    ("pdr", '{"k": 9223372036854775807}', "pdr"),
    ("pdr", '{"widths": [9223372036854775807]}', "pdr"),
    ("pdr", '{"max_extra_rounds": 1000000000000}', "pdr"),
    ("pdr", '{"draft_prompt": "\\ud800"}', "pdr.draft_prompt"),
    ("pdr", '{"draft_prompt": "$nonsense"}', "pdr"),
    ("pdr", '{"draft_prompt": "$"}', "pdr"),
    ("pdr", '{"distiller": "sys:exit"}', "pdr"),
    ("pdr", '{"finish": "os:getcwd"}', "pdr"),
    ("pdr", '{"verifier": "os:getcwd"}', "pdr"),
    ("pdr", '{"answer": "os:getcwd"}', "pdr"),
    ("pdr", '{"widths": 5}', "pdr"),
    ("pdr", '{"kappa": 64, "kappa": 65}', "pdr"),
    ("tools", "[" * 70 + "]" * 70, "tools"),
    ("model", '"\\ud800"', "model"),
    ("model", '"pdr\\u0000"', "model"),
    ("model", '"pdr?kappa=1' + "0" * 300 + '"', "pdr"),
    ("model", '"pdr?deadline_s=inf"', "pdr"),
    ("model", '"pdr?deadline_s=nan"', "pdr"),
    ("model", '"pdr?max_extra_rounds=999999999"', "pdr"),
    ("model", '"pdr?distiller=sys:exit"', "pdr"),
]
RESPONSES = [
    ("max_output_tokens", "1" + "0" * 400, "max_output_tokens"),
    ("instructions", '"\\ud800"', "instructions"),
    ("previous_response_id", '"\\ud800"', "previous_response_id"),
    ("input", '[{"role": "user", "content": "\\ud800"}]', "input.0.content"),
    ("input", '[{"type": "function_call_output", "output": "\\ud800"}]', "input.0.output"),
    ("store", '"\\ud800"', "store"),
    ("text", '{"format": NaN}', "text.format"),
]


def body_with(path: str, field: str, value: str) -> bytes:
    fields = {"model": json.dumps(SMALL)} | {
        name: json.dumps(each) for name, each in ASKED[path].items()
    }
    fields[field] = value
    return ("{" + ",".join(f'"{name}":{each}' for name, each in fields.items()) + "}").encode()


@pytest.mark.parametrize("path", KINDS)
async def test_the_field_at_fault_is_named(serve, mock, subtests, path):
    """In OpenAI's form, streaming or not, and before the model is asked."""
    served = await serve()
    async with httpx2.AsyncClient(headers=JSON, timeout=20) as http:
        for field, value, param in CHAT if path == "chat/completions" else RESPONSES:
            with subtests.test(field=field, value=value[:40]):
                began = time.process_time()
                reply = await http.post(
                    f"{served.url}/{path}", content=body_with(path, field, value)
                )
                status = 404 if field == "model" and param == "model" else 400
                assert reply.status_code in {400, status}, reply.text
                error = reply.json()["error"]
                assert error["type"] == "invalid_request_error"
                assert error["param"].startswith(param)
                assert len(error["message"]) < 500
                assert time.process_time() - began < 2
    assert mock.stats()["calls"] == 0


WHOLE = [
    b"\xed\xa0\x80",
    b'{"model": "pdr", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    b'{"model": "pdr", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "pdr", "model": "sr", "messages": []}',
    b"NaN",
    b"1" * 5000,
    b'"\\ud800"',
    b'{"\\ud800": 1}',
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b'{"model": "pdr"} {}',
    b"\xef\xbb\xbf",
]


async def test_a_body_that_is_wrong_as_a_whole(serve, subtests):
    """It is refused in the same form."""
    served = await serve()
    async with httpx2.AsyncClient(headers=JSON) as http:
        for body in WHOLE:
            with subtests.test(body=body[:40]):
                reply = await http.post(f"{served.url}/chat/completions", content=body)
                assert reply.status_code == 400
                assert reply.json()["error"]["message"]


async def test_what_is_right_still_passes(serve, mock):
    """A prompt with a colon is no name of code; a whole character may be written as two halves."""
    served = await serve()
    bodies = [
        {"pdr": {"draft_prompt": "Solve: $problem\n$answer_format"}},
        {"pdr": {"kappa": "64", "pool_rounds": False}},
        {"max_tokens": 100.0, "temperature": 1, "seed": 2**64 - 1, "stream": None},
        {"seed": -(2**63), "metadata": {"thread_id": "a:b/c@d", "label": "x:y"}},
        {"messages": [{"role": "user", "content": "What is 17 + 25? 😀 \0"}]},
        {"tools": None, "stop": ["\n\n\n", "😀"]},
    ]
    async with httpx2.AsyncClient(headers=JSON) as http:
        for fields in bodies:
            body = {"model": SMALL, "messages": ASK, **fields}
            reply = await http.post(f"{served.url}/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            body = json.dumps(body).encode()
            reply = await http.post(
                f"{served.url}/chat/completions", content=b"\xef\xbb\xbf" + body
            )
            assert reply.status_code == 200, reply.text


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["\ud800", "a\0", "pdr", SMALL, "pdr?widths=1", "sys:exit", "$problem", "$", "${", "1e999"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 10**18]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, 1e308, 5e-324, -0.0]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.sampled_from([*PDRConfig.model_fields]), VALUES, max_size=4)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool", "system", 5]),
            "type": st.sampled_from(["message", "function_call", "function_call_output", 5]),
            "content": VALUES,
            "output": VALUES,
            "tool_calls": VALUES,
            "call_id": VALUES,
        },
    ),
    max_size=3,
)


def requests(path: str) -> st.SearchStrategy[dict[str, object]]:
    kind = KINDS[path]
    names = [*kind.model_fields, *kind.neutral, *sorted(kind.without_effect)]
    fields = st.dictionaries(st.sampled_from(names), VALUES, max_size=4)
    turns = st.just(ASKED[path]) | TURNS.map(lambda turns: {next(iter(ASKED[path])): turns})
    pdr = st.just({}) | SETTINGS.map(lambda settings: {"pdr": settings})
    return st.tuples(turns, pdr, fields).map(
        lambda parts: {"model": "pdr", **parts[0], **parts[1], **parts[2]}
    )


CATALOGUE = Catalogue(lambda name, fields: preset(name, **fields), {}, max_drafts=100)
STEADY = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def attempt(path: str, body: bytes) -> None:
    """Understand a request as the server does; whatever is wrong is the client's fault."""
    refusal = None
    try:
        request = read_request(KINDS[path], body)
        asked = understand(request.inquiry(), CATALOGUE, Repeats(), ThreadSpace("key"))
        form = request.form(asked)
    except Exception as error:  # noqa: BLE001  # as the server does
        refusal = refusal_of(error)
    if refusal is not None:
        assert 400 <= refusal.status < 500, repr(refusal.__context__)
        assert json.dumps(refusal.body(), ensure_ascii=False).encode()
    else:
        assert asked.problem.encode()
        assert asked.config.model_dump_json()
        form.opening()


@pytest.mark.parametrize("path", KINDS)
def test_no_request_fails_the_server(path):
    """However its fields are filled; the memory stays as it is."""
    before = psutil.Process().memory_info().rss

    @STEADY
    @given(requests(path))
    @example({"pdr": {"max_extra_rounds": 10**15}})
    def check(fields: dict[str, object]) -> None:
        attempt(path, json.dumps(fields).encode())

    check()
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@STEADY
@given(st.binary(max_size=60), st.sampled_from(sorted(KINDS)))
def test_no_bytes_fail_the_server(data, path):
    """Alone, and in the middle of a request."""
    attempt(path, data)
    body = body_with(path, "pdr", "null")
    attempt(path, body[:20] + data + body[20:])

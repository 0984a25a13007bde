"""A server's own words reach the user, whatever form they come in, and a full window is known."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import CallError, CallLostError, ContextWindowError
from pdr_graph.llm.client import ModelClient, Sampling
from pdr_graph.llm.retry import BadReplyError, call_error, is_transient, words_of
from pdr_graph.llm.usage import Spent
from tests.fakes import NO_WAIT, ScriptedChat

PROMPT = "What is 6 x 7?"
SAMPLING = Sampling(max_tokens=256, temperature=0.7, top_p=0.9, seed=1)


async def fail(client: ModelClient) -> CallError:
    with pytest.raises(CallError) as failed:
        await client.ask(PROMPT, SAMPLING, Spent())
    assert "\n" not in str(failed.value)
    return failed.value


# ------------------------------------------------------------------------------ the words

NGINX = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><hr>nginx</body></html>"
PYDANTIC = [
    {"type": "int_parsing", "loc": ["body", "seed"], "msg": "Input should be a number"},
    {"type": "missing", "loc": ["body", "model"], "msg": "Field required", "input": {"a": 1}},
]
BODIES = {
    "OpenAI, vLLM": (
        {"error": {"message": "no such seed", "type": "x", "code": 400}},
        "no such seed",
    ),
    "Azure": (
        {"error": {"code": "BadRequest", "message": "no such seed", "innererror": {"code": "y"}}},
        "no such seed",
    ),
    "SGLang": (
        {"object": "error", "message": "no such seed", "type": "BadRequestError", "code": 400},
        "no such seed",
    ),
    "TGI": ({"error": "no such seed", "error_type": "validation"}, "no such seed"),
    "Ollama": ({"error": "no such seed"}, "no such seed"),
    "LiteLLM": (
        {"error": {"message": "litellm.BadRequestError: no such seed", "code": "400"}},
        "litellm.BadRequestError: no such seed",
    ),
    "OpenRouter": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": '{"error": {"message": "no such seed"}}', "provider_name": "p"},
            }
        },
        "Provider returned error: no such seed",
    ),
    "Google": (
        [{"error": {"code": 400, "message": "no such seed", "status": "X"}}],
        "no such seed",
    ),
    "FastAPI": ({"detail": "no such seed"}, "no such seed"),
    "FastAPI's list": (
        {"detail": PYDANTIC},
        "body.seed: Input should be a number; body.model: Field required",
    ),
    "an object for its detail": ({"detail": {"error": "no such seed"}}, "no such seed"),
    "a gateway": (
        {"error": "Bad Request", "message": "no such seed", "statusCode": 400},
        "no such seed",
    ),
    "a message": ({"message": "no such seed"}, "no such seed"),
    "another name": ({"error_msg": "no such seed"}, "no such seed"),
    "a code alone": ({"error": {"code": "no_such_seed"}}, "no_such_seed"),
    "a list of errors": ({"errors": [{"message": "one"}, {"message": "two"}]}, "one; two"),
    "a body within a body": ({"message": '{"message": "no such\\n seed"}'}, "no such seed"),
    "plain text": ("no such\nseed\n", "no such seed"),
    "a text of JSON": ('"no such seed"', '"no such seed"'),
    "a page": (NGINX, "502 Bad Gateway"),
    "a page within": ({"error": {"message": NGINX}}, "502 Bad Gateway"),
    "a page without a heading": (
        "<!DOCTYPE html><p>x</p>",
        "Bad Request (the answer is a page of HTML)",
    ),
    "nothing": ("", "Bad Request"),
    "an empty object": ({}, "Bad Request"),
    "no words": ({"error": {"message": None, "code": 400}}, "Bad Request"),
    "a yes": ({"error": True, "message": "no such seed"}, "no such seed"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_servers_words_reach_the_user(mock, connect, case):
    """In one line, without what stands around them."""
    body, words = BODIES[case]
    sent = body if isinstance(body, str) else json.dumps(body)
    mock.configure(status=[{"status": 400, "body": sent}])
    assert str(await fail(connect())) == f"HTTP 400: {words}"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [404, 502, 529, 599])
async def test_a_status_without_a_body_is_said(mock, connect, streamed, status):
    """By its name, where it has one; streamed calls are refused alike."""
    mock.configure(status=[{"status": status, "body": ""}])
    error = await fail(connect(streamed=streamed))
    names = {404: "Not Found", 502: "Bad Gateway"}
    assert str(error) == f"HTTP {status}: {names.get(status, 'no reason given')}"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "code"]), inner)
    ),
)


@given(body=values)
def test_no_body_is_too_odd_for_a_line(body):
    """Whatever a server sends, its words are one line of text."""
    words = words_of(body)
    assert "\n" not in words
    assert words == " ".join(words.split())


@pytest.mark.security
def test_a_deep_body_ends_somewhere():
    """Nesting without end is no recursion without end."""
    body: object = "deep"
    for _ in range(5000):
        body = {"error": body}
    assert words_of(body) == ""
    assert words_of("[" * 100_000) == "[" * 100_000


# ------------------------------------------------------------------------------ a full window

OVERFLOWS = {
    "vLLM": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
    "tokens (4000 in the messages, 1000 in the completion). Please reduce the length of the "
    "messages or completion.",
    "vLLM, max_tokens": "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's "
    "maximum context length is 4096 tokens and your request has 16 input tokens (5000 > "
    "4096 - 16).",
    "vLLM, prompt": "The decoder prompt (length 5000) is longer than the maximum model length of "
    "4096. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    "vLLM, fit": "The prompt (total length 25938) is too long to fit into the model (context "
    "length 4096).",
    "SGLang": "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "SGLang, total": "Requested token count exceeds the model's maximum context length of 4096 "
    "tokens. You requested a total of 5000 tokens.",
    "llama.cpp": "the request exceeds the available context size. try increasing the context size "
    "or enable context shift",
    "llama.cpp, tokens": "request (5000 tokens) exceeds the available context size (4096 tokens), "
    "try increasing it",
    "llama-cpp-python": "Requested tokens (570) exceed context window of 512",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: "
    "4000 `inputs` tokens and 1000 `max_new_tokens`",
    "TGI, inputs": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
    "Ollama": "prompt too long; exceeded max context length by 904 tokens",
    "LM Studio": "Trying to keep the first 5000 tokens when context the overflows. However, the "
    "model is loaded with context length of only 4096 tokens, which is not enough.",
    "TensorRT-LLM": "The sum of prompt length (5000), query length (1) should not exceed "
    "max_num_tokens (4096)",
    "LiteLLM": "litellm.ContextWindowExceededError: litellm.BadRequestError: x",
    "OpenAI": "Your input exceeds the context window of this model. Please adjust your input.",
    "OpenAI, limit": "Input tokens exceed the configured limit of 272000 tokens. Your messages "
    "resulted in 300000 tokens.",
    "Anthropic": "prompt is too long: 213462 tokens > 200000 maximum",
    "Anthropic, both": "input length and `max_tokens` exceed context limit: 190000 + 20000 > "
    "200000",
    "Google": "The input token count (1196265) exceeds the maximum number of tokens allowed "
    "(1048575)",
    "Mistral": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 "
    "maximum context length",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Groq": "Please reduce the length of the messages or completion.",
    "Bedrock": "Input is too long for requested model.",
    "Copilot": "prompt token count of 70000 exceeds the limit of 64000",
    "Moonshot": "Invalid request: Your request exceeded model token limit: 8192",
}
CODES = [
    {"error": {"code": "context_length_exceeded"}},
    {"error": {"message": "", "code": "context_length_exceeded", "type": "invalid_request_error"}},
    {"error": {"message": "too big", "type": "exceed_context_size_error", "n_ctx": 512}},
    {"code": "context_window_exceeded"},
    {"detail": {"type": "ContextWindowExceededError"}},
]
OTHERS = {
    "a temperature": (422, {"detail": [{"loc": ["body"], "msg": "Input should be less than 2"}]}),
    "a minute's tokens": (
        413,
        {
            "error": {
                "message": "Request too large for model `x` on tokens per minute (TPM): Limit "
                "6000, Requested 7000, please reduce your message size and try again.",
                "code": "rate_limit_exceeded",
            }
        },
    ),
    "a large body": (413, "<html><title>413 Request Entity Too Large</title></html>"),
    "a list": (400, {"error": "messages: list should have at least 1 item, not 0"}),
    "the message's form": (400, {"error": "Input should be a valid string; expected `user` next"}),
    "a broken server": (500, {"error": "out of memory"}),
    "a busy server": (503, {"error": "the queue of requests is too long"}),
    "an allowance": (429, {"error": "input tokens exceed the limit; context length 4096"}),
}


@pytest.mark.parametrize("case", OVERFLOWS)
async def test_a_full_window_is_known_by_every_servers_words(mock, connect, case):
    """The user can do something about it; the words are the server's own."""
    mock.configure(status=[{"status": 400, "body": {"error": {"message": OVERFLOWS[case]}}}])
    error = await fail(connect())
    assert isinstance(error, ContextWindowError)
    assert str(error) == f"HTTP 400: {OVERFLOWS[case]}"


@pytest.mark.parametrize("body", CODES)
async def test_a_full_window_is_known_by_its_code(mock, connect, body):
    """Where the words say nothing of it, or there are none."""
    mock.configure(status=[{"status": 400, "body": body}])
    assert isinstance(await fail(connect()), ContextWindowError)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_a_full_window_is_known_under_every_status(mock, connect, status, streamed):
    """It is not asked again, whatever the status: the window stays as it is."""
    mock.configure(status=[{"status": status, "body": {"detail": OVERFLOWS["SGLang"]}}])
    error = await fail(connect(streamed=streamed))
    assert isinstance(error, ContextWindowError)
    assert error.status == status
    assert mock.stats()["calls"] == 1


@pytest.mark.parametrize("case", OTHERS)
async def test_another_refusal_is_no_full_window(mock, connect, case):
    """Words like these have other remedies."""
    status, body = OTHERS[case]
    mock.configure(status=[{"status": status, "body": body}])
    assert not isinstance(await fail(connect()), ContextWindowError)


async def test_a_full_window_of_another_sdk_is_known():
    """Some raise errors that carry no status."""
    model = ScriptedChat(replies=[ValueError(OVERFLOWS["Google"])])
    assert isinstance(await fail(ModelClient(model, retry=NO_WAIT)), ContextWindowError)


def test_a_lost_connection_is_no_full_window():
    """Whatever the text of its error."""
    error = ConnectionError("the context length exceeded the maximum")
    assert type(call_error(error)) is CallLostError
    assert is_transient(error)


def test_a_bad_reply_says_what_it_is():
    """A refusal costs nothing; what had been said before it does."""
    assert BadReplyError("x", status=400).is_refusal
    assert not BadReplyError("x", status=400, said="It is").is_refusal
    assert not BadReplyError("x", broken=True).is_refusal

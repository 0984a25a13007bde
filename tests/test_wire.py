"""What endpoints send: streams that break off, usage of every kind, and replies of odd forms."""

from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langchain_core.tracers.event_stream import _AstreamEventsCallbackHandler
from langchain_openai import ChatOpenAI

from pdr_graph.errors import CallError, ContextWindowError
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient, Reply, Sampling, split_message
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.retry import BadReplyError, Retry
from pdr_graph.llm.tokens import estimate_tokens, flat_text
from pdr_graph.llm.usage import Spent, Usage, read_usage
from pdr_graph.llm.wire import plain_usage
from tests.mock_endpoint import MockEndpoint, count_messages

MODEL = "mock-model"
PROMPT = "What is 6 x 7?"
PROMPT_TOKENS = count_messages([{"content": PROMPT}])
NO_WAIT = Retry(attempts=3, backoff_s=0.001, max_wait_s=0.01)
DONE = "data: [DONE]\n\n"
SAMPLING = Sampling(max_tokens=256, temperature=0.7, top_p=0.9, seed=1)


def chunk(text: str | None = None, *, finish: str | None = None, **more) -> dict:
    """Return one event of a stream."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return head | {"choices": [choice]} | more


def usage_of(prompt: object, completion: object, **more) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion} | more


def bill(prompt: int = 11, completion: int = 7) -> dict:
    """Return the event that states the usage, as vLLM sends it."""
    return chunk(choices=[], usage=usage_of(prompt, completion))


HALF = [chunk(""), chunk("It is "), chunk("4")]
WHOLE = [*HALF, chunk("2."), chunk(finish="stop"), bill(), DONE]


@pytest.fixture
async def clients(mock: MockEndpoint) -> AsyncIterator[Callable[..., ModelClient]]:
    """Makes clients of a class and a way of asking: `ChatVLLM` or LangChain's own, streamed or not.

    "told" is a model whose every call is streamed because a caller of LangChain's listens.
    """
    made: list[ModelClient] = []
    http = make_http_client()

    def make(kind: type[ChatOpenAI] = ChatVLLM, way: str = "astream", **fields) -> ModelClient:
        if kind is ChatOpenAI:
            # LangChain's own HTTP client is shared, and bound to the event loop that used it first.
            fields |= {"api_key": "EMPTY", "max_retries": 0, "http_async_client": http}
        if way == "streaming":
            fields["streaming"] = True
        model = kind(base_url=mock.url, model=MODEL, **fields)
        if way == "told":
            model.callbacks = [_AstreamEventsCallbackHandler()]
        made.append(ModelClient.of(model))
        made[-1].retry = NO_WAIT
        made[-1].streamed = way == "astream"
        return made[-1]

    yield make
    for client in made:
        if isinstance(client.model, ChatVLLM):
            await client.model.aclose()
    await http.aclose()


async def ask(client: ModelClient) -> tuple[Reply, Spent]:
    spent = Spent()
    return await client.ask(PROMPT, SAMPLING, spent), spent


async def fail(client: ModelClient) -> tuple[CallError, Spent]:
    spent = Spent()
    with pytest.raises(CallError) as failed:
        await client.ask(PROMPT, SAMPLING, spent)
    assert "\n" not in str(failed.value)
    return failed.value, spent


def send(mock: MockEndpoint, sent: object, *, times: int | None = None, **rule) -> None:
    """Have the endpoint send this in place of a reply."""
    mock.configure(status=[{"status": 200, "sent": sent, "times": times} | rule])


CLASSES = [ChatVLLM, ChatOpenAI]
WAYS = ["astream", "streaming", "told"]
every_way = pytest.mark.parametrize("way", WAYS)
every_class = pytest.mark.parametrize("kind", CLASSES)

# ------------------------------------------------------------------------------ streams

BROKEN = {
    "by its end": HALF,
    "in its thought": [chunk(""), chunk(reasoning="hm", choices=chunk()["choices"])],
    "after its role": HALF[:1],
    "within a line": [*HALF, 'data: {"choices": [{"index": 0, "del\n\n'],
    "with the sums so far": [
        chunk("", usage=usage_of(11, 0)),
        chunk("It is ", usage=usage_of(11, 2)),
        chunk("4", usage=usage_of(11, 3)),
    ],
    "by an error": [*HALF, {"error": {"message": "engine died", "code": 500}}],
    "by an error without a code": [*HALF, {"error": "the model crashed"}, DONE],
    "by an error of a name": [*HALF, 'event: error\ndata: {"message": "overloaded"}\n\n'],
    "by an error beside a choice": [*HALF, chunk(finish="error", error={"message": "502"}), DONE],
    "by giving up": [*HALF, chunk(finish="abort"), bill(11, 3), DONE],
    "before it began": [],
    "with nothing but a comment": [": keep-alive\n\n"],
    "with nothing but its end": [DONE],
    "with usage and no reply": [bill(), DONE],
    "with null choices": [{"choices": None}, DONE],
}


@every_class
@pytest.mark.parametrize("case", BROKEN)
async def test_a_stream_that_breaks_off_is_asked_for_again(mock, clients, kind, case):
    """Half an answer is no answer; what it cost is in the ledger beside the whole one's cost."""
    send(mock, BROKEN[case], times=1)
    reply, spent = await ask(clients(kind))
    assert (spent.requests, spent.failed, len(spent.usage)) == (2, 0, 2)
    assert "\\boxed" in reply.solution
    assert reply.usage == spent.usage[1]


@every_way
@every_class
@pytest.mark.parametrize("dropped", [False, True])
async def test_a_stream_that_always_breaks_off_is_a_failed_call(mock, clients, kind, way, dropped):
    """By a clean end and by a reset, however the stream is asked for."""
    send(mock, HALF, dropped=dropped)
    error, spent = await fail(clients(kind, way))
    assert str(error).startswith("connection to the model lost: ")
    assert (spent.requests, spent.failed, len(spent.usage)) == (3, 1, 3)
    assert all(usage.estimated for usage in spent.usage)
    assert spent.usage[0].completion == estimate_tokens("It is 4")


COMPLETE = {
    "with everything": WHOLE,
    "with a reason alone": [*HALF, chunk("2.", finish="stop")],
    "with an end alone": [*HALF, chunk("2."), DONE],
    "with final usage alone": [*HALF, chunk("2."), bill()],
    "with usage in its last piece": [*HALF, chunk("2.", usage=usage_of(11, 7))],
    "with comments": [
        ": a\n\n",
        *HALF,
        ": b\n\n",
        chunk("2."),
        ":\n\n",
        chunk(finish="stop"),
        DONE,
    ],
    "with empty data": [*HALF, "data:\n\n", chunk("2."), "data: \n\n", chunk(finish="stop"), DONE],
    "with pings": [{}, *HALF, 'event: ping\ndata: {"type": "ping"}\n\n', chunk("2."), DONE],
    "with a filter's report": [
        {"choices": [], "prompt_filter_results": []},
        *HALF,
        chunk("2.", finish="stop"),
    ],
    "with other choices": [
        *HALF,
        chunk(choices=[{"index": 1, "delta": {"content": "It is 43."}, "finish_reason": "stop"}]),
        chunk("2.", finish="stop"),
        DONE,
    ],
    "with pieces of other roles": [
        chunk(choices=[{"index": 0, "delta": {"role": "user", "content": "It is 42."}}]),
        chunk(finish="stop"),
    ],
    "with null pieces": [
        *HALF,
        chunk(choices=[{"index": 0, "delta": {"content": "2.", "role": None, "tool_calls": None}}]),
        chunk(choices=[{"index": 0, "delta": None, "finish_reason": "stop"}]),
    ],
    "with whole messages": [
        chunk(choices=[{"index": 0, "message": {"content": "It is 42."}, "finish_reason": "stop"}])
    ],
    "with lines of another ending": [
        f"data: {part}\r\n\r\n"
        for part in (
            '{"choices": [{"index": 0, "delta": {"content": "It is 42."}}]}',
            '{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}',
            "[DONE]",
        )
    ],
}


@every_class
@pytest.mark.parametrize("case", COMPLETE)
async def test_a_stream_is_complete_by_any_sign_of_its_end(mock, clients, kind, case):
    """A reason, the end of the stream, or the final usage; what is not of the reply is passed."""
    send(mock, COMPLETE[case])
    reply, spent = await ask(clients(kind))
    assert (reply.solution, spent.requests) == ("It is 42.", 1)


async def test_a_reply_that_was_whole_before_the_connection_was_lost_counts(mock, clients):
    """It would cost a second time to ask again; only its usage is missing."""
    send(mock, [*HALF, chunk("2."), chunk(finish="stop")], dropped=True)
    reply, spent = await ask(clients())
    assert (reply.solution, spent.requests) == ("It is 42.", 1)
    assert spent.usage[0].estimated


@every_class
async def test_a_broken_stream_is_charged_what_the_server_said(mock, clients, kind):
    """An engine that gives a request up may still say what it spent on it."""
    send(mock, BROKEN["by giving up"], times=1)
    _, spent = await ask(clients(kind))
    assert spent.usage[0] == Usage(11, 0, 3, 0)


@pytest.mark.parametrize(
    ("error", "attempts", "charged"),
    [
        ({"message": "busy", "code": 429}, 3, 0),
        ({"message": "busy", "code": "503"}, 3, 3),
        ({"message": "busy", "type": "server_error"}, 3, 3),
        ({"message": "bad seed", "code": 400}, 1, 0),
        ({"message": "bad seed", "type": "invalid_request_error", "code": None}, 1, 0),
    ],
)
async def test_an_error_in_a_stream_is_retried_as_its_code_says(
    mock, clients, error, attempts, charged
):
    """Where the server refuses the request, it would refuse it again; a refusal costs nothing."""
    send(mock, [{"error": error}, DONE])
    failure, spent = await fail(clients())
    assert (spent.requests, len(spent.usage)) == (attempts, charged)
    assert error["message"] in str(failure)


@every_class
async def test_a_full_window_may_be_said_in_a_stream(mock, clients, kind):
    """SGLang checks the length when the stream has begun."""
    words = "The input (61709 tokens) is longer than the model's context length (40960 tokens)."
    send(mock, [{"error": {"object": "error", "message": words, "code": 400}}])
    error, spent = await fail(clients(kind))
    assert isinstance(error, ContextWindowError)
    assert words in str(error)
    assert (spent.requests, spent.usage) == (1, [])


async def test_tool_calls_of_a_stream_are_put_together(mock):
    """By themselves `ChatVLLM`'s streams carry tools, as the stock class's do."""

    def calls(**call) -> dict:
        return chunk(choices=[{"index": 0, "delta": {"tool_calls": [call]}}])

    named = calls(index=0, id="a", function={"name": "add", "arguments": '{"x"'})
    send(mock, [named, calls(index=0, function={"arguments": ": 1}"}), chunk(finish="tool_calls")])
    model = ChatVLLM(base_url=mock.url, model=MODEL)
    message = await gather(model)
    assert message.tool_calls == [{"name": "add", "args": {"x": 1}, "id": "a", "type": "tool_call"}]
    await model.aclose()


async def gather(model: ChatOpenAI) -> AIMessageChunk:
    """Return the sum of a stream's pieces."""
    whole: AIMessageChunk | None = None
    async for piece in model.astream(PROMPT):
        whole = piece if whole is None else whole + piece
    assert whole is not None
    return whole


async def test_a_model_by_itself_does_not_take_half_an_answer_for_one(mock):
    """Without `ModelClient` too: streamed, whole, and without an event loop."""
    model = ChatVLLM(base_url=mock.url, model=MODEL)
    streaming = ChatVLLM(base_url=mock.url, model=MODEL, streaming=True)
    send(mock, HALF)
    for call in (gather(model), streaming.ainvoke(PROMPT)):
        with pytest.raises(BadReplyError, match="without finish_reason"):
            await call
    with pytest.raises(BadReplyError, match="without finish_reason"):
        list(model.stream(PROMPT))
    send(mock, {"choices": []})
    with pytest.raises(BadReplyError, match="an empty list of choices"):
        model.invoke(PROMPT)
    send(mock, WHOLE)
    assert (await gather(model)).text == "It is 42."
    assert "".join(piece.text for piece in model.stream(PROMPT)) == "It is 42."
    for each in (model, streaming):
        await each.aclose()


async def test_the_callers_own_model_is_left_as_it_was(mock):
    """`ModelClient` works with a copy of the stock class."""
    model = ChatOpenAI(base_url=mock.url, model=MODEL, api_key="EMPTY")
    before = model.async_client
    client = ModelClient.of(model)
    assert model.async_client is before
    assert type(client.model) is ChatOpenAI
    assert client.name == MODEL


# ------------------------------------------------------------------------------ usage

USAGES = {
    "only in the end": WHOLE,
    "in every piece, the sum so far": [
        chunk("It is ", usage=usage_of(11, 2)),
        chunk("42", usage=usage_of(11, 5)),
        chunk(".", finish="stop", usage=usage_of(11, 7)),
        bill(),
        DONE,
    ],
    "in every piece, and none in the end": [
        chunk("It is ", usage=usage_of(11, 2)),
        chunk("42.", usage=usage_of(11, 7)),
        chunk(finish="stop", usage=usage_of(11, 7)),
        DONE,
    ],
    "in every piece, the same": [
        chunk("It is 42.", usage=usage_of(11, 7)),
        chunk(finish="stop", usage=usage_of(11, 7)),
        DONE,
    ],
    "null but for the end": [
        chunk("It is 42.", usage=None),
        chunk(finish="stop", usage=None),
        bill(),
        DONE,
    ],
    "null in the end": [
        chunk("It is 42.", finish="stop", usage=usage_of(11, 7)),
        chunk(choices=[], usage=None),
        DONE,
    ],
    "with null details": [
        chunk("It is 42.", finish="stop"),
        chunk(
            choices=[],
            usage=usage_of(11, 7, prompt_tokens_details=None, completion_tokens_details=None),
        ),
        DONE,
    ],
    "within the choice": [
        chunk("It is 42."),
        chunk(
            choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage_of(11, 7)}]
        ),
        DONE,
    ],
    "without the completion": [
        chunk("It is 42.", finish="stop"),
        chunk(choices=[], usage={"prompt_tokens": 11, "total_tokens": 18}),
    ],
}


@pytest.mark.parametrize(
    ("kind", "way"), [(ChatVLLM, "astream"), (ChatOpenAI, "astream"), (ChatOpenAI, "told")]
)
@pytest.mark.parametrize("case", USAGES)
async def test_the_last_usage_of_a_stream_counts(mock, clients, kind, way, case):
    """It is not added up, whoever streams and why."""
    send(mock, USAGES[case])
    reply, spent = await ask(clients(kind, way))
    assert reply.solution == "It is 42."
    assert spent.usage == [Usage(11, 0, 7, 0)]


async def test_the_pieces_of_a_stream_add_up_to_its_usage(mock):
    """Callers of LangChain add pieces; so only one of them bears usage."""
    send(mock, USAGES["in every piece, the sum so far"])
    model = ChatVLLM(base_url=mock.url, model=MODEL)
    assert read_usage(await gather(model)) == Usage(11, 0, 7, 0)
    await model.aclose()


@pytest.mark.parametrize("tier", [None, "default", "priority", "flex"])
async def test_details_count_whatever_the_service_tier(mock, clients, tier):
    """LangChain names them after the tier."""
    usage = usage_of(
        11,
        7,
        prompt_tokens_details={"cached_tokens": 8, "audio_tokens": None},
        completion_tokens_details={"reasoning_tokens": 3, "image": "none"},
    )
    choice = {"index": 0, "message": {"content": "42"}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": usage}
    send(mock, body if tier is None else body | {"service_tier": tier})
    for kind in CLASSES:
        _, spent = await ask(clients(kind, "whole"))
        assert spent.usage == [Usage(11, 8, 7, 3)]


@pytest.mark.parametrize(
    "usage", [None, {}, [], "11", 7, usage_of(None, None), usage_of(0, 0), usage_of("a", {})]
)
@pytest.mark.parametrize("way", ["whole", "astream"])
async def test_usage_that_counts_nothing_is_estimated_and_marked(mock, clients, usage, way):
    """A ledger that says 0 would be wrong."""
    choice = {"index": 0, "message": {"content": "It is 42."}, "finish_reason": "stop"}
    whole = {"choices": [choice], "usage": usage}
    stream = [chunk("It is 42.", finish="stop"), chunk(choices=[], usage=usage), DONE]
    send(mock, whole if way == "whole" else stream)
    _, spent = await ask(clients(ChatVLLM, way))
    prompt, said = estimate_tokens(PROMPT), estimate_tokens("It is 42.")
    assert spent.usage == [Usage(prompt, 0, said, 0, estimated=True)]


numbers = st.none() | st.integers(0, 10**6) | st.floats() | st.text(max_size=3) | st.booleans()


@given(usage=st.dictionaries(st.sampled_from(list(usage_of(0, 0, total_tokens=0))), numbers))
def test_usage_is_whole_numbers_or_none(usage):
    """Whatever a server puts there."""
    plain = plain_usage(usage)
    if plain is not None:
        assert plain["prompt_tokens"] + plain["completion_tokens"] == plain["total_tokens"] > 0


# ------------------------------------------------------------------------------ odd replies


def whole(message: object, **more) -> dict:
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | more
    return {"id": "1", "model": MODEL, "choices": [choice], "usage": usage_of(11, 7)}


THOUGHT = [
    {"type": "reasoning.text", "text": "2 + ", "signature": "s", "format": "unknown"},
    {"type": "reasoning.encrypted", "data": "gAAAA"},
    {"type": "reasoning.summary", "summary": "2"},
]
ODD = {
    "no role": {"content": "It is 4."},
    "a null role": {"role": None, "content": "It is 4."},
    "another role": {"role": "model", "content": "It is 4."},
    "the user's role": {"role": "user", "content": "It is 4."},
    "parts": {"content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "4."}]},
    "parts of another name": {"content": [{"type": "output_text", "text": "It is 4."}]},
    "bare parts": {"content": ["It is ", "4."]},
    "nested parts": {"content": [[{"text": "It is "}], {"content": [{"text": "4."}]}]},
    "an object": {"content": {"type": "text", "text": "It is 4."}},
    "null tools": {"content": "It is 4.", "tool_calls": None, "function_call": None},
    "odd tools": {"content": "It is 4.", "tool_calls": [None, {"function": None}, "x"]},
}
THINKING = {
    "reasoning": {"reasoning": "2 + 2"},
    "reasoning_content": {"reasoning_content": "2 + 2"},
    "thinking": {"thinking": "2 + 2"},
    "a list": {"reasoning": ["2 + ", "2"]},
    "a nested list": {"reasoning": [["2 + "], [["2"]]]},
    "an object": {"reasoning": {"text": "2 + 2", "effort": "high"}},
    "objects": {"reasoning_content": [{"text": "2 + "}, {"content": [{"text": "2"}]}]},
    "reasoning_details": {"reasoning_details": THOUGHT},
    "both": {"reasoning": "2 + 2", "reasoning_details": THOUGHT},
    "null and details": {"reasoning": None, "reasoning_details": THOUGHT},
    "thinking_blocks": {"thinking_blocks": [{"type": "thinking", "thinking": "2 + 2"}]},
    "a part of the content": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2"}]},
            {"type": "text", "text": "It is 4."},
        ]
    },
    "another part": {
        "content": [
            {"type": "reasoning", "reasoning": "2 + 2"},
            {"type": "text", "text": "It is 4."},
        ]
    },
}


def pieces_of(message: dict) -> list:
    """Return a message as a stream."""
    delta = {"index": 0, "delta": message, "finish_reason": None}
    return [chunk(choices=[delta]), chunk(finish="stop"), bill(), DONE]


@pytest.mark.parametrize(
    ("kind", "way"), [(ChatVLLM, "whole"), (ChatVLLM, "astream"), (ChatOpenAI, "whole")]
)
@pytest.mark.parametrize("case", ODD)
async def test_the_text_of_an_odd_message_is_read(mock, clients, kind, way, case):
    """A role is missing, the content comes in parts: the text is there."""
    send(mock, whole(ODD[case]) if way == "whole" else pieces_of(ODD[case]))
    reply, spent = await ask(clients(kind, way))
    assert reply.solution == "It is 4."
    assert spent.usage == [Usage(11, 0, 7, 0)]


@pytest.mark.parametrize("way", ["whole", "astream"])
@pytest.mark.parametrize("case", THINKING)
async def test_reasoning_is_read_under_every_name_and_form(mock, clients, way, case):
    """Its text alone: no dump of a list, no signature."""
    message = {"role": "assistant", "content": "It is 4."} | THINKING[case]
    send(mock, whole(message) if way == "whole" else pieces_of(message))
    reply, _ = await ask(clients(ChatVLLM, way))
    assert (reply.thought, reply.solution) == ("2 + 2", "It is 4.")


@pytest.mark.parametrize(
    ("content", "text"), [(None, ""), (42, "42"), (4.5, "4.5"), (True, ""), ([], ""), ({}, "")]
)
async def test_a_content_that_is_no_text_is_read_as_far_as_it_is_one(mock, clients, content, text):
    """A number is its digits; what is no text is none."""
    send(mock, whole({"role": "assistant", "content": content}))
    for kind in CLASSES:
        assert (await ask(clients(kind, "whole")))[0].solution == text


NO_ANSWER = {
    "no choices": ({}, "no list of choices"),
    "null choices": ({"choices": None}, "no list of choices"),
    "an empty list": ({"choices": []}, "an empty list of choices"),
    "an object for choices": ({"choices": {"message": "x"}}, "for its choices"),
    "a null choice": ({"choices": [None]}, "None for a choice"),
    "no message": ({"choices": [{"index": 0}]}, "no message in its choice"),
    "a list for a message": ({"choices": [{"message": ["x"]}]}, "for a message"),
    "a list": ([], "not a JSON object: '[]'"),
    "nothing": ("", "not a JSON object: 'nothing'"),
    "a page": ("<!doctype html><html><body>Sign in</body></html>", "'a page of HTML'"),
    "a text": ("upstream is asleep", "not a JSON object: 'upstream is asleep'"),
    "an error": ({"error": {"message": "no such seed", "code": 400}}, "no such seed"),
    "an error's text": ({"error": "no such seed", "status": 422}, "no such seed"),
    "an error's object": ({"object": "error", "message": "no", "code": 404}, "call failed: no"),
}


@every_class
@pytest.mark.parametrize("case", NO_ANSWER)
async def test_a_reply_without_an_answer_is_a_sentence(mock, clients, kind, case):
    """Never an index error, nor a dump; asking again would give the same."""
    sent, words = NO_ANSWER[case]
    # A list would be the events of a stream.
    send(mock, "[]" if sent == [] else sent)
    error, spent = await fail(clients(kind, "whole"))
    assert words in str(error)
    assert (spent.requests, spent.failed) == (1, 1)
    assert len(str(error)) < 450


@every_class
async def test_a_reply_without_an_answer_costs_what_it_says(mock, clients, kind):
    """Nothing is spent that no ledger knows."""
    send(mock, {"choices": [], "usage": usage_of(11, 7)})
    _, spent = await fail(clients(kind, "whole"))
    assert spent.usage == [Usage(11, 0, 7, 0)]


@every_class
@pytest.mark.parametrize(
    "sent",
    [
        '{"choices": [{"index": 0, "message": {"content": "It is',
        {"error": {"message": "overloaded", "code": 503}},
        {"error": "overloaded"},
        whole({"content": "It is"}, finish_reason="abort"),
        whole({"content": "It is"}, finish_reason="error"),
    ],
)
async def test_a_whole_reply_may_be_broken_too(mock, clients, kind, sent):
    """Cut by its sender, an error that may pass, or given up by the engine: it is asked again."""
    send(mock, sent, times=1)
    reply, spent = await ask(clients(kind, "whole"))
    assert (spent.requests, len(spent.usage)) == (2, 2)
    assert "\\boxed" in reply.solution


async def test_a_reason_may_be_an_object(mock, clients):
    """SGLang's own endpoint has the reason's name within one."""
    send(mock, whole({"content": "It is"}, finish_reason={"type": "length", "length": 5}))
    reply, _ = await ask(clients(ChatVLLM, "whole"))
    assert (reply.finish_reason, reply.truncated) == ("length", True)


texts = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(value=values)
def test_flat_text_is_text_whatever_it_is_given(value):
    """Nothing raises, and no bracket comes out that no text had."""
    assert isinstance(flat_text(value), str)


def test_a_message_of_another_provider_is_read_as_flat():
    """Its class may leave a list where a text belongs."""
    message = AIMessageChunk("4", additional_kwargs={"reasoning_content": [{"text": "2 + 2"}]})
    assert split_message(message).thought == "2 + 2"


@pytest.mark.parametrize("kind", CLASSES)
async def test_response_headers_are_kept_where_a_caller_wants_them(mock, clients, kind):
    """The SDK then reads the reply itself, streamed or not."""
    client = clients(kind, "whole", include_response_headers=True)
    whole_reply = await client.model.ainvoke(PROMPT, seed=1)
    streamed = await gather(client.model)
    assert "\\boxed" in whole_reply.text
    assert streamed.response_metadata["headers"]["content-type"].startswith("text/event-stream")
    send(mock, HALF)
    with pytest.raises(BadReplyError, match="without finish_reason"):
        await gather(client.model)

"""The Responses API, asked by the official client and by LangChain's."""

import asyncio
import json
from contextlib import asynccontextmanager
from itertools import product

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from openai.types import responses as api
from pdr_checkpoints import open_checkpointer

from pdr_graph import preset, solve
from pdr_graph.conversation import Turn, problem_of, turns_of
from pdr_graph.serve.chat import ChatRequest
from pdr_graph.serve.refusal import RefusalError, thread_busy
from pdr_graph.serve.request import ResponseId
from pdr_graph.serve.response_form import ResponseForm
from pdr_graph.serve.responses import ResponsesRequest
from pdr_graph.servers import embedded_valkey
from tests.serve.conftest import CALLS, SMALL
from tests.serve.test_chat import TEMPLATE, ask, total

ASK = "What is 17 + 25?"


async def respond(served, **fields):
    return await served.client.responses.create(**{"model": SMALL, "input": ASK, **fields})


async def events_of(served, **fields):
    return [each async for each in await respond(served, stream=True, **fields)]


def prompts(mock) -> list[str]:
    return [each["body"]["messages"][0]["content"] for each in mock.requests()]


async def test_a_response_is_that_of_a_run(serve, mock, connect):
    """The same seed, settings and problem as `solve`, and so the same solution."""
    reply = await respond(await serve(), extra_body={"seed": 7})
    run = await solve(ASK, preset("pdr", widths=(3, 2), seed=7), model=connect())
    assert reply.output_text == run.solution
    assert (reply.status, reply.object, reply.error) == ("completed", "response", None)
    assert [each.type for each in reply.output] == ["reasoning", "message"]
    assert reply.output[0].summary[0].text.startswith("Round 1 of 2: 3 drafts.\n")
    assert reply.pdr["answer"] == run.answer
    assert reply.usage.pdr["b_seq"] == run.ledger.b_seq


async def test_usage_is_that_of_a_chat(serve, mock):
    """Of the same run, by the names of responses."""
    mock.configure(cached_tokens=2, **TEMPLATE)
    served, seed = await serve(), {"extra_body": {"pdr": {"seed": 7}}}
    usage, chat = (await respond(served, **seed)).usage, (await ask(served, **seed)).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.pdr) == (
        *(chat.prompt_tokens, chat.completion_tokens, chat.total_tokens, chat.pdr),
    )
    cached, reasoning = chat.prompt_tokens_details, chat.completion_tokens_details
    assert usage.input_tokens_details.cached_tokens == cached.cached_tokens
    assert usage.output_tokens_details.reasoning_tokens == reasoning.reasoning_tokens


BEGIN = ["response.created", "response.in_progress"]
REASONING = [
    "response.output_item.added",
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done",
    "response.reasoning_summary_part.done",
    "response.output_item.done",
]
MESSAGE = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def without_repeats(names: list[str]) -> list[str]:
    return [each for index, each in enumerate(names) if index == 0 or names[index - 1] != each]


async def test_a_stream_has_every_event_in_order(serve, mock):
    """Numbered from 0; the pieces are the whole, and the last event is the whole reply."""
    served = await serve()
    events = await events_of(served, extra_body={"pdr": {"seed": 7}})
    whole = await respond(served, extra_body={"pdr": {"seed": 7}})
    assert [each.sequence_number for each in events] == list(range(len(events)))
    names = without_repeats([each.type for each in events])
    assert names == [*BEGIN, *REASONING, *MESSAGE, "response.completed"]
    deltas = [each for each in events if each.type == "response.output_text.delta"]
    assert len(deltas) > 2
    assert "".join(each.delta for each in deltas) == whole.output_text
    last = events[-1].response
    assert (last.output_text, last.usage) == (whole.output_text, whole.usage)
    thought = [each for each in events if each.type == "response.reasoning_summary_text.delta"]
    assert "".join(each.delta for each in thought) == last.output[0].summary[0].text
    assert {each.response.id for each in (*events[:2], events[-1])} == {last.id}
    assert [each.output_index for each in events if hasattr(each, "output_index")] == sorted(
        each.output_index for each in events if hasattr(each, "output_index")
    )
    for each in events:  # strictly, which the client's own reading is not
        type(each).model_validate(each.model_dump(exclude_unset=True))


async def test_the_clients_own_stream_helper(serve, mock):
    """It follows the events and holds each text as it grows; sync and async alike."""
    served = await serve()
    async with served.client.responses.stream(model=SMALL, input=ASK) as stream:
        snapshots = [
            each.snapshot async for each in stream if each.type == "response.output_text.delta"
        ]
        final = await stream.get_final_response()
    assert snapshots[-1] == final.output_text
    assert "boxed" in final.output_text

    def blocking() -> str:
        with (
            openai.OpenAI(base_url=served.url, api_key="none") as client,
            client.responses.stream(model=SMALL, input=ASK) as stream,
        ):
            for _ in stream:
                pass
            return stream.get_final_response().output_text

    assert "boxed" in await asyncio.to_thread(blocking)


async def test_an_answer_that_was_cut_is_incomplete(serve, mock):
    """Whole and streamed, with the reason."""
    served = await serve()
    fields = {"model": "long_cot", "max_output_tokens": 20}
    reply = await respond(served, **fields)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.output[-1].status == "incomplete"
    last = (await events_of(served, **fields))[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")


async def test_a_run_that_fails_in_a_stream(serve, mock):
    """`response.failed`, with the sentence that says how to go on; else the client's own error."""
    mock.configure(status=[{"match": {}, "status": 400}])
    served = await serve()
    with pytest.raises(openai.InternalServerError, match="the model failed: round 1"):
        await respond(served)
    events = await events_of(served, metadata={"thread_id": "f1"})
    assert [each.type for each in events[:2]] == BEGIN
    failed = events[-1]
    assert failed.type == "response.failed"
    assert failed.response.status == "failed"
    assert failed.response.error.code == "server_error"
    assert 'metadata {"thread_id": "f1"} to go on' in failed.response.error.message
    assert [each.sequence_number for each in events] == list(range(len(events)))


def form() -> ResponseForm:
    return ResponseForm(ResponseId("t1", bytes(8), -1), preset("pdr"), {"model": "pdr"})


def test_a_stream_that_fails_before_its_first_event():
    """A sign of life may have gone out before; the client still sees a response begin."""
    text = form().failure(RefusalError(504, "no answer within 1 s")).decode()
    events = [json.loads(each.partition("data: ")[2]) for each in text.strip().split("\n\n")]
    assert [each["type"] for each in events] == [*BEGIN, "response.failed"]
    assert [each["sequence_number"] for each in events] == [0, 1, 2]
    assert events[-1]["response"]["error"]["message"] == "no answer within 1 s"


def test_a_failed_stream_keeps_what_it_has_said():
    """The reasoning is over where the answer had begun, and a later thought is not sent."""
    begun = form()
    begun.opening()
    begun.thought("Round 1.\n")
    begun.text("It is ")
    assert begun.thought("again") == []
    begun.text("4")
    text = begun.failure(RefusalError(429, "full")).decode()
    response = json.loads(text.partition("data: ")[2])["response"]
    assert [(each["type"], each["status"]) for each in response["output"]] == [
        ("reasoning", "completed"),
        ("message", "incomplete"),
    ]
    assert response["output"][1]["content"][0]["text"] == "It is 4"
    assert response["error"]["code"] == "rate_limit_exceeded"


REFUSED = [
    ({"model": "gpt-5"}, openai.NotFoundError, "no model 'gpt-5'"),
    ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools is not supported"),
    ({"background": True}, openai.BadRequestError, "background is not supported"),
    ({"conversation": "conv_1"}, openai.BadRequestError, "conversation is not supported"),
    ({"text": {"format": {"type": "json_object"}}}, openai.BadRequestError, "text.format"),
    ({"include": ["message.output_text.logprobs"]}, openai.BadRequestError, "include"),
    ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs is not supported"),
    ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown field 'temprature'"),
    ({"temperature": 3}, openai.BadRequestError, "temperature"),
    ({"max_output_tokens": 10**6}, openai.BadRequestError, "context window is 131072"),
    ({"input": " "}, openai.BadRequestError, "no user message has any text"),
    ({"input": []}, openai.BadRequestError, "no user message has any text"),
    ({"input": 5}, openai.BadRequestError, "input must be text or a list of items"),
    ({"input": [{"role": "wizard", "content": "a"}]}, openai.BadRequestError, "input[0].role"),
    ({"input": [{"role": "user"}]}, openai.BadRequestError, "input[0].content is null"),
    (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        openai.BadRequestError,
        "text is not in the request",
    ),
    ({"previous_response_id": "resp_none"}, openai.BadRequestError, "no response 'resp_none'"),
]


async def test_what_cannot_be_honoured_is_refused(serve, mock, subtests):
    """As chat completions refuse it, streaming or not, and before any call to the model."""
    served = await serve()
    for (fields, kind, sentence), streamed in product(REFUSED, (False, True)):
        with subtests.test(sentence, streamed=streamed):
            with pytest.raises(kind) as refused:
                await respond(served, stream=streamed, **fields)
            assert sentence in refused.value.body["message"]
            assert refused.value.body.keys() == {"message", "type", "param", "code"}
    assert mock.stats()["calls"] == 0


WITHOUT_EFFECT = {
    "include": ["reasoning.encrypted_content"],
    "parallel_tool_calls": True,
    "prompt_cache_key": "a",
    "reasoning": {"effort": "low", "summary": "auto"},
    "safety_identifier": "a",
    "service_tier": "auto",
    "stream_options": {"include_obfuscation": False},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "auto",
    "user": "a",
}


async def test_what_asks_for_nothing_here_is_taken(serve, mock):
    """What today's clients send by default."""
    assert (await respond(await serve(), model="long_cot", **WITHOUT_EFFECT)).status == "completed"


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ChatRequest, openai.types.chat.completion_create_params.CompletionCreateParamsBase),
        (ResponsesRequest, api.response_create_params.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_the_protocol_has_a_rule(kind, params):
    """Honoured, without effect, or refused by name: none is an unknown field."""
    known = {*kind.model_fields, *kind.without_effect, *kind.neutral}
    assert sorted(params.__annotations__.keys() - known) == []


HISTORY = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 2?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hidden"}]},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Quatre.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "c1", "name": "sum", "arguments": '{"a": 3}'},
    {"type": "function_call_output", "call_id": "c1", "output": "seven"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "Non."}]},
    {"role": "user", "content": "And times 3?"},
]


async def test_a_history_of_items_is_in_every_draft(serve, mock):
    """Instructions, every turn and the results of tools; thoughts are not."""
    await respond(await serve(), model="pdr?widths=1", input=HISTORY, instructions="Be brief.")
    said = ("Be brief", "in French", "2 + 2", "Quatre", "Non.", "times 3")
    for prompt in prompts(mock):
        assert all(text in prompt for text in said)
        assert 'Tool: sum({"a": 3}) returned seven' in prompt
        assert "hidden" not in prompt


async def test_a_reply_is_taken_back_as_input(serve, mock):
    """The output of one response is part of the next one's input, as the client documents it."""
    served = await serve()
    first = await respond(served, model="pdr?widths=1")
    again = [{"role": "user", "content": ASK}, *first.output, {"role": "user", "content": "Why?"}]
    assert (await respond(served, model="long_cot", input=again)).status == "completed"
    assert f"Assistant: {first.output_text}" in prompts(mock)[-1]


async def test_a_response_goes_on_from_the_one_before(serve, mock):
    """With its turns, and without its instructions; over three responses and two servers."""
    saver = InMemorySaver()
    fields = {"model": "long_cot", "instructions": "Be brief.", "input": HISTORY[:2]}
    first = await respond(await serve(saver), **fields)
    served = await serve(saver)
    fields |= {"instructions": "Be verbose.", "input": "And times 3?"}
    second = await respond(served, previous_response_id=first.id, **fields)
    assert second.previous_response_id == first.id
    await respond(served, model="long_cot", previous_response_id=second.id, input="Why?")
    prompt = prompts(mock)[-1]
    turns = [
        *("Answer in French.", "User: What is 2 + 2?", f"Assistant: {first.output_text}"),
        *("User: And times 3?", f"Assistant: {second.output_text}", "The user now says:\nWhy?"),
    ]
    places = [prompt.index(each) for each in turns]
    assert places == sorted(places)
    assert "Be brief." not in prompt
    assert "Be verbose." not in prompt
    assert "Be verbose." in prompts(mock)[1]


async def test_a_kept_response_is_read_again(serve, mock):
    """By another server of the same store, without a call; deleted, it is gone."""
    saver = InMemorySaver()
    reply = await respond(await serve(saver))
    responses = (await serve(saver)).client.responses
    again = await responses.retrieve(reply.id)
    assert (again.id, again.output_text, again.usage) == (reply.id, reply.output_text, reply.usage)
    assert (again.status, again.pdr["ledger"]) == ("completed", reply.pdr["ledger"])
    api.Response.model_validate(again.model_dump(exclude_unset=True))
    assert mock.stats()["calls"] == CALLS
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        await responses.cancel(reply.id)
    await responses.delete(reply.id)
    assert not saver.storage
    with pytest.raises(openai.NotFoundError, match="no response"):
        await responses.retrieve(reply.id)


@pytest.mark.redis
async def test_a_real_store_keeps_responses(serve, mock, data_dir):
    """Written, read, continued and deleted in the embedded Valkey."""
    async with embedded_valkey(data_dir) as url, open_checkpointer(url) as saver:
        served = await serve(saver)
        first = await respond(served, model="long_cot")
        again = await served.client.responses.retrieve(first.id)
        assert again.output_text == first.output_text
        assert first.created_at - 1 < again.completed_at < first.completed_at + 1
        await respond(served, model="long_cot", previous_response_id=first.id, input="Why?")
        assert f"Assistant: {first.output_text}" in prompts(mock)[-1]
        await served.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            await served.client.responses.retrieve(first.id)


async def test_the_name_of_a_thread_opens_no_response(serve, mock):
    """An id holds what was asked as well."""
    served = await serve()
    named = {"model": "long_cot", "metadata": {"thread_id": "t/1"}}
    first = await respond(served, **named)
    assert (await respond(served, **named)).id == first.id
    other = await respond(await serve(), input="Another", **named)
    assert other.id != first.id
    for foreign in (other.id, "resp_t/1", "t1", "resp_", "resp_AAAAAAAAAAAAAAAAdDE", "resp_é"):
        with pytest.raises(openai.NotFoundError, match=r"no response|nothing at"):
            await served.client.responses.retrieve(foreign)


async def test_a_response_need_not_be_kept(serve, mock):
    """`store: false` leaves nothing in the store, unless the run has a name."""
    saver = InMemorySaver()
    served = await serve(saver)
    reply = await respond(served, model="long_cot", store=False)
    assert not saver.storage
    with pytest.raises(openai.NotFoundError):
        await served.client.responses.retrieve(reply.id)
    with pytest.raises(openai.BadRequestError, match="send the earlier turns as input"):
        await respond(served, previous_response_id=reply.id)
    await respond(served, model="long_cot", store=False, metadata={"thread_id": "kept"})
    assert [thread for thread, kept in saver.storage.items() if any(kept.values())] == ["kept"]


async def test_a_response_is_cancelled(serve, mock):
    """Its calls are, too; its reader is told, and it can be resumed."""
    mock.configure(status=[{"match": {"call": 3}, "status": "hang"}])
    served = await serve()
    stream = await respond(served, stream=True, metadata={"thread_id": "t1"})
    created = await anext(aiter(stream))
    await mock.until(lambda stats: stats["calls"] == 3 and stats["in_flight"] == 1)
    responses = served.client.responses
    assert (await responses.retrieve(created.response.id)).status == "in_progress"
    assert (await responses.cancel(created.response.id)).status == "cancelled"
    last = [each async for each in stream][-1]
    assert (last.type, last.response.error.message) == (
        "response.failed",
        "the response was cancelled by another request",
    )
    assert mock.stats()["aborted"] == 1
    assert (await responses.retrieve(created.response.id)).status == "incomplete"
    mock.configure(status=[])
    assert (await respond(served, metadata={"thread_id": "t1"})).status == "completed"
    assert mock.stats()["calls"] == CALLS + 1


async def test_a_response_is_cancelled_where_it_runs(serve, mock):
    """Another server of the same store cannot end it, and does not say so."""
    mock.configure(status=[{"match": {"call": 3}, "status": "hang"}])
    saver, held = InMemorySaver(), set()

    @asynccontextmanager
    async def alone(thread_id):
        if thread_id in held:
            raise thread_busy(thread_id)
        held.add(thread_id)
        try:
            yield
        finally:
            held.remove(thread_id)

    served, other = await serve(saver, alone=alone), await serve(saver, alone=alone)
    stream = await respond(served, stream=True, metadata={"thread_id": "t1"})
    created = await anext(aiter(stream))
    await mock.until(lambda stats: stats["calls"] == 3 and stats["in_flight"] == 1)
    with pytest.raises(openai.ConflictError, match="being run by another request"):
        await other.client.responses.cancel(created.response.id)
    assert mock.stats()["in_flight"] == 1
    await served.client.responses.cancel(created.response.id)
    assert mock.stats()["aborted"] == 1
    await stream.close()
    assert (await other.client.responses.cancel(created.response.id)).status == "cancelled"


async def test_langchain_reads_the_answer_and_the_bill(serve, mock):
    """ChatOpenAI with the Responses API, unchanged: streamed, whole, and with its own history."""
    served = await serve()
    http = httpx2.AsyncClient()
    model = ChatOpenAI(
        model=SMALL,
        base_url=served.url,
        api_key="none",
        http_async_client=http,
        use_responses_api=True,
        use_previous_response_id=True,
    )
    message = await model.ainvoke("What is 17 + 25?")
    stats = mock.stats()
    assert "boxed" in message.text
    assert message.usage_metadata["total_tokens"] == (
        stats["prompt_tokens"] + stats["completion_tokens"]
    )
    [thought] = [each for each in message.content_blocks if each["type"] == "reasoning"]
    assert thought["reasoning"].startswith("Round 1 of 2")
    history = [("user", "What is 17 + 25?"), message, ("user", "Why?")]
    pieces = [piece async for piece in model.astream(history)]
    whole = sum(pieces[1:], pieces[0])
    assert "boxed" in whole.text
    assert whole.usage_metadata["total_tokens"] > 0
    assert "Assistant: " + message.text in prompts(mock)[-1]
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        await model.bind_tools([{"type": "web_search"}]).ainvoke("What is 17 + 25?")
    await http.aclose()


async def test_events_on_the_wire(serve, mock):
    """Each has the name of its type, and there is no `[DONE]`; lines are ASCII."""
    mock.configure(replies=[{"contains": "17", "content": "four\u2028\u0085\\boxed{4}"}])
    served = await serve()
    async with httpx2.AsyncClient() as http:
        body = {"model": "pdr?widths=1", "input": ASK, "stream": True}
        reply = await http.post(f"{served.url}/responses", json=body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-pdr-thread-id"]
    for event in reply.text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]
    assert reply.text.isascii()


async def test_both_protocols_are_counted_alike(serve, mock):
    """One runner, one way from request to reply."""
    served = await serve()
    await respond(served)
    with pytest.raises(openai.NotFoundError):
        await respond(served, model="made-up-by-a-client")
    async with httpx2.AsyncClient() as http:
        lines = (await http.get(f"{served.root}/metrics")).text.splitlines()
    assert total(lines, "pdr_model_calls_total") == mock.stats()["calls"]
    assert 'pdr_requests_total{model="pdr",status="200"} 1.0' in lines
    assert 'pdr_requests_total{model="unknown",status="404"} 1.0' in lines


async def test_the_document_has_the_routes(serve):
    """With what they answer, in JSON and as events."""
    async with httpx2.AsyncClient() as http:
        document = (await http.get(f"{(await serve()).root}/openapi.json")).json()
    paths = document["paths"]
    assert set(paths["/v1/responses/{response_id}"]) == {"get", "delete"}
    reply = paths["/v1/responses"]["post"]["responses"]["200"]
    assert set(reply["content"]) == {"application/json", "text/event-stream"}
    request = document["components"]["schemas"]["ResponsesRequest"]
    assert request["additionalProperties"] is False
    assert request["properties"]["model"]["pattern"].startswith("^(vote_first|long_cot|")


WORDS = st.text("ab<>:/ \nUser", min_size=1, max_size=20).filter(lambda text: text.strip())
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "assistant", "tool"]), WORDS), max_size=6
).map(lambda turns: [*turns, Turn("user", "task")])


@given(WORDS, TURNS)
def test_a_conversation_is_taken_up_as_it_was(rules, turns):
    """The next problem holds every turn of the one before, and not its instructions."""
    said = [*turns, Turn("assistant", "answer"), Turn("user", "next")]
    problem = problem_of([Turn("system", rules), *turns])
    again = turns_of(problem, skip=len(rules.strip()))
    assert problem_of([*again, *said[-2:]]) == problem_of(said)

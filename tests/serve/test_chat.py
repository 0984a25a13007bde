"""The chat endpoint, asked by the official client."""

import asyncio
import json
from itertools import product

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI

from pdr_graph import preset, solve
from tests.serve.conftest import ASK, CALLS, SMALL

TEMPLATE = {"reasoning": "reasoning"}


async def ask(served, **fields):
    return await served.client.chat.completions.create(
        **{"model": SMALL, "messages": ASK, **fields}
    )


async def stream(served, **fields):
    return [each async for each in await ask(served, stream=True, **fields)]


def text_of(chunks, name="content") -> str:
    deltas = [each.choices[0].delta for each in chunks if each.choices]
    return "".join(getattr(delta, name, None) or "" for delta in deltas)


async def test_an_answer_is_that_of_a_run(serve, mock, connect):
    """The same seed, settings and problem as `solve`, and so the same solution."""
    served = await serve()
    reply = await ask(served, seed=7)
    run = await solve(ASK[0]["content"], preset("pdr", widths=(3, 2), seed=7), model=connect())
    assert reply.choices[0].message.content == run.solution
    assert reply.choices[0].finish_reason == "stop"
    assert reply.pdr["answer"] == run.answer
    assert reply.usage.pdr["b_seq"] == run.ledger.b_seq


async def test_usage_is_what_the_endpoint_served(serve, mock):
    """B_total is OpenAI's total, exactly; cached and reasoning tokens are its details."""
    mock.configure(cached_tokens=2, **TEMPLATE)
    usage = (await ask(await serve())).usage
    stats = mock.stats()
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        stats["prompt_tokens"],
        stats["completion_tokens"],
    )
    assert usage.total_tokens == usage.pdr["b_total"] > usage.pdr["b_seq"]
    assert usage.prompt_tokens_details.cached_tokens == 2 * CALLS
    assert usage.completion_tokens_details.reasoning_tokens == 32 * CALLS


async def test_a_stream_tells_progress_and_then_the_answer(serve, mock):
    """Every draft, workspace and the refinement as reasoning; the text in several pieces."""
    served = await serve()
    chunks = await stream(served, seed=7, stream_options={"include_usage": True})
    assert text_of(chunks, "reasoning") == text_of(chunks, "reasoning_content")
    progress = text_of(chunks, "reasoning").splitlines()
    assert progress[0] == "Round 1 of 2: 3 drafts."
    assert [line[:18] for line in progress[1:4]] == [f"Draft {n} of 3 done," for n in (1, 2, 3)]
    assert progress[4].startswith("Distilled into a workspace of ")
    assert progress[-1] == "Refining."
    whole = await ask(served, seed=7, extra_body={"pdr": {"seed": 7}})
    assert text_of(chunks) == whole.choices[0].message.content
    assert len([each for each in chunks if text_of([each])]) > 2
    kinds = ["content" if text_of([each]) else "thought" for each in chunks[1:-2]]
    assert kinds == sorted(kinds, reverse=True)  # no thought behind the answer's first token
    assert [each.choices[0].finish_reason for each in chunks[:-1]][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


async def test_progress_comes_while_the_run_goes_on(serve, mock):
    """The first draft is reported before the last one is in."""
    mock.configure(status=[{"match": {"call": 3}, "status": 200, "delay_s": 30}])
    served = await serve()
    chunks = await ask(served, stream=True)
    async with asyncio.timeout(20):
        async for chunk in chunks:
            if "Draft 2 of 3" in text_of([chunk], "reasoning"):
                break
    await chunks.close()


async def test_without_include_usage_a_stream_has_none(serve, mock):
    """As OpenAI has it."""
    chunks = await stream(await serve())
    assert all(each.usage is None and each.choices for each in chunks)
    assert chunks[-1].pdr["ledger"]["calls"] == CALLS


async def test_a_thought_in_the_text_is_no_part_of_the_answer(serve, mock):
    """Neither its words nor its tags, whether the stream is the first or a later one."""
    served = await serve()
    for rule in ("think_tags", "reasoning", "reasoning_content"):
        mock.configure(reasoning=rule)
        for model in ("long_cot", "long_cot", SMALL):
            chunks = await stream(served, model=model, extra_body={"pdr": {"seed": 3}})
            whole = await ask(served, model=model, extra_body={"pdr": {"seed": 3}})
            assert text_of(chunks) == whole.choices[0].message.content
            assert "think" not in text_of(chunks)


async def test_sampling_reaches_every_call(serve, mock):
    """Temperature, top_p and the limit on tokens, by either of its names."""
    served = await serve()
    await ask(served, temperature=0.3, top_p=0.8, max_tokens=77)
    for each in mock.requests():
        body = each["body"]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.8, 77)
    await ask(served, max_completion_tokens=66, max_tokens=77)
    assert mock.requests()[-1]["body"]["max_tokens"] == 66


async def test_max_tokens_that_cut_the_answer_are_told(serve, mock):
    """`length`, as any endpoint says it."""
    reply = await ask(await serve(), model="long_cot", max_tokens=20)
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_answer_ends_before_a_stop_text(serve, mock, streamed):
    """Wherever the model's own pieces end."""
    mock.configure(replies=[{"contains": "17", "content": "one two three four \\boxed{4}"}])
    served = await serve()
    if streamed:
        chunks = await stream(served, stop=["ee fo", "never"])
        assert text_of(chunks) == "one two thr"
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        reply = await ask(served, stop="ee fo")
        assert reply.choices[0].message.content == "one two thr"


async def test_a_repeated_seed_is_a_new_sample(serve, mock):
    """A harness sends one seed for all its samples; started anew, the server repeats them all."""
    first, second = await serve(), await serve()
    texts = [
        [(await ask(served, seed=7)).choices[0].message.content for _ in range(3)]
        for served in (first, second)
    ]
    assert len(set(texts[0])) == 3
    assert texts[0] == texts[1]


@pytest.mark.parametrize("how", ["repeatable", "pdr.seed"])
async def test_repeats_are_alike_where_that_is_asked(serve, mock, how):
    """By the server's switch, or by the request's own."""
    served = await serve(repeatable=how == "repeatable")
    fields = {"seed": 7} if how == "repeatable" else {"extra_body": {"pdr": {"seed": 7}}}
    texts = [(await ask(served, **fields)).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


async def test_settings_of_one_request_are_not_those_of_the_next(serve, mock):
    """Side by side, each has its own."""
    served = await serve()
    wide, narrow = await asyncio.gather(
        ask(served, model="pdr", extra_body={"pdr": {"widths": [4], "distiller": "top_k"}}),
        ask(served, model="majority?widths=2"),
    )
    assert wide.usage.pdr["calls"] == 4 + 1 + 1
    assert narrow.usage.pdr["calls"] == 2
    assert (wide.pdr["preset"], narrow.pdr["preset"]) == (
        "pdr@widths=4;distiller=top_k",
        "majority@widths=2",
    )


async def test_a_rejected_solution_is_not_sent(serve, mock):
    """Where a verdict may undo the refinement, the text waits for the verdict."""
    mock.configure(replies=[{"contains": "Verdict: correct", "content": "Verdict: incorrect"}])
    settings = {"widths": [1], "verifier": "judge", "max_extra_rounds": 1, "seed": 5}
    chunks = await stream(await serve(), model="pdr", extra_body={"pdr": settings})
    assert "rejected by judge" in text_of(chunks, "reasoning")
    assert text_of(chunks).count("boxed") == 1


async def test_system_and_history_are_in_every_draft(serve, mock):
    """The whole conversation is the problem."""
    messages = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Quatre."},
        {"role": "user", "content": [{"type": "text", "text": "And times 3?"}]},
    ]
    await ask(await serve(), messages=messages)
    for each in mock.requests():
        prompt = each["body"]["messages"][0]["content"]
        assert all(text in prompt for text in ("in French", "2 + 2", "Quatre", "times 3"))


REFUSED = [
    ({"model": "gpt-5"}, 404, "no model 'gpt-5'; there are: vote_first, long_cot"),
    ({"model": "pdr?width=3"}, 400, "unknown setting 'width'"),
    ({"n": 3}, 400, "send 3 requests"),
    ({"logprobs": True}, 400, "logprobs is not supported"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools is not supported"),
    ({"extra_body": {"temprature": 1}}, 400, "unknown field 'temprature'"),
    ({"extra_body": {"pdr": {"widths": [0]}}}, 400, "at least 1 draft"),
    ({"extra_body": {"pdr": {"widths": [400, 400]}}}, 400, "asks for 800 drafts"),
    ({"extra_body": {"pdr": {"widths": [9], "max_extra_rounds": 999}}}, 400, "drafts"),
    ({"extra_body": {"pdr": {"verifier": "os:system"}}}, 400, "built-in steps only"),
    ({"model": "pdr?distiller=os:system"}, 400, "built-in steps only"),
    ({"max_tokens": 10**6}, 400, "context window is 131072"),
    ({"temperature": 3}, 400, "temperature"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "no user message"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "no user message"),
    ({"messages": [*ASK, {"role": "user", "content": None}]}, 400, "messages[1].content is null"),
    ({"messages": [*ASK, {"role": "user"}]}, 400, "messages[1].content is null or missing"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content must be text"),
    ({"messages": [{"role": "user", "content": [{}]}]}, 400, "content[0] must be a part"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "text must be text"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages.0.role"),
    (
        {"messages": [*ASK, {"role": "assistant", "content": None, "audio": {"id": "a1"}}]},
        400,
        "messages[1].audio is sound, and this server takes only text",
    ),
    ({"metadata": {"thread_id": "no space"}}, 400, "metadata.thread_id"),
]


NO_TEXT = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    {"type": "input_image", "image_url": "https://a.example/a.png"},
    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    {"type": "file", "file": {"file_id": "f1"}},
    {"type": "input_file", "file_id": "f1"},
    {"type": "video_url", "video_url": {"url": "https://a.example/a.mp4"}},
    {"type": "image", "source": {"type": "base64", "data": "AA"}},
]


async def test_only_text_is_taken(serve, mock, subtests):
    """A picture, a sound or a file gets one sentence that names its place, by either protocol."""
    served = await serve()
    for part in NO_TEXT:
        content = [{"type": "text", "text": "What is this?"}, part]
        turns = [*ASK, {"role": "user", "content": content}]
        asks = {
            "messages": lambda turns=turns: ask(served, messages=turns),
            "input": lambda turns=turns: served.client.responses.create(model=SMALL, input=turns),
        }
        for field, send in asks.items():
            with subtests.test(part["type"], field=field):
                with pytest.raises(openai.BadRequestError) as refused:
                    await send()
                assert refused.value.body == {
                    "message": f"{field}[1].content[1] is of type {part['type']!r}, and this "
                    "server takes only text; leave it out, or put it in words",
                    "type": "invalid_request_error",
                    "param": f"{field}[1].content[1]",
                    "code": "unsupported_content",
                }
    assert mock.stats()["calls"] == 0


CALL = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 3}'}}
READ_PAST = [
    ({"role": "assistant", "content": None, "reasoning": "hidden"}, ""),
    ({"role": "assistant", "reasoning_content": "hidden"}, ""),
    ({"role": "assistant", "content": ""}, ""),
    ({"role": "assistant", "content": []}, ""),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, ""),
    ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}, ""),
    ({"role": "assistant", "content": None, "refusal": "I must not."}, "Assistant: I must not."),
    ({"role": "assistant", "content": "Adding.", "tool_calls": [CALL]}, "Assistant: Adding."),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hidden"},
                {"type": "tool_use", "id": "c1", "name": "sum", "input": {"hidden": 1}},
                {"type": "output_text", "text": "Four, "},
                {"type": "text", "text": "or "},
                {"type": "input_text", "text": "five. "},
                {"type": "refusal", "refusal": "No more."},
            ],
        },
        "Assistant: Four, or five. No more.",
    ),
]


async def test_an_assistant_need_not_speak(serve, mock, subtests):
    """Thoughts and calls of tools in a history are read past; what was said is a turn."""
    served = await serve()
    for number, (turn, said) in enumerate(READ_PAST):
        with subtests.test(number=number):
            task = {"role": "user", "content": f"And {number}?"}
            await ask(served, model="long_cot", messages=[*ASK, turn, task])
            prompt = mock.requests()[-1]["body"]["messages"][0]["content"]
            assert "hidden" not in prompt
            assert said in prompt
            assert ("Assistant:" in prompt) == bool(said)
            assert f"The user now says:\nAnd {number}?" in prompt


async def test_what_a_tool_returned_is_part_of_the_conversation(serve, mock):
    """With what was asked of it, after the user's task."""
    nameless = {"role": "tool", "tool_call_id": "c9", "content": [{"type": "text", "text": "7"}]}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "seven"},
        nameless,
        {"role": "function", "name": "times", "content": "eight"},
    ]
    await ask(await serve(), model="long_cot", messages=messages)
    prompt = mock.requests()[-1]["body"]["messages"][0]["content"]
    told = 'Tool: sum({"a": 3}) returned seven\n\nTool: 7\n\nTool: times returned eight'
    assert told in prompt
    assert prompt.startswith("What is 17 + 25?\n\n<since_then>")


async def test_what_cannot_be_honoured_is_refused(serve, mock, subtests):
    """With OpenAI's error object, streaming or not, and before any call to the model."""
    served = await serve()
    for (fields, status, sentence), streamed in product(REFUSED, (False, True)):
        with subtests.test(sentence, streamed=streamed):
            with pytest.raises(openai.APIStatusError) as refused:
                await ask(served, stream=streamed, **fields)
            assert refused.value.status_code == status
            assert sentence in refused.value.body["message"]
            assert refused.value.body.keys() == {"message", "type", "param", "code"}
    assert mock.stats()["calls"] == 0


async def test_a_model_that_fails_is_told_with_the_way_on(serve, mock):
    """502 and the thread by which the run can be resumed; in a stream that has begun, an event."""
    mock.configure(status=[{"match": {}, "status": 400}])
    served = await serve()
    with pytest.raises(openai.APIStatusError) as failed:
        await ask(served)
    assert failed.value.status_code == 502
    assert "the model failed" in failed.value.body["message"]
    assert '{"thread_id": ' in failed.value.body["message"]
    with pytest.raises(openai.APIError, match="the model failed: round 1"):
        await stream(served)


async def test_langchain_reads_the_answer_and_the_bill(serve, mock):
    """ChatOpenAI, unchanged, streaming and not."""
    served = await serve()
    http = httpx2.AsyncClient()
    model = ChatOpenAI(
        model=SMALL, base_url=served.url, api_key="none", seed=7, http_async_client=http
    )
    message = await model.ainvoke("What is 17 + 25?")
    assert "boxed" in message.text
    assert message.usage_metadata["total_tokens"] == (
        mock.stats()["prompt_tokens"] + mock.stats()["completion_tokens"]
    )
    pieces = [piece async for piece in model.astream("What is 17 + 25?")]
    assert "boxed" in "".join(piece.text for piece in pieces)
    await http.aclose()


async def test_metrics_agree_with_the_endpoint(serve, mock):
    """Tokens and calls by node add up to what was served; requests are counted by status."""
    served = await serve()
    await ask(served)
    with pytest.raises(openai.NotFoundError):
        await ask(served, model="made-up-by-a-client")
    async with httpx2.AsyncClient() as http:
        lines = (await http.get(f"{served.root}/metrics")).text.splitlines()
    stats = mock.stats()
    assert total(lines, "pdr_model_calls_total") == stats["calls"]
    assert total(lines, 'pdr_model_tokens_total{kind="prompt"') == stats["prompt_tokens"]
    assert total(lines, 'pdr_model_tokens_total{kind="completion"') == stats["completion_tokens"]
    assert 'pdr_requests_total{model="pdr",status="200"} 1.0' in lines
    assert 'pdr_requests_total{model="unknown",status="404"} 1.0' in lines
    assert not any("made-up" in line for line in lines)


def total(lines, prefix) -> float:
    return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(prefix))


async def test_no_prompt_is_logged_unless_asked(serve, mock, caplog):
    """Neither of a good request nor of a malformed one."""
    caplog.set_level("DEBUG", logger="pdr_graph")
    served = await serve()
    secret = [{"role": "user", "content": "the secret of the sphinx"}]
    await ask(served, messages=secret)
    with pytest.raises(openai.BadRequestError):
        await ask(served, messages=secret, temperature=9)
    assert "sphinx" not in caplog.text
    assert "request.done model=pdr" in caplog.text
    await ask(await serve(log_prompts=True), messages=secret)
    assert "sphinx" in caplog.text


async def test_a_stream_is_server_sent_events(serve, mock):
    """Each event one line of JSON, the last `[DONE]`; the thread is in a header as well."""
    served = await serve()
    body = {"model": SMALL, "messages": ASK, "stream": True, "metadata": {"thread_id": "sse"}}
    async with httpx2.AsyncClient() as http:
        reply = await http.post(f"{served.url}/chat/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-pdr-thread-id"] == "sse"
    events = reply.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    objects = [json.loads(each.removeprefix("data: ")) for each in events[:-1]]
    assert {each["object"] for each in objects} == {"chat.completion.chunk"}
    assert objects[0]["pdr"] == {"thread_id": "sse"}


async def test_presets_are_models(serve, mock):
    """Each with its settings; those that the operator's defaults rule out are not offered."""
    served = await serve(defaults={"answer": "text"})
    assert len([each async for each in (await serve(max_drafts=1)).client.models.list()]) == 11
    models = {each.id: each async for each in await served.client.models.list()}
    assert "pdr" in models
    assert "majority" not in models
    assert models["pdr"].pdr["answer"] == "text"
    assert (await served.client.models.retrieve("sr")).pdr["widths"] == [1, 1, 1]
    with pytest.raises(openai.NotFoundError, match=r"majority.*compares short answers"):
        await ask(served, model="majority")


async def test_a_name_with_settings_is_described_with_them(serve):
    """What would be run under that name; what cannot be is refused as a request would be."""
    served = await serve()
    models = served.client.models
    async with httpx2.AsyncClient() as http:
        # As a query, where the client does not quote the name.
        reply = await http.get(f"{served.url}/models/pdr?widths=8,4&kappa=64")
    assert (reply.json()["id"], reply.json()["pdr"]["widths"]) == (
        "pdr?widths=8,4&kappa=64",
        [8, 4],
    )
    assert (await models.retrieve("pdr?widths=4&kappa=64")).pdr["widths"] == [4]
    assert (await models.retrieve("pdr?")).pdr["widths"] == [16, 8, 4]
    with pytest.raises(openai.BadRequestError, match="unknown setting 'width'"):
        await models.retrieve("pdr?width=4")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
        await models.retrieve("gpt-5?widths=4")


async def test_the_document_tells_of_streams(serve):
    """A reply is JSON or server-sent events; both are in the OpenAPI document."""
    async with httpx2.AsyncClient() as http:
        document = (await http.get(f"{(await serve()).root}/openapi.json")).json()
    reply = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]
    assert set(reply["content"]) == {"application/json", "text/event-stream"}


async def test_budgets_follow_the_models_window(serve, connect, mock):
    """Where neither operator nor client sets them; what a client sets is refused if too large."""
    served = await serve(client=connect(window=2560))
    reply = await ask(served, model="vote_first")
    assert reply.choices[0].message.content
    assert all(call["body"]["max_tokens"] < 2560 for call in mock.requests())
    with pytest.raises(openai.BadRequestError, match="max_tokens 4000"):
        await ask(served, model="vote_first", max_tokens=4000)

"""The way to the model: one limit, one retry policy, and nothing spent that no ledger knows."""

import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage

from pdr_graph.answers.extract import CLOSE, OPEN, ReplyParts, split_text
from pdr_graph.errors import CallError, ContextWindowError
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import (
    ModelClient,
    Reply,
    Sampling,
    split_message,
)
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import estimate_tokens
from pdr_graph.llm.usage import Spent, Usage
from tests.fakes import NO_WAIT, ScriptedChat, odd_texts
from tests.mock_endpoint import count_messages

MODEL = "mock-model"
PROMPT = "What is 6 x 7?"
PROMPT_TOKENS = count_messages([{"content": PROMPT}])


def drawn(max_tokens: int = 256, seed: int = 1, **fields) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0.7, top_p=0.9, seed=seed, **fields)


async def ask(client: ModelClient, prompt: str = PROMPT, **fields) -> tuple[Reply, Spent]:
    spent = Spent()
    return await client.ask(prompt, drawn(**fields), spent), spent


async def fail(client: ModelClient, prompt: str = PROMPT, **fields) -> tuple[CallError, Spent]:
    spent = Spent()
    with pytest.raises(CallError) as failed:
        await client.ask(prompt, drawn(**fields), spent)
    return failed.value, spent


# ------------------------------------------------------------------------------ one call


async def test_a_call_is_charged_what_the_server_says(mock, connect):
    """Prompt and completion are the server's own counts, exactly."""
    reply, spent = await ask(connect())
    stats = mock.stats()
    assert spent.usage == [Usage(stats["prompt_tokens"], completion=stats["completion_tokens"])]
    assert (spent.requests, spent.failed, spent.aborted) == (1, 0, 0)
    assert reply.usage.prompt == PROMPT_TOKENS
    assert spent.nominal == 256
    assert spent.seconds == reply.seconds > 0


async def test_the_thought_is_taken_off_the_solution(mock, connect):
    """Whether it comes in tags or apart."""
    mock.configure(reasoning="think_tags")
    reply, _ = await ask(connect())
    assert "think>" not in reply.solution
    assert reply.thought
    assert not reply.truncated


@pytest.mark.parametrize("rules", [{}, {"reasoning": "reasoning"}])
async def test_a_reply_at_its_token_limit_is_truncated(mock, connect, rules):
    """The server says `length`, also where it was cut in a thought of its own."""
    mock.configure(**rules)
    reply, _ = await ask(connect(), max_tokens=8)
    assert (reply.truncated, reply.finish_reason) == (True, "length")
    assert reply.usage.completion == 8


async def test_a_thought_without_end_is_truncated_and_no_solution(mock, connect):
    """Even where the server calls it a stop."""
    mock.configure(reasoning="unclosed_think")
    reply, _ = await ask(connect())
    assert (reply.truncated, reply.finish_reason, reply.solution) == (True, "stop", "")


async def test_missing_usage_is_estimated_and_marked(mock, connect):
    """A server that does not count is charged by the text it was sent and sent."""
    mock.configure(no_usage=True, reasoning="reasoning")
    reply, spent = await ask(connect())
    said = estimate_tokens(reply.solution) + estimate_tokens(reply.thought)
    (usage,) = spent.usage
    assert (usage.prompt, usage.estimated) == (estimate_tokens(PROMPT), True)
    assert abs(usage.completion - said) <= 2


@pytest.mark.security
async def test_half_a_character_goes_no_further(mock, connect):
    """A reply may carry a lone surrogate in its JSON; no state, file or store could hold it."""
    mock.configure(replies=[{"contains": "6 x 7", "content": "<think>\udead</think>half \ud83d"}])
    reply, _ = await ask(connect())
    assert (reply.thought, reply.solution) == ("?", "half ?")


@pytest.mark.parametrize("prompt", ["half \ud83d of it", "\udcff bytes from a command line"])
async def test_half_a_character_can_be_asked(mock, connect, prompt):
    """A draft may hold a lone surrogate, and the calls that read it must not fail for that."""
    reply, _ = await ask(connect(), prompt)
    assert reply.solution


# ------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_error_is_retried_up_to_the_cap(mock, connect, status):
    """Every request is counted; those that were refused cost no tokens."""
    mock.configure(status=[{"status": status}])
    error, spent = await fail(connect(retry=Retry(attempts=4, backoff_s=0.001, max_wait_s=0.01)))
    assert mock.stats()["calls"] == spent.requests == 4
    assert (spent.failed, spent.usage, error.status) == (1, [], status)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_refused_request_is_not_repeated(mock, connect, status):
    """It would be refused again."""
    mock.configure(status=[{"status": status}])
    error, spent = await fail(connect())
    assert mock.stats()["calls"] == spent.requests == spent.failed == 1
    assert str(error) == f"HTTP {status}: rule: status {status}"


async def test_a_repaired_call_succeeds_and_says_how_often_it_asked(mock, connect):
    """Two refusals and a reply are three requests and one usage."""
    mock.configure(status=[{"status": 503, "times": 2}])
    _, spent = await ask(connect())
    assert (spent.requests, spent.failed, len(spent.usage)) == (3, 0, 1)
    assert not spent.usage[0].estimated


async def test_retry_after_is_waited_for(mock, connect):
    """The second request comes no earlier than the server asked."""
    mock.configure(status=[{"status": 429, "times": 1, "retry_after": 0.3}])
    await ask(connect(retry=Retry(max_wait_s=5)))
    first, second = mock.requests()
    assert second["started"] - first["ended"] >= 0.3


async def test_a_long_retry_after_is_capped(mock, connect):
    """A server that asks for an hour is asked again after the longest wait."""
    mock.configure(status=[{"status": 429, "times": 1, "retry_after": 3600}])
    await asyncio.wait_for(ask(connect(retry=Retry(max_wait_s=0.05))), 10)
    assert mock.stats()["calls"] == 2


async def test_a_dropped_connection_is_retried_and_charged_as_an_estimate(mock, connect):
    """The server may have worked on it, so what it cost is in the ledger, marked."""
    mock.configure(status=[{"status": "drop", "times": 1}])
    _, spent = await ask(connect())
    assert spent.requests == 2
    assert [usage.estimated for usage in spent.usage] == [True, False]
    assert spent.usage[0].prompt == estimate_tokens(PROMPT)


async def test_a_reply_that_breaks_off_is_retried_and_charged(mock, connect):
    """A stream cut in the middle is no reply, and no free one either."""
    mock.configure(status=[{"status": "drop", "after_chunks": 2, "times": 1}])
    reply, spent = await ask(connect(model_fields={"streaming": True}))
    assert "\\boxed" in reply.solution
    assert spent.requests == 2
    assert [usage.estimated for usage in spent.usage] == [True, False]
    assert mock.stats()["by_status"] == {"drop": 1, "200": 1}


async def test_a_connection_that_is_always_lost_fails_with_a_sentence(mock, connect):
    """Every attempt is charged."""
    mock.configure(status=[{"status": "drop"}])
    error, spent = await fail(connect())
    assert str(error).startswith("connection to the model lost: ")
    assert (error.status, spent.requests, len(spent.usage)) == (None, 3, 3)


async def test_a_refused_connection_costs_no_tokens():
    """Nothing listens there, so nothing was spent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    model = ChatVLLM(base_url=f"http://127.0.0.1:{port}/v1", model=MODEL)
    error, spent = await fail(ModelClient(model, retry=NO_WAIT))
    assert "connection to the model lost" in str(error)
    assert (spent.requests, spent.failed, spent.usage) == (3, 1, [])
    await model.aclose()


async def test_a_full_window_is_told_apart(mock, connect):
    """The user can do something about it: lower max_tokens, or serve a larger window."""
    mock.configure(max_model_len=40)
    error, _ = await fail(connect(), max_tokens=100)
    assert isinstance(error, ContextWindowError)
    assert error.status == 400
    assert "maximum context length is 40 tokens" in str(error)


@pytest.mark.security
async def test_a_failure_is_one_line_of_bounded_length(mock, connect):
    """A server that answers with a page of HTML does not fill the terminal."""
    page = "<html>\n<h1>\n" + "x" * 10_000
    for body in (page, {"error": {"message": page}}):
        mock.configure(status=[{"status": 400, "body": body}])
        error, _ = await fail(connect())
        assert "\n" not in str(error)
        assert len(str(error)) < 450


# ------------------------------------------------------------------------------ cancelling


async def test_a_cancelled_call_ends_at_the_server_and_is_charged(mock, connect):
    """The server sees the client leave; prompt and time so far are charged as an estimate."""
    mock.configure(status=[{"status": "hang"}])
    spent = Spent()
    task = asyncio.ensure_future(connect().ask(PROMPT, drawn(), spent))
    await mock.until(lambda _: any(each["body"] for each in mock.requests()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stats = await mock.until(lambda stats: stats["in_flight"] == 0)
    assert stats["aborted"] == 1
    assert mock.requests()[0]["disconnected"] is True
    assert (spent.requests, spent.aborted, spent.failed) == (1, 1, 0)
    (usage,) = spent.usage
    assert usage.estimated
    assert usage.prompt == estimate_tokens(PROMPT)


async def test_an_aborted_call_with_a_known_prompt_is_charged_its_true_length(mock, connect):
    """The drafts of a round share their prompt, so one finished call tells its length."""
    client = connect()
    await ask(client)
    mock.configure(status=[{"status": "hang"}])
    spent = Spent()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(PROMPT, drawn(seed=2), spent), 0.1)
    assert spent.usage[0].prompt == PROMPT_TOKENS
    assert spent.usage[0].estimated


async def test_an_aborted_call_is_charged_no_more_than_its_allotment(mock, connect):
    """The guess at its completion is bounded by what it was allowed to say."""
    mock.configure(status=[{"status": "hang"}])
    spent = Spent()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connect().ask(PROMPT, drawn(max_tokens=1), spent), 0.2)
    assert spent.usage[0].completion <= 1


async def test_a_call_cancelled_in_the_queue_was_never_made(mock, connect):
    """What waits for its turn costs nothing."""
    mock.configure(status=[{"status": "hang"}])
    client = connect(max_in_flight=1)
    first = asyncio.ensure_future(client.ask(PROMPT, drawn(), Spent()))
    await mock.until(lambda stats: stats["in_flight"] == 1)
    queued = Spent()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(PROMPT, drawn(), queued), 0.1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (queued.requests, queued.aborted, queued.usage) == (0, 0, [])
    assert (await mock.until(lambda stats: stats["in_flight"] == 0))["calls"] == 1


# ------------------------------------------------------------------------------ many calls


async def test_calls_in_flight_are_limited_over_all_runs(mock, connect):
    """Forty calls of two runs, five at once: the limit is the process's, and it is used."""
    mock.configure(delay_s=0.03)
    client = connect(max_in_flight=5)

    async def one_run(seed: int) -> None:
        await asyncio.gather(*(ask(client, seed=100 * seed + n) for n in range(20)))

    await asyncio.gather(one_run(1), one_run(2))
    assert mock.stats()["peak_in_flight"] == 5


async def test_a_call_that_waits_to_be_retried_holds_no_place(mock, connect):
    """A server that is busy for one draft does not keep the others waiting."""
    mock.configure(status=[{"match": {"call": 1}, "status": 429, "retry_after": 0.5}])
    client = connect(max_in_flight=1, retry=Retry(max_wait_s=5))
    first = asyncio.ensure_future(ask(client, seed=1))
    await mock.until(lambda stats: stats["calls"] == 1)
    await ask(client, seed=2)
    assert not first.done()
    await first


async def test_two_hundred_calls_at_once_to_a_host_name(mock):
    """Names are resolved in a few threads, which must not starve the calls."""
    mock.configure(delay_s=3, record=False)
    url = mock.url.replace("127.0.0.1", "localhost")
    model = ChatVLLM(base_url=url, model=MODEL)
    client = ModelClient(model, retry=Retry(attempts=1))
    replies = await asyncio.gather(*(ask(client, seed=n) for n in range(200)))
    await model.aclose()
    assert mock.stats()["by_status"] == {"200": 200}
    # On a busy machine the first replies may come before the last requests.
    assert mock.stats()["peak_in_flight"] > 100
    assert len({reply.solution for reply, _ in replies}) > 190


def test_one_client_serves_two_event_loops_in_turn(mock):
    """A synchronous door calls `asyncio.run` each time; the client is the process's."""
    model = ChatVLLM(base_url=mock.url, model=MODEL)
    client = ModelClient(model, max_in_flight=1)

    async def three_calls() -> None:
        await asyncio.gather(*(ask(client, seed=n) for n in range(3)))
        await model.aclose()

    asyncio.run(three_calls())
    asyncio.run(three_calls())
    assert mock.stats()["by_status"] == {"200": 6}


def test_one_client_serves_two_threads_at_once(mock):
    """Each thread's event loop has connections and places of its own."""
    mock.configure(delay_s=0.05)
    model = ChatVLLM(base_url=mock.url, model=MODEL)
    client = ModelClient(model, max_in_flight=2)
    lost: list[BaseException] = []

    async def calls() -> None:
        await asyncio.gather(*(ask(client, seed=n) for n in range(6)))
        await model.aclose()

    def work() -> None:
        try:
            asyncio.run(calls())
        except BaseException as error:  # noqa: BLE001  # told to the thread that asserts
            lost.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert mock.stats()["by_status"] == {"200": 12}


# ------------------------------------------------------------------------------ other models


class Declares(ScriptedChat):
    """A provider's class that knows two of the parameters."""

    temperature: float | None = None
    max_tokens: int | None = None


async def test_another_model_gets_only_the_parameters_that_its_class_declares():
    """Providers refuse names that they do not know."""
    model = Declares(replies=["x"])
    await ask(ModelClient(model), thinking_token_budget=5)
    assert model.parameters == [{"temperature": 0.7, "max_tokens": 256}]


async def test_a_parameter_that_is_not_asked_for_is_not_sent():
    """None leaves the model's own value in force; 0 is a value."""

    class Thinks(ScriptedChat):
        thinking_token_budget: int | None = None

    model = Thinks(replies=["x"])
    client = ModelClient(model)
    for budget in (None, 0, 5):
        await ask(client, thinking_token_budget=budget)
    assert model.parameters == [{}, {"thinking_token_budget": 0}, {"thinking_token_budget": 5}]


async def test_a_model_that_declares_nothing_is_asked_plainly():
    """LangChain's own fake, as any provider's class."""
    reply, spent = await ask(
        ModelClient(FakeListChatModel(responses=["<think>a</think>It is 42."]))
    )
    assert (reply.solution, reply.thought, reply.finish_reason) == ("It is 42.", "a", "stop")
    assert spent.requests == 1


async def test_a_model_without_usage_is_estimated_and_marked():
    """Its ledger is an estimate, and says so."""
    _, spent = await ask(ModelClient(FakeListChatModel(responses=["It is 42."])))
    prompt, said = estimate_tokens(PROMPT), estimate_tokens("It is 42.")
    assert spent.usage == [Usage(prompt, 0, said, 0, estimated=True)]


async def test_a_stop_reason_of_another_name_is_read():
    """Anthropic says `stop_reason: max_tokens` where OpenAI says `finish_reason: length`."""
    message = AIMessage("cut", response_metadata={"stop_reason": "max_tokens"})
    reply, _ = await ask(ModelClient(ScriptedChat(replies=[message])))
    assert (reply.truncated, reply.finish_reason) == (True, "max_tokens")


async def test_an_error_of_any_sdk_is_a_call_error():
    """One error tree, whatever the provider; the original is its cause."""
    original = ValueError("quota\nexceeded")
    error, spent = await fail(ModelClient(ScriptedChat(replies=[original])))
    assert (str(error), error.__cause__) == ("call failed: quota exceeded", original)
    assert (spent.requests, spent.failed, spent.usage) == (1, 1, [])


async def test_an_error_without_words_is_named():
    """A sentence never ends in nothing."""
    error, _ = await fail(ModelClient(ScriptedChat(replies=[RuntimeError()])))
    assert str(error) == "call failed: RuntimeError"


async def test_calls_are_seen_by_langchains_callbacks():
    """Studio and tracers attach to LangChain's own events."""
    seen: list[str] = []

    class Tracer(AsyncCallbackHandler):
        async def on_chat_model_start(self, serialized, messages, **kwargs):
            seen.append(messages[0][0].text)

    await ask(ModelClient(ScriptedChat(replies=["x"], callbacks=[Tracer()])))
    assert seen == [PROMPT]


def test_the_model_is_named_in_the_record():
    """By its own name, else by its class."""
    served = ChatVLLM(base_url="http://127.0.0.1:1/v1", model="Qwen/Qwen3-8B")
    assert ModelClient(served).name == "Qwen/Qwen3-8B"
    assert ModelClient(FakeListChatModel(responses=["x"])).name == "FakeListChatModel"


async def test_calls_are_sent_one_in_each_turn_of_the_loop():
    """In the order in which they were made; between two, whatever else is ready gets its turn."""
    model = ScriptedChat(replies=["x"])
    client = ModelClient(model)
    calls = [asyncio.create_task(ask(client, f"{number}")) for number in range(50)]
    most = 0
    while not all(call.done() for call in calls):
        before = len(model.prompts)
        await asyncio.sleep(0)
        most = max(most, len(model.prompts) - before)
    assert most == 1
    assert model.prompts == [f"{number}" for number in range(50)]


async def test_a_call_that_is_given_up_lets_the_others_pass():
    """A cancelled draft holds up nobody."""
    client = ModelClient(ScriptedChat(replies=["x"]))
    calls = [asyncio.create_task(ask(client)) for _ in range(10)]
    await asyncio.sleep(0)
    for call in calls[:5]:
        call.cancel()
    done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert [reply.solution for reply, _ in done[5:]] == ["x"] * 5


replies = st.lists(st.sampled_from([OPEN, CLOSE]) | odd_texts, max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>2 + 2</think>\nIt is 4.", ReplyParts("2 + 2", "It is 4.", True)),
        ("2 + 2</think>It is 4.", ReplyParts("2 + 2", "It is 4.", True)),
        ("It is 4.", ReplyParts("", "It is 4.", True)),
        ("", ReplyParts("", "", True)),
        (" \n ", ReplyParts("", "", True)),
        ("<think>2 + 2", ReplyParts("2 + 2", "", False)),
        ("<think>", ReplyParts("", "", False)),
        ("</think>", ReplyParts("", "", True)),
        ("<think></think>", ReplyParts("", "", True)),
        ("<think>2 + 2</think>", ReplyParts("2 + 2", "", True)),
        ("It is 4. <think>or is it", ReplyParts("It is 4. or is it", "", False)),
        ("<think>a</think>b<think>c</think>d", ReplyParts("a</think>b<think>c", "d", True)),
        ("<think>a<think>b</think>c", ReplyParts("a<think>b", "c", True)),
    ],
)
def test_the_solution_is_what_follows_the_last_thought(text, parts):
    """Tags closed, unclosed, closing only, several and none."""
    assert split_text(text) == parts


def test_a_second_thought_that_never_ended_leaves_no_solution():
    """What was said before it is no solution either: the model went on."""
    parts = split_text("<think>a</think>It is 4. <think>But wait")
    assert (parts.solution, parts.closed) == ("", False)
    assert "But wait" in parts.thought


@given(before=replies, rest=odd_texts)
def test_an_unclosed_thought_never_yields_a_solution(before, rest):
    """Whatever came before: after an opening tag without a closing one there is no solution."""
    rest = rest.replace(CLOSE, "")
    parts = split_text(f"{before}{OPEN}{rest}")
    assert (parts.solution, parts.closed) == ("", False)


@given(text=replies)
def test_splitting_never_raises_and_invents_nothing(text):
    """Both parts are text of the reply; a solution holds no tag of a thought."""
    parts = split_text(text)
    assert parts.solution in text
    assert CLOSE not in parts.solution
    assert OPEN not in parts.solution
    assert parts.closed or not parts.solution


@given(thought=odd_texts, solution=odd_texts)
def test_a_closed_thought_is_told_apart_exactly(thought, solution):
    """Both ways of closing a thought, with the white space around the parts stripped."""
    for tag in (OPEN, CLOSE):
        thought, solution = thought.replace(tag, ""), solution.replace(tag, "")
    parts = ReplyParts(thought.strip(), solution.strip(), True)
    assert split_text(f"{OPEN}{thought}{CLOSE}{solution}") == parts
    assert split_text(f"{thought}{CLOSE}{solution}") == parts


def test_reasoning_that_the_server_separated_is_the_thought():
    """The text is then the solution as it stands."""
    message = AIMessage("It is 4.", additional_kwargs={"reasoning_content": "2 + 2"})
    assert split_message(message) == ReplyParts("2 + 2", "It is 4.", True)


def test_reasoning_in_both_places_is_put_together():
    """A server may separate the first thought and leave another in the text."""
    message = AIMessage("more</think>4", additional_kwargs={"reasoning_content": "2 + 2, "})
    assert split_message(message) == ReplyParts("2 + 2, more", "4", True)


def test_separated_reasoning_does_not_close_a_thought_in_the_text():
    """An unclosed thought yields no solution, wherever the first part of it is."""
    message = AIMessage("<think>still", additional_kwargs={"reasoning_content": "2 + 2 "})
    assert split_message(message) == ReplyParts("2 + 2 still", "", False)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "2 + 2"},
        {"type": "reasoning", "reasoning": "2 + 2"},
    ],
)
def test_reasoning_in_content_blocks_is_the_thought(block):
    """Providers that answer in blocks have one for the thought."""
    message = AIMessage([block, {"type": "text", "text": "It is 4."}])
    assert split_message(message) == ReplyParts("2 + 2", "It is 4.", True)


@pytest.mark.parametrize(
    "content",
    [
        [],
        ["It is ", "4."],
        [{"type": "thinking"}, {"type": "text", "text": "x"}],
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}],
        [{"type": "image_url", "image_url": {"url": "data:,"}}],
        [{"type": "thinking", "thinking": None}],
    ],
)
def test_unusual_blocks_are_no_error(content):
    """A block without the text that one expects is passed over."""
    parts = split_message(AIMessage(content))
    assert parts.closed
    assert parts.thought == ""


@given(text=replies, reasoning=st.none() | odd_texts)
def test_no_message_is_too_odd_to_split(text, reasoning):
    """Reasoning is only ever added to the thought."""
    message = AIMessage(text, additional_kwargs={"reasoning_content": reasoning})
    parts, alone = split_message(message), split_text(text)
    assert (parts.solution, parts.closed) == (alone.solution, alone.closed)
    assert parts.thought == f"{reasoning or ''}{alone.thought}"

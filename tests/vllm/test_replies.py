"""What ChatVLLM reads out of real vLLM's replies."""

import asyncio

import pytest

from pdr_graph import ModelClient, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.errors import CallError
from pdr_graph.llm.chat_vllm import LOOPS
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.settings import load_settings
from tests.vllm.conftest import AT_ONCE, PROBLEM, TINY

THINKING = {"thinking": True}
GO_ON = {"min_tokens": 32}
"""SmolLM2 was not trained to think and may stop right after the tag; vLLM forbids it to."""


async def test_the_reasoning_text_is_told_apart(chat):
    """A thought that the budget ends is the thought; what follows is the solution."""
    client = ModelClient(chat(chat_template_kwargs=THINKING, extra_body=GO_ON))
    sampling = Sampling(max_tokens=40, temperature=0.5, top_p=1.0, seed=1, thinking_token_budget=16)
    reply = await client.ask(PROBLEM, sampling, Spent())
    assert reply.thought
    assert reply.solution
    assert "think>" not in reply.thought + reply.solution
    assert reply.usage.completion > 16


async def test_a_thinking_budget_bounds_the_thought(server, chat):
    """Twice the budget is a longer thought, and neither is longer than its budget in tokens."""
    lengths = []
    for budget in (8, 24):
        model = chat(
            chat_template_kwargs=THINKING,
            thinking_token_budget=budget,
            max_tokens=40,
            seed=1,
            temperature=0.5,
            return_token_ids=True,
        )
        message = await model.ainvoke(PROBLEM)
        ids = message.response_metadata["token_ids"]
        lengths.append(ids.index(12))  # </think>, in the place of <jupyter_text>
    assert lengths[0] <= 8
    assert lengths[0] < lengths[1] <= 24


async def test_a_reply_that_ends_inside_its_thought_is_no_solution(chat):
    """Without a budget the thought takes all tokens: thought, no solution, truncated."""
    client = ModelClient(chat(chat_template_kwargs=THINKING))
    sampling = Sampling(max_tokens=16, temperature=0.5, top_p=1.0, seed=1)
    reply = await client.ask(PROBLEM, sampling, Spent())
    assert (reply.solution, reply.truncated) == ("", True)
    assert reply.thought


async def test_a_run_with_thoughts_keeps_them_out_of_the_workspace(chat):
    """Drafts are their solution parts, which follow the forced end of the thought."""
    client = ModelClient(chat(chat_template_kwargs=THINKING, extra_body=GO_ON))
    config = preset(
        "pdr", widths=(3,), distiller="top_k", thinking_token_budget=10, temperature=0.5,
        min_success=0.3, **{**TINY, "max_tokens": 40, "seed": 3},
    )  # fmt: skip
    result = await solve(PROBLEM, config, model=client)
    texts = [draft["solution"] for draft in result.state["drafts"]]
    texts += [workspace["text"] for workspace in result.state["workspaces"]]
    assert any(texts)
    assert not any("Let me think" in text or "think>" in text for text in texts)


async def test_token_ids_and_log_probabilities_come_on_request(chat):
    """As many ids and log-probabilities as completion tokens, and the prompt's ids."""
    model = chat(return_token_ids=True, logprobs=True, max_tokens=5, seed=1)
    message = await model.ainvoke(PROBLEM)
    usage = message.usage_metadata
    assert len(message.response_metadata["token_ids"]) == usage["output_tokens"] == 5
    assert len(message.response_metadata["prompt_token_ids"]) == usage["input_tokens"]
    logprobs = [each["logprob"] for each in message.response_metadata["logprobs"]["content"]]
    assert len(logprobs) == 5
    assert all(value <= 0.0 for value in logprobs)


async def test_a_stream_says_the_same_as_a_reply(chat):
    """Text, reasoning and usage of the chunks add up to those of the whole reply."""
    asked = {
        "chat_template_kwargs": THINKING, "thinking_token_budget": 12, "max_tokens": 30,
        "temperature": 0.0, "seed": 1,
    }  # fmt: skip
    whole = await chat(**asked).ainvoke(PROBLEM)
    streamed = None
    async for chunk in chat(**asked).astream(PROBLEM):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text == whole.text
    for name in ("input_tokens", "output_tokens"):
        assert streamed.usage_metadata[name] == whole.usage_metadata[name]
    thought = streamed.additional_kwargs["reasoning_content"]
    assert thought == whole.additional_kwargs["reasoning_content"] != ""


async def test_vllm_describes_and_ends_loops(client, chat):
    """It is asked to by the field that it describes, and says so; the ledger has what it drew."""
    assert client.model.repetition_detection == dict(LOOPS)
    # One token is drawn over and over.
    forced = {"logit_bias": {"260": 100}, "ignore_eos": True}
    looping = ModelClient(chat(repetition_detection=dict(LOOPS), extra_body=forced))
    sampling = Sampling(max_tokens=400, temperature=0.0, top_p=1.0, seed=1)
    spent = Spent()
    reply = await looping.ask(PROBLEM, sampling, spent)
    assert (reply.finish_reason, reply.truncated) == ("loop", True)
    assert spent.usage[0].completion == LOOPS["min_pattern_size"] * LOOPS["min_count"]
    assert not spent.usage[0].estimated


async def test_vllm_keeps_a_budget_of_thought(chat):
    """With a parser of reasoning, nothing is held against it."""
    client = ModelClient(chat(chat_template_kwargs=THINKING, extra_body=GO_ON))
    for budget in (0, 8, 24):
        sampling = Sampling(60, 0.5, 1.0, 1, thinking_token_budget=budget)
        spent = Spent()
        await client.ask(PROBLEM, sampling, spent)
        assert spent.over_budget == 0


async def test_the_same_seed_draws_the_same_reply(chat):
    """Seeds reach vLLM: equal seeds agree, different ones do not."""
    replies = [(await chat(max_tokens=12, seed=s).ainvoke(PROBLEM)).text for s in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]


async def test_priorities_are_taken(chat):
    """A server that schedules by priority accepts one."""
    message = await chat(max_tokens=2, priority=3).ainvoke(PROBLEM)
    assert message.usage_metadata["output_tokens"] == 2


async def test_a_later_step_is_served_before_first_drafts_that_wait(chat):
    """It is sent last of all, when the first draft has ended, and ends while many still wait."""
    ended: list[int] = []
    # All replies are equally long: the server takes AT_ONCE of them at a time, five times.
    client = ModelClient(chat(extra_body={"ignore_eos": True}), priorities=True)

    async def ask(seed: int, priority: int) -> None:
        sampling = Sampling(48, 1.0, 1.0, seed=seed, priority=priority)
        await client.ask(f"{PROBLEM} ({seed})", sampling, Spent())
        ended.append(priority)

    new = [asyncio.create_task(ask(seed, 8)) for seed in range(5 * AT_ONCE)]
    await asyncio.wait(new, return_when=asyncio.FIRST_COMPLETED)
    later = asyncio.create_task(ask(1000, -1))
    await asyncio.gather(later, *new)
    # It waits for the second lot, which has begun. In the order of arrival it would end last.
    assert ended.index(-1) < 4 * AT_ONCE


@pytest.mark.parametrize("name", ["pdr", "long_cot", "majority"])
async def test_a_run_with_priorities_is_served_whole(server, name):
    """VLLM takes those of each step, below and above 0."""
    widths = {"pdr": (2, 1), "long_cot": (), "majority": (2,)}[name]
    async with open_client(load_settings(base_url=server.base_url, priority=True)) as client:
        result = await solve(PROBLEM, preset(name, widths=widths, **TINY), model=client)
    ledger = result.to_json()["ledger"]
    assert (ledger["failed"], bool(result.solution)) == (0, True)


async def test_a_refused_field_is_one_sentence(client):
    """The server's own words on a bad request arrive in the error."""
    with pytest.raises(CallError, match="HTTP 400"):
        await client.ask(
            PROBLEM, Sampling(max_tokens=4, temperature=-1.0, top_p=1.0, seed=1), Spent()
        )

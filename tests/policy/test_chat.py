"""The chat model in front of a policy: what is asked, and where its tokens are told."""

import asyncio

import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage

from pdr_graph.errors import CallError, ConfigError
from pdr_graph.llm.client import Sampling, read_sampled
from pdr_graph.llm.usage import Spent
from pdr_graph.policy import ScriptedPolicy
from pdr_graph.policy.chat import PolicyChat, policy_client
from tests.policy.letters import LetterTokenizer

LETTERS = LetterTokenizer()
SAMPLING = Sampling(max_tokens=50, temperature=0.5, top_p=1.0, seed=9)


def chat_of(*replies: str, **fields) -> PolicyChat:
    return PolicyChat(policy=ScriptedPolicy(replies, LETTERS), tokenizer=LETTERS, **fields)


async def test_a_reply_tells_its_tokens_where_a_server_of_vllm_tells_them():
    """Ids of prompt and reply, a log-probability for each token, the end included."""
    message = await chat_of("yes").ainvoke([HumanMessage("6 x 7?")])
    told = read_sampled(message)
    assert LETTERS.decode(told.prompt_ids) == "user: 6 x 7?\nassistant: "
    assert told.token_ids == [*map(ord, "yes"), 0]
    assert told.logprobs == [-1.0] * 4
    assert message.text == "yes"
    assert message.usage_metadata["output_tokens"] == 4
    assert message.usage_metadata["input_tokens"] == len(told.prompt_ids)


async def test_messages_are_rendered_by_the_chat_template():
    """With the variables that it was given."""
    chat = chat_of("yes", chat_template_kwargs={"thinking": False})
    message = await chat.ainvoke([SystemMessage("be brief"), HumanMessage("6 x 7?")])
    asked = LETTERS.decode(read_sampled(message).prompt_ids)
    assert asked == "('thinking', False)\nsystem: be brief\nuser: 6 x 7?\nassistant: "


async def test_sampling_reaches_the_policy():
    """As the graph passes it, call by call; a reply that is cut says so."""
    chat = chat_of("a long reply")
    client = policy_client(chat.policy, LETTERS)
    sampling = Sampling(max_tokens=6, temperature=0.5, top_p=1.0, seed=9)
    reply = await client.ask("6 x 7?", sampling, Spent())
    assert (reply.solution, reply.truncated, reply.finish_reason) == ("a long", True, "length")
    assert [asked for _, asked in chat.policy.asked] == [sampling]


async def test_a_prompt_that_is_asked_again_is_rendered_once():
    """A round asks one prompt many times."""
    tokenizer = LetterTokenizer()
    client = policy_client(ScriptedPolicy(["yes"], tokenizer), tokenizer)
    await asyncio.gather(*(client.ask("6 x 7?", SAMPLING, Spent()) for _ in range(20)))
    assert tokenizer.rendered == 1


async def test_the_client_counts_and_is_bounded_as_its_policy_is():
    """Exactly, by the tokenizer; the window is the policy's unless another is given."""
    policy = ScriptedPolicy(["yes"], LETTERS, window=99)
    client = policy_client(policy, LETTERS, name="mine")
    assert await client.counter.count("four") == 4
    assert (client.counter.source, client.name, client.window) == ("file", "mine", 99)
    assert policy_client(policy, LETTERS, window=50).window == 50


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"top_p": 0.9}, r"top_p 0\.9: a model in this process draws from the whole distribution"),
        ({"max_tokens": 90}, "and max_tokens 90 are more than the model's context window of 99"),
    ],
)
async def test_what_cannot_be_drawn_is_one_sentence(fields, sentence):
    """A call that failed, and nothing that was drawn otherwise than asked."""
    client = policy_client(ScriptedPolicy(["yes"], LETTERS, window=99), LETTERS)
    given = {"max_tokens": 50, "temperature": 1.0, "top_p": 1.0, "seed": 9, **fields}
    spent = Spent()
    with pytest.raises(CallError, match=sentence):
        await client.ask("6 x 7?", Sampling(**given), spent)
    assert (spent.failed, spent.requests) == (1, 1)


async def test_messages_and_stops_without_a_place_are_refused():
    """Rather than left out."""
    with pytest.raises(ConfigError, match="type 'tool' cannot be rendered"):
        await chat_of("yes").ainvoke([ToolMessage("4", tool_call_id="1")])
    with pytest.raises(ConfigError, match=r"stop \['x'\]"):
        await chat_of("yes").ainvoke("6 x 7?", stop=["x"])


async def test_a_tokenizer_without_a_chat_template_is_named():
    """Not asked with a prompt that somebody made up."""
    bare = LetterTokenizer()
    bare.chat_template = None
    chat = PolicyChat(policy=ScriptedPolicy(["yes"], bare), tokenizer=bare, model_name="mine")
    with pytest.raises(ConfigError, match="model 'mine' has no chat template"):
        await chat.ainvoke("6 x 7?")


def test_it_answers_without_an_event_loop_too():
    """As LangChain's models do."""
    assert chat_of("yes").invoke("6 x 7?").text == "yes"


async def test_a_script_is_a_list_or_a_function():
    """Of the prompt's text and how the call is drawn."""
    listed = chat_of("a", "b")
    assert [(await listed.ainvoke("?")).text for _ in range(3)] == ["a", "b", "b"]
    policy = ScriptedPolicy(lambda prompt, sampling: f"{len(prompt)} {sampling.seed}", LETTERS)
    chat = PolicyChat(policy=policy, tokenizer=LETTERS)
    assert (await chat.ainvoke("6 x 7?", seed=3)).text == "24 3"

"""A conversation as one problem."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from pdr_graph.conversation import Turn, problem_of
from pdr_graph.embed.subrun import read_messages
from pdr_graph.errors import ConfigError


def problem(*turns: tuple[str, str]) -> str:
    return problem_of([Turn(role, text) for role, text in turns])


def test_one_user_message_is_the_problem_as_it_stands():
    """Nothing is put around it."""
    assert problem(("user", " 2 + 2? ")) == "2 + 2?"
    assert problem(("system", " "), ("user", "2 + 2?")) == "2 + 2?"


def test_a_conversation_is_instructions_transcript_and_task():
    """In this order, so that the calls of later turns share their prefix."""
    assert problem(("system", "Be brief."), ("user", "A"), ("assistant", "B"), ("user", "C")) == (
        "<instructions>\nBe brief.\n</instructions>\n\n"
        "<conversation>\nUser: A\n\nAssistant: B\n</conversation>\n\n"
        "The user now says:\nC"
    )


def test_a_conversation_that_ends_with_the_assistant_goes_on():
    """Nothing that was said is lost."""
    text = problem(("developer", "Rule 1."), ("user", "A"), ("system", "Rule 2."), ("tool", "B"))
    assert text.startswith("<instructions>\nRule 1.\n\nRule 2.\n</instructions>")
    assert "User: A\n\nTool: B" in text
    assert text.endswith("what the assistant says next.")


@pytest.mark.parametrize("turns", [(), (("system", "Be brief."),), (("assistant", "Hello."),)])
def test_without_a_user_there_is_no_problem(turns):
    """The sentence says what to do."""
    with pytest.raises(ConfigError, match="no user message has any text; state the task in one"):
        problem(*turns)


def test_messages_of_langchain_are_turns():
    """Whatever their form; other speakers keep their names."""
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("A"),
        AIMessage("B"),
        ToolMessage("C", tool_call_id="1"),
        {"role": "user", "content": [{"type": "text", "text": "D"}]},
    ]
    assert read_messages({"messages": messages}) == (
        "<instructions>\nBe brief.\n</instructions>\n\n"
        "<conversation>\nUser: A\n\nAssistant: B\n\nTool: C\n</conversation>\n\n"
        "The user now says:\nD"
    )
    with pytest.raises(ConfigError, match="the state has no `messages`"):
        read_messages({})

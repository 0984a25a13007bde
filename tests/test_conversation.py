"""A conversation as one problem."""

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from pdr_graph.conversation import Turn, problem_of, read_content, turns_of_messages
from pdr_graph.errors import ConfigError


def problem(*turns: tuple[str, str]) -> str:
    return problem_of([Turn(role, text) for role, text in turns])


def problem_of_messages(*messages: object) -> str:
    return problem_of(turns_of_messages(messages))


def test_one_user_message_is_the_problem_as_it_stands():
    """Nothing is put around it."""
    assert problem(("user", " 2 + 2? ")) == "2 + 2?"
    assert problem(("system", " "), ("user", "2 + 2?")) == "2 + 2?"
    assert problem(("user", "2 + 2?"), ("assistant", " ")) == "2 + 2?"


def test_a_conversation_is_instructions_transcript_and_task():
    """In this order, so that the calls of later turns share their prefix."""
    assert problem(("system", "Be brief."), ("user", "A"), ("assistant", "B"), ("user", "C")) == (
        "<instructions>\nBe brief.\n</instructions>\n\n"
        "<conversation>\nUser: A\n\nAssistant: B\n</conversation>\n\n"
        "The user now says:\nC"
    )


def test_the_task_is_the_users_last_message_and_what_followed_is_context():
    """A result of a tool is not the task, and nothing that was said is lost."""
    text = problem(("developer", "Rule 1."), ("user", "A"), ("system", "Rule 2."), ("tool", "B"))
    assert text == (
        "<instructions>\nRule 1.\n\nRule 2.\n</instructions>\n\n"
        "A\n\n"
        "<since_then>\nTool: B\n</since_then>\n\n"
        "Do what the user asks. Build on what has been said and found since then."
    )


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
    assert problem_of_messages(*messages) == (
        "<instructions>\nBe brief.\n</instructions>\n\n"
        "<conversation>\nUser: A\n\nAssistant: B\n\nTool: C\n</conversation>\n\n"
        "The user now says:\nD"
    )
    assert [each.text for each in turns_of_messages("Hi")] == ["Hi"]
    assert [each.role for each in turns_of_messages([AIMessageChunk("B")])] == ["assistant"]
    assert [each.role for each in turns_of_messages([ChatMessage("B", role="critic")])] == [
        "critic"
    ]


def test_a_hand_over_keeps_the_task():
    """As a supervisor leaves it: the call, its confirmation, and no word of the user behind."""
    call = {"name": "transfer_to_thinker", "args": {}, "id": "1"}
    text = problem_of_messages(
        HumanMessage("What is 17 + 25?"),
        AIMessage("", tool_calls=[call], name="supervisor"),
        ToolMessage("Successfully transferred to thinker", name=call["name"], tool_call_id="1"),
    )
    assert text.startswith("What is 17 + 25?\n\n<since_then>\nTool (transfer_to_thinker): Success")


def test_what_tools_and_agents_said_has_their_names():
    """A call is told with its arguments, since a result alone may not say what it is of."""
    call = {"name": "search", "args": {"query": "père"}, "id": "1"}
    text = problem_of_messages(
        HumanMessage("A"),
        AIMessage("I look it up.", tool_calls=[call], name="scout"),
        ToolMessage("B", tool_call_id="1"),
        AIMessage("C", name="critic"),
    )
    assert (
        '<since_then>\nAssistant (scout): I look it up.\n[calls search with {"query": "père"}]\n\n'
        "Tool (search): B\n\nAssistant (critic): C\n</since_then>"
    ) in text


def test_an_agents_words_handed_on_as_a_users_are_not_the_task():
    """Where the user has no name, a user message with one is an agent's."""
    text = problem_of_messages(HumanMessage("A"), HumanMessage("B", name="scout"))
    assert text.startswith("A\n\n<since_then>\nUser (scout): B\n")


def test_users_with_names_are_users():
    """Where the first has one, so may the others; the last of them says the task."""
    text = problem_of_messages(HumanMessage("A", name="ann"), HumanMessage("B", name="bob"))
    assert text.endswith("User (ann): A\n</conversation>\n\nThe user now says:\nB")


B64 = "iVBORw0KGgo="
MEDIA = {
    "an image": [
        {"type": "image", "url": "http://x/y.png"},
        {"type": "image", "base64": B64, "mime_type": "image/png"},
        {"type": "image", "file_id": "file-1"},
        {"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"},
        {"type": "image", "source_type": "url", "url": "http://x/y.png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}},
        {"type": "image_url", "image_url": "http://x/y.png"},
        {"type": "input_image", "image_url": "http://x/y.png"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"image": {"format": "png", "source": {"bytes": b"x"}}},
        {"type": "media", "mime_type": "image/png", "data": B64},
        {"type": "non_standard", "value": {"type": "image_file", "image_file": {"file_id": "1"}}},
        {"type": "image_generation_call", "result": B64},
    ],
    "an audio recording": [
        {"type": "audio", "base64": B64, "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}},
        {"type": "audio", "source_type": "base64", "data": B64, "mime_type": "audio/wav"},
        {"type": "audio_url", "audio_url": {"url": "http://x/y.wav"}},
        {"type": "media", "mime_type": "audio/mpeg", "file_uri": "gs://x"},
    ],
    "a video": [
        {"type": "video", "url": "http://x/y.mp4"},
        {"type": "video_url", "video_url": {"url": "http://x/y.mp4"}},
        {"video": {"format": "mp4", "source": {"bytes": b"x"}}},
    ],
    "a file": [
        {"type": "file", "base64": B64, "mime_type": "application/pdf"},
        {"type": "file", "file_id": "file-1"},
        {"type": "file", "file": {"filename": "x.pdf", "file_data": f"data:;base64,{B64}"}},
        {"type": "file", "source_type": "id", "id": "file-1"},
        {"type": "input_file", "file_url": "http://x/y.pdf"},
        {"type": "text-plain", "url": "http://x/y.txt", "mime_type": "text/plain"},
        {"type": "document", "source": {"type": "url", "url": "http://x/y.pdf"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": B64},
        },
        {"document": {"format": "pdf", "name": "x", "source": {"bytes": b"x"}}},
        {"type": "container_upload", "file_id": "file-1"},
    ],
    "a block of type 'hologram'": [{"type": "hologram", "url": "http://x"}],
}
"""What is no text, by what it is, as LangChain 1 and 0, OpenAI, Anthropic, Gemini, Bedrock and vLLM
spell it."""


@pytest.mark.parametrize(
    ("name", "block"), [(name, block) for name, blocks in MEDIA.items() for block in blocks]
)
def test_what_is_no_text_is_refused_in_the_task_and_told_elsewhere(name, block):
    """Never dropped: the sentence names it, and so does the transcript."""
    shown = HumanMessage([{"type": "text", "text": "What is this?"}, block])
    with pytest.raises(ConfigError, match=f"the user's last message holds {name}, and only text"):
        problem_of_messages(shown)
    text = problem_of_messages(shown, AIMessage("A cat."), HumanMessage("Its colour?"))
    assert f"User: What is this?\n[{name}, which is not shown here]\n\nAssistant: A cat." in text
    after = problem_of_messages(HumanMessage("Look."), ToolMessage([block], tool_call_id="1"))
    assert f"Tool: [{name}, which is not shown here]" in after


def test_a_task_of_a_picture_alone_is_refused():
    """The question before it is not taken for the task."""
    picture = MEDIA["an image"][0]
    with pytest.raises(ConfigError, match="holds an image and a video, and only text can be read"):
        problem_of_messages(HumanMessage("A"), HumanMessage([picture, *MEDIA["a video"][:1]]))


@pytest.mark.parametrize(
    "content",
    [
        "A",
        ["A"],
        [{"type": "text", "text": "A"}],
        [{"text": "A"}],
        [{"type": "input_text", "text": "A"}],
        [{"type": "output_text", "text": "A", "annotations": []}],
        [{"type": "refusal", "refusal": "A"}],
        [{"type": "text-plain", "text": "A", "mime_type": "text/plain"}],
        [{"type": "file", "source_type": "text", "text": "A"}],
        [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}],
        [
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "A"}]},
            }
        ],
        [{"type": "tool_result", "tool_use_id": "1", "content": "A"}],
        [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "A"}]}],
        [{"toolResult": {"toolUseId": "1", "content": [{"text": "A"}]}}],
        [{"type": "search_result", "source": "x", "content": [{"type": "text", "text": "A"}]}],
        [{"guardContent": {"text": {"text": "A"}}}],
        [{"type": "non_standard", "value": {"type": "text", "text": "A"}}],
        [{"type": "thinking", "thinking": "B"}, {"type": "text", "text": "A"}],
        [{"type": "redacted_thinking", "data": "B"}, "A"],
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "B"}]}, "A"],
        [{"reasoningContent": {"reasoningText": {"text": "B"}}}, {"text": "A"}],
        ["A", {"type": "tool_use", "id": "1", "name": "f", "input": {}}],
        ["A", {"type": "tool_call", "id": "1", "name": "f", "args": {}}],
        ["A", {"type": "function_call", "name": "f", "arguments": "{}"}],
        ["A", {"type": "web_search_call", "id": "1"}],
        ["A", {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}],
        ["A", {"cachePoint": {"type": "default"}}],
    ],
)
def test_text_is_read_however_it_is_spelled(content):
    """Thoughts, calls and marks are nobody's words, and nothing is missing without them."""
    assert read_content(content) == ("A", ())


def test_a_deep_block_is_read_once():
    """Each level is read one time, not twice as often as the level above it."""
    content: object = "A"
    for _ in range(100):
        content = [{"type": "tool_result", "content": content}]
    assert read_content(content) == ("A", ())


def test_results_that_no_one_can_read_are_told_once():
    """As those of a provider's own search."""
    results = [{"type": "web_search_result", "url": f"http://{each}"} for each in range(3)]
    block = {"type": "web_search_tool_result", "tool_use_id": "1", "content": results}
    text, left_out = read_content(["A", block])
    assert left_out == ("a block of type 'web_search_tool_result'",)
    assert text.count("not shown here") == 1


def test_what_a_model_said_aloud_is_read():
    """OpenAI keeps the words beside an empty content."""
    spoken = AIMessage("", additional_kwargs={"audio": {"id": "1", "transcript": "B"}})
    assert "Assistant: B" in problem_of_messages(HumanMessage("A"), spoken)

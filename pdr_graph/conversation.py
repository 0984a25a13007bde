"""A conversation as one problem: the text that the drafts, and all calls after them, are to solve.

The task is the user's last message; alone it is the problem as it stands. System messages become
instructions, earlier turns a transcript before the task. What came after it, such as results of
tools and the words of other agents, follows it. All calls of the run share this one text.

Only text can be read. A picture, a recording or a file in the task is refused; in any other turn a
line in brackets says that it was there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from pdr_graph.errors import ConfigError

_INSTRUCTING = frozenset({"system", "developer"})

_RULES, _AFTER_RULES = "<instructions>\n", "\n</instructions>"
_SAID, _AFTER_SAID = "<conversation>\n", "\n</conversation>"
_NOW = "The user now says:\n"
_SINCE, _AFTER_SINCE = "<since_then>\n", "\n</since_then>"
_BUILD_ON = "Do what the user asks. Build on what has been said and found since then."


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system` or `developer` for instructions, `user`, `assistant`, or any other speaker."""
    text: str
    name: str = ""
    """Which user, agent or tool speaks; empty where the role says enough."""
    left_out: tuple[str, ...] = ()
    """What the message holds beside text, such as `an image`."""


def problem_of(turns: Sequence[Turn]) -> str:
    """Return the text to be solved.

    Raises:
        ConfigError: no user has said anything, or the task is not text alone.
    """
    said = [each for each in turns if each.text.strip() or each.left_out]
    rules = [each.text.strip() for each in said if each.role in _INSTRUCTING]
    spoken = [each for each in said if each.role not in _INSTRUCTING]
    at = _task_of(spoken)
    task = spoken[at]
    earlier, since = spoken[:at], spoken[at + 1 :]
    parts = []
    if rules:
        parts.append(_RULES + "\n\n".join(rules) + _AFTER_RULES)
    if earlier:
        parts.append(_SAID + _transcript(earlier) + _AFTER_SAID)
    parts.append((_NOW if earlier else "") + task.text.strip())
    if since:
        parts += [_SINCE + _transcript(since) + _AFTER_SINCE, _BUILD_ON]
    return "\n\n".join(parts)


def turns_of(problem: str, *, skip: int = 0) -> list[Turn]:
    """Return the turns of a text that `problem_of` made of several, so that more can follow.

    Args:
        problem: That text. A problem that is a single message is not such a text.
        skip: Characters at the beginning of its instructions that are left out.
    """
    rules, said, since, task = "", "", "", problem
    if task.startswith(_RULES):
        inside = task.removeprefix(_RULES)
        end = inside.index(f"{_AFTER_RULES}\n\n", skip)
        rules, task = inside[:end], inside[end:].removeprefix(f"{_AFTER_RULES}\n\n")
    if task.endswith(f"{_AFTER_SINCE}\n\n{_BUILD_ON}"):
        task = task.removesuffix(f"{_AFTER_SINCE}\n\n{_BUILD_ON}")
        task, _, since = task.rpartition(f"\n\n{_SINCE}")
    if task.startswith(_SAID):
        said, _, task = task.removeprefix(_SAID).rpartition(f"{_AFTER_SAID}\n\n")
        task = task.removeprefix(_NOW)
    turns = [Turn("system", rules[skip:])] if rules[skip:].strip() else []
    return [*turns, *_spoken(said), Turn("user", task), *_spoken(since)]


_SPEAKER_OF = re.compile(r"(?:^|\n\n)([A-Z][a-z_]*)(?: \(([^()\n]+)\))?: ")


def _spoken(transcript: str) -> list[Turn]:
    # A user's paragraph may read like a turn and be split here. `problem_of` joins it as it was.
    pieces = iter(_SPEAKER_OF.split(transcript)[1:])
    return [
        Turn(role.lower(), text, name or "") for role, name, text in zip(*[pieces] * 3, strict=True)
    ]


def _task_of(spoken: Sequence[Turn]) -> int:
    """Return the position of the user's last message.

    Some graphs hand an agent's words on as a user message with the agent's name. Where the first
    user message has no name, one with a name is therefore not the user's.
    """
    asked = [index for index, each in enumerate(spoken) if each.role == "user"]
    if asked and not spoken[asked[0]].name:
        asked = [index for index in asked if not spoken[index].name]
    if not asked or not any(spoken[index].text.strip() for index in asked):
        raise ConfigError("no user message has any text; state the task in one")
    task = spoken[asked[-1]]
    if task.left_out:
        raise ConfigError(
            f"the user's last message holds {' and '.join(task.left_out)}, and only text can be "
            "read; put what it shows into words"
        )
    return asked[-1]


def _transcript(turns: Sequence[Turn]) -> str:
    return "\n\n".join(f"{_speaker(each)}: {each.text.strip()}" for each in turns)


def _speaker(turn: Turn) -> str:
    return turn.role.capitalize() + (f" ({turn.name})" if turn.name else "")


def turns_of_messages(messages: Any) -> list[Turn]:  # Any: whatever LangChain takes for messages
    """Return LangChain's messages, in any of its forms, as turns."""
    read = convert_to_messages([messages] if isinstance(messages, str) else messages)
    callers = {
        call["id"]: call["name"]
        for each in read
        if isinstance(each, AIMessage)
        for call in each.tool_calls
    }
    return [_turn(each, callers) for each in read]


def _turn(message: BaseMessage, callers: Mapping[str | None, str]) -> Turn:
    text, left_out = read_content(message.content)
    role, name = message.type, message.name or ""
    match message:
        case HumanMessage():
            role = "user"
        case AIMessage():
            role = "assistant"
            text = "\n".join([*filter(None, [text or _heard(message)]), *_calls(message)])
        case ToolMessage():
            role, name = "tool", name or callers.get(message.tool_call_id, "")
        case FunctionMessage():
            role = "tool"
        case SystemMessage():
            role, name = "system", ""
        case _:
            role = str(getattr(message, "role", role))
    return Turn(role, text, name, left_out)


def _calls(message: AIMessage) -> list[str]:
    """Say what tools were called with; a hand-over without arguments says nothing."""
    return [
        f"[calls {call['name']} with {json.dumps(call['args'], ensure_ascii=False, default=str)}]"
        for call in message.tool_calls
        if call["args"]
    ]


def _heard(message: AIMessage) -> str:
    """Return the provider's transcript of what a model said aloud."""
    audio = message.additional_kwargs.get("audio")
    return str(audio.get("transcript") or "") if isinstance(audio, Mapping) else ""


def read_content(content: object) -> tuple[str, tuple[str, ...]]:
    """Return a message's text, and what else it holds, each in words such as `an image`.

    Where something stands that is no text, the text says so in brackets.

    Args:
        content: Text, or a list of text and blocks as LangChain and the providers spell them.
    """
    return _joined(_read_blocks(content))


def _read_blocks(content: object) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(content, str) or not isinstance(content, Sequence):
        content = [content]
    return [_read_block(each) for each in content if each is not None]


def _joined(read: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    left_out = dict.fromkeys(name for _, names in read for name in names)
    return "".join(text for text, _ in read), tuple(left_out)


_UNSAID = re.compile(
    r"reasoning|thinking|tool_?use$|tool_call|(?<!image_generation)_call$|^citation$|annotation$|"
    r"cache_?point$",
    re.IGNORECASE,
)
"""Types of blocks that are no speech: thoughts, calls, marks. Calls are read from the message."""
_MEDIA = {"image": "an image", "audio": "an audio recording", "video": "a video"}
_MIME = ("mime_type", "mimeType", "media_type")
_FILES = frozenset({"file", "input_file", "document", "media", "text-plain", "container_upload"})


def _read_block(block: object) -> tuple[str, tuple[str, ...]]:
    if isinstance(block, str):
        return block, ()
    if not isinstance(block, Mapping):
        return _missing(f"a block of type {type(block).__name__}")
    # A block of Bedrock has no type: its only key is the type, its value the block.
    kind = str(block.get("type") or next(iter(block), ""))
    if kind == "non_standard":
        return read_content([block.get("value")])
    if _UNSAID.search(kind):
        return "", ()
    held = (block, block.get(kind), block.get("source"))
    layers = [each for each in held if isinstance(each, Mapping)]
    for layer in layers:
        said = _words_of(layer)
        if said is not None:
            return said
    return _missing(_named(kind, layers))


def _words_of(layer: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """Return what one layer of a block says in words, None if that is nothing."""
    places = ("text", "refusal", "content") + (("data",) if layer.get("type") == "text" else ())
    for place in places:
        value = layer.get(place)
        if isinstance(value, str):
            return value, ()
        if isinstance(value, Mapping | Sequence):
            read = _read_blocks(value)
            if any(not names for _, names in read):
                return _joined(read)
    return None


def _named(kind: str, layers: Sequence[Mapping[str, Any]]) -> str:
    """Name in words a block that holds no text."""
    mime = next((str(each[m]) for each in layers for m in _MIME if each.get(m)), "")
    for word, name in _MEDIA.items():
        if word in kind.lower() or mime.startswith(f"{word}/"):
            return name
    return "a file" if kind.lower() in _FILES else f"a block of type {kind!r}"


def _missing(name: str) -> tuple[str, tuple[str, ...]]:
    return f"\n[{name}, which is not shown here]\n", (name,)

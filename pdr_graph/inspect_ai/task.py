"""A sample of an inspect-ai task as a problem, and a result as the sample's output."""

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ModelOutput
from inspect_ai.solver import TaskState

from pdr_graph.errors import ConfigError
from pdr_graph.result import Result

KEY = "pdr"
"""Of what a sample's metadata tells of its run."""


def problem_of(state: TaskState) -> str:
    """Return the text to be solved: what was said so far, and the choices where there are any.

    Raises:
        ConfigError: there is no text, or not only text.
    """
    for message in state.messages:
        if not isinstance(message.content, str):
            other = [
                each.type for each in message.content if each.type not in {"text", "reasoning"}
            ]
            if other:
                raise ConfigError(f"sample {state.sample_id!r} holds {other[0]}; PDR reads text")
    said = [each for each in state.messages if each.text.strip()]
    turns = [each for each in said if each.role != "system"]
    if not turns:
        raise ConfigError(f"sample {state.sample_id!r} has no text to solve")
    rules = "\n\n".join(each.text.strip() for each in said if each.role == "system")
    parts = [f"<instructions>\n{rules}\n</instructions>"] if rules else []
    if turns[:-1]:
        parts.append(f"<conversation>\n{_transcript(turns[:-1])}\n</conversation>")
    parts.append(turns[-1].text.strip())
    if state.choices:
        parts.append(
            "\n".join(
                f"({_letter(index)}) {each.value}" for index, each in enumerate(state.choices)
            )
        )
    return "\n\n".join(parts)


def hand_in(state: TaskState, result: Result) -> TaskState:
    """Write a result into the sample's state, as a solver that calls the model once would."""
    solution = result.state["solution"]
    assert solution is not None  # the run has ended
    cut = bool(solution["truncated"])
    state.output = ModelOutput.from_content(
        model=str(state.model),
        content=result.solution,
        stop_reason="max_tokens" if cut else "stop",
    )
    state.messages.append(ChatMessageAssistant(content=result.solution, model=str(state.model)))
    state.metadata[KEY] = {
        "answer": result.answer,
        "config": result.config.model_dump(mode="json"),
        "verdict": dict(result.verdict),
        "rounds": result.state["round"],
        "ledger": result.ledger.to_json(),
        "notes": list(result.notes),
    }
    for index in range(len(state.choices)):
        # What the scorer `choice` reads.
        state.choices.mark_choice(index, result.answer == _letter(index))
    return state


def _transcript(turns: list[ChatMessage]) -> str:
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.text.strip()}" for turn in turns)


def _letter(index: int) -> str:
    return chr(ord("A") + index)

"""PDR as a solver of inspect-ai: `inspect eval TASK --solver pdr_graph/pdr -S preset=majority`.

inspect-ai finds the solver by its entry point. Models, usage, limits, epochs, retries, cache and
logs are inspect-ai's own; every call of a run is a model event of its sample. It needs the extra
`inspect`. Source:
https://inspect.aisi.org.uk/extensions.html
"""

try:
    import inspect_ai as _inspect_ai  # noqa: F401
except ImportError:
    from pdr_graph.errors import install_command

    raise ImportError(f"the solver needs inspect-ai: {install_command('inspect')}") from None

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import transcript
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import LimitExceededError
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from pdr_graph.config import PDRConfig, default_config
from pdr_graph.conversation import Turn, problem_of, read_content
from pdr_graph.errors import ConfigError
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import FileCounter
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts, Result, solve

__all__ = ["pdr"]

KEY = "pdr"
"""Key of the facts of a run in the metadata of its sample."""
_LETTERS = "ABCDEFGHIJ"
"""Letters of the options that the answer kind `choice` knows."""


def problem_of_sample(state: TaskState) -> str:
    """Return the text to be solved: the conversation so far, then the choices if there are any.

    Raises:
        ConfigError: no user says anything, or a message holds more than text.
    """
    for message in state.messages:
        if not isinstance(message.content, str):
            other = [
                each.type for each in message.content if each.type not in {"text", "reasoning"}
            ]
            if other:
                raise ConfigError(f"sample {state.sample_id!r} holds {other[0]}; PDR reads text")
    try:
        problem = problem_of([Turn(each.role, each.text) for each in state.messages])
    except ConfigError as error:
        raise ConfigError(f"sample {state.sample_id!r}: {error}") from None
    options = [f"({_LETTERS[index]}) {each.value}" for index, each in enumerate(state.choices)]
    return "\n\n".join([problem, "\n".join(options)]) if options else problem


def hand_in(state: TaskState, result: Result) -> TaskState:
    """Write a result into a sample's state, as a solver that calls the model once does."""
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
        "strategy": result.config.strategy,
        "config": result.config.model_dump(mode="json"),
        "verdict": dict(result.verdict),
        "rounds": result.state["round"],
        "ledger": result.ledger.to_json(),
        "notes": list(result.notes),
    }
    for index in range(len(state.choices)):
        # What the scorer `choice` reads.
        state.choices.mark_choice(index, result.answer == _LETTERS[index])
    return state


class InspectChat(BaseChatModel):
    """A model of inspect-ai as a chat model of LangChain; inspect-ai counts and logs each call."""

    model_name: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    # Any: no type of inspect-ai may be part of a pydantic schema here.
    inspected: Any = Field(exclude=True, repr=False)
    """The model of inspect-ai."""
    limit: Any = Field(default=None, exclude=True, repr=False)
    """The `LimitExceededError` of a call, None if the sample is within its limits.

    The graph takes it for a failed call, and the solver has to raise it again."""

    @property
    def _llm_type(self) -> str:
        return "inspect-ai"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> ChatResult:
        # LangChain's class demands this method; inspect's models have no synchronous call.
        raise NotImplementedError("models of inspect-ai are asynchronous: call ainvoke")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # Any: sampling parameters, each under its own name
    ) -> ChatResult:
        if self.limit is not None:
            raise self.limit  # the sample is over: ask no more
        config = GenerateConfig(stop_seqs=stop, **kwargs)
        try:
            output = await self.inspected.generate(_translated(messages), config=config)
        except LimitExceededError as error:
            self.limit = error
            raise
        return ChatResult(generations=[ChatGeneration(message=_reply(output))])


def _translated(messages: Sequence[BaseMessage]) -> list[ChatMessage]:
    return [
        (ChatMessageSystem if isinstance(each, SystemMessage) else ChatMessageUser)(
            content=read_content(each.content)[0]
        )
        for each in messages
    ]


def _reply(output: ModelOutput) -> AIMessage:
    """Return the model's output as a message, with its reasoning and usage apart."""
    if output.error:
        raise RuntimeError(output.error)
    content = output.message.content if output.choices else ""
    blocks = [] if isinstance(content, str) else content
    reasoning = "".join(each.reasoning for each in blocks if isinstance(each, ContentReasoning))
    cut = output.stop_reason in {"max_tokens", "model_length"}
    return AIMessage(
        content=output.completion,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        response_metadata={"finish_reason": "length" if cut else "stop"},
        usage_metadata=None if output.usage is None else _usage(output.usage),
    )


def _usage(usage: ModelUsage) -> UsageMetadata:
    cached = usage.input_tokens_cache_read or 0
    prompt = usage.input_tokens + cached + (usage.input_tokens_cache_write or 0)
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=usage.output_tokens,
        total_tokens=prompt + usage.output_tokens,
        input_token_details={"cache_read": cached},
        output_token_details={"reasoning": usage.reasoning_tokens or 0},
    )


_SAMPLING = ("max_tokens", "temperature", "top_p")
"""Settings that inspect-ai's own options may set (`--temperature`, …)."""
_NO_LIMIT = 1 << 16
"""Calls at once: in effect no limit, since inspect-ai limits connections itself."""


@solver
def pdr(
    preset: str | None = None,
    tokenizer: str | None = None,
    prompts: str | None = None,
    **settings: Any,  # Any: the fields of PDRConfig, which pydantic checks
) -> Solver:
    """Solve each sample by rounds of drafts, a bounded workspace, and a refinement.

    Sampling follows the solver's settings, then inspect-ai's options, then the preset. Samples with
    choices are answered by a letter, for the scorer `choice`. A sample's metadata holds the ledger
    of its run, under `pdr`.

    Args:
        preset: Name of a strategy, such as `majority`. None is `vote_first`, or `pdr` where widths,
            distiller, finish or kappa is set, or answers are of kind `text`.
        tokenizer: A tokenizer.json to count the workspace with; None estimates.
        prompts: Folder whose NAME.md files replace built-in prompts.
        settings: Fields of `PDRConfig`, such as `widths=[8, 4]` or `-S widths=8,4`.

    Raises:
        ConfigError: there is no such preset or setting.
    """
    given = {name: _read(name, value) for name, value in settings.items()}
    if preset is not None:
        given["preset"] = preset
    default_config(given)  # refused before any sample is begun
    counter = None if tokenizer is None else FileCounter(Path(tokenizer))
    texts = Prompts.load(None if prompts is None else Path(prompts))

    async def run(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        config = _config(given, model, state)
        chat = InspectChat(model_name=str(model), inspected=model)
        client = ModelClient(
            chat, counter=counter, retry=Retry(attempts=1), max_in_flight=_NO_LIMIT
        )
        told = transcript()
        parts = Parts(prompts=texts, on_event=lambda event: told.info(event, source="pdr"))
        try:
            result = await solve(problem_of_sample(state), config, model=client, parts=parts)
        except Exception:
            if chat.limit is not None:
                raise chat.limit from None
            raise
        if chat.limit is not None:  # enough drafts were in before it, so the run went on
            raise chat.limit
        return hand_in(state, result)

    return run


def _config(given: Mapping[str, object], model: Model, state: TaskState) -> PDRConfig:
    """Return the settings of one sample's run."""
    asked = _sampling_of(model)
    fields = {name: value for name in _SAMPLING if (value := getattr(asked, name)) is not None}
    if state.choices:
        if len(state.choices) > len(_LETTERS):
            raise ConfigError(
                f"sample {state.sample_id!r} has {len(state.choices)} choices, {len(_LETTERS)} "
                "can be told apart"
            )
        fields["answer"] = "choice"
    # Every sample and epoch has a seed of its own. A repeated evaluation has the same ones, and
    # thus hits inspect-ai's cache.
    first = given.get("seed")
    first = asked.seed or 0 if first is None else first
    seed = derived_seed(int(str(first)), state.sample_id, state.epoch)
    return default_config({**fields, **given, "seed": seed})


def _sampling_of(model: Model) -> GenerateConfig:
    """Return the options that the evaluation was started with."""
    try:
        # There is no public way to read what `generate` would use.
        from inspect_ai.model._generate_config import active_generate_config
    except ImportError:
        return model.config
    return model.config.merge(active_generate_config())


def _read(name: str, value: object) -> object:
    """Read a value from inspect-ai's command line, which takes a list of one item for a text."""
    if name == "widths" and isinstance(value, str):
        return tuple(part for part in value.split(",") if part.strip())
    return (value,) if name == "widths" and isinstance(value, int) else value

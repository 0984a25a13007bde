"""The solver: one run of the method for each sample and epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inspect_ai.log import transcript
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.inspect_ai.chat import InspectChat
from pdr_graph.inspect_ai.task import hand_in, problem_of
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import FileCounter
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts, solve
from pdr_graph.strategies import preset as preset_config

_SAMPLING = ("max_tokens", "temperature", "top_p")
"""What inspect-ai's own options may set (`--temperature`, …)."""
_MOST_CHOICES = 10
"""Options that the answer kind `choice` tells apart, A to J."""
_NO_LIMIT = 1 << 16
"""Calls at once as far as we are concerned: inspect-ai limits connections itself."""


@solver
def pdr(
    preset: str = "pdr",
    tokenizer: str | None = None,
    prompts: str | None = None,
    **settings: Any,  # Any: the fields of PDRConfig, which pydantic checks
) -> Solver:
    """Solve each sample by rounds of drafts, a bounded workspace, and a refinement.

    Sampling that the solver is not told follows inspect-ai's options, then the preset. Samples
    with choices are answered by a letter, for the scorer `choice`. The ledger of a run is in its
    sample's metadata, under `pdr`.

    Args:
        preset: One of the strategies, as `majority`.
        tokenizer: A tokenizer.json to count the workspace with; None estimates.
        prompts: Folder whose NAME.md files replace built-in prompts.
        settings: Fields of `PDRConfig`, as `widths=[8, 4]` or `-S widths=8,4`.

    Raises:
        ConfigError: there is no such preset or setting.
    """
    given = {name: _read(name, value) for name, value in settings.items()}
    preset_config(preset, **given)  # told before any sample is begun
    counter = None if tokenizer is None else FileCounter(Path(tokenizer))
    texts = Prompts.load(None if prompts is None else Path(prompts))

    async def run(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        config = _config(preset, given, model, state)
        chat = InspectChat.of(model)
        client = ModelClient(
            chat, counter=counter, retry=Retry(attempts=1), max_in_flight=_NO_LIMIT
        )
        told = transcript()
        parts = Parts(prompts=texts, on_event=lambda event: told.info(event, source="pdr"))
        try:
            result = await solve(problem_of(state), config, model=client, parts=parts)
        except Exception:
            if chat.limit is not None:
                raise chat.limit from None
            raise
        if chat.limit is not None:  # some drafts were in before it, and the run went on with them
            raise chat.limit
        return hand_in(state, result)

    return run


def _config(preset: str, given: Mapping[str, object], model: Model, state: TaskState) -> PDRConfig:
    """Return what one sample's run is asked to do."""
    asked = _sampling_of(model)
    fields = {name: value for name in _SAMPLING if (value := getattr(asked, name)) is not None}
    if state.choices:
        if len(state.choices) > _MOST_CHOICES:
            raise ConfigError(
                f"sample {state.sample_id!r} has {len(state.choices)} choices, {_MOST_CHOICES} "
                "can be told apart"
            )
        fields["answer"] = "choice"
    # Every sample and epoch draws its own; a repeated evaluation draws the same, and finds
    # inspect-ai's cache.
    first = given.get("seed")
    first = asked.seed or 0 if first is None else first
    seed = derived_seed(int(str(first)), state.sample_id, state.epoch)
    return preset_config(preset, **{**fields, **given, "seed": seed})


def _sampling_of(model: Model) -> GenerateConfig:
    """Return the options that the evaluation was started with."""
    try:
        # There is no public way to what `generate` would use.
        from inspect_ai.model._generate_config import active_generate_config
    except ImportError:
        return model.config
    return model.config.merge(active_generate_config())


def _read(name: str, value: object) -> object:
    """Read a value as inspect-ai's command line leaves it, which takes a list of one for a text."""
    if name == "widths" and isinstance(value, str):
        return tuple(part for part in value.split(",") if part.strip())
    return (value,) if name == "widths" and isinstance(value, int) else value

"""What a caller hands to a run: steps of their own, a judge, and whatever else a door takes.

`solve`, `resume`, `build_graph`, `pdr_node` and `as_tool` are the doors. `RunOrder.of` checks what
they were given, so that the same input gives the same run, or the same sentence, at each of them.

A name in a config is looked up among what the user passed, then among the built-in ones. A name of
the form `package.module:attribute` is code. It is imported only where the user gives it, in Python
or on the command line. A name that was stored, or that came with a request, is only looked up: a
store, a run of somebody else or a client must not choose what this process imports.
"""

import importlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from pdr_graph.answers import answer_kind
from pdr_graph.config import PDRConfig, default_config, preset
from pdr_graph.distill import DISTILLERS, Distiller, OwnDistil, own_distil
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.events import OnEvent
from pdr_graph.finish import (
    FINISHES,
    VERIFIERS,
    Finish,
    OwnFinish,
    OwnVerify,
    Verify,
    own_finish,
    own_verify,
)
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole
from pdr_graph.prompts import Prompts
from pdr_graph.trace import Trace
from pdr_graph.validation import choice, shown

T = TypeVar("T")

STEPS = ("distiller", "finish", "verifier")
"""Fields of `PDRConfig` that may name code."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """A user's own steps, by the names that configs use for them."""

    distillers: Mapping[str, OwnDistil | Distiller] = field(default_factory=dict)
    finishes: Mapping[str, OwnFinish] = field(default_factory=dict)
    verifiers: Mapping[str, OwnVerify] = field(default_factory=dict)
    judge: DraftJudge | None = None
    """Weighs drafts, for the parts that use weights; None leaves all drafts alike."""

    def with_judge(self, judge: DraftJudge | None) -> "Extensions":
        """Return these steps with a judge; None adds none.

        Raises:
            ConfigError: the steps have another judge, or it is no judge.
        """
        if judge is None:
            return self
        _is_a("judge", judge, DraftJudge, "a judge of drafts, as load_judge(file) returns")
        if self.judge is not None and self.judge != judge:
            raise ConfigError("judge and extensions name two judges; leave one of them out")
        return replace(self, judge=judge)

    def with_code(self, given: PDRConfig | Mapping[str, object]) -> "Extensions":
        """Return these steps, and those that the user names as `package.module:attribute`.

        Args:
            given: What the user gives now. Never what was stored, nor what a request asks for: the
                modules that it names are imported.

        Raises:
            ConfigError: a module or an attribute does not exist, or the attribute is no step.
        """
        fields = given.model_dump() if isinstance(given, PDRConfig) else given
        known: dict[str, Mapping[str, Any]] = {  # Any: steps of three kinds
            "distiller": {**DISTILLERS, **self.distillers},
            "finish": {**FINISHES, **self.finishes},
            "verifier": {**VERIFIERS, **self.verifiers},
        }
        found = {
            kind: {name: _imported(kind, name)}
            for kind, steps in known.items()
            if isinstance(name := fields.get(kind), str) and name not in steps and ":" in name
        }
        if not found:
            return self
        return replace(
            self,
            distillers={**self.distillers, **found.get("distiller", {})},
            finishes={**self.finishes, **found.get("finish", {})},
            verifiers={**self.verifiers, **found.get("verifier", {})},
        )

    def of(self, config: PDRConfig) -> "Extensions":
        """Return these steps as a run takes them: with the judge only where drafts are weighed."""
        return self if config.weighs else replace(self, judge=None)

    def distiller(self, name: str) -> Distiller:
        """Return the distiller `name`; a plain function counts as one model call.

        Raises:
            ConfigError: there is none of this name.
        """
        found = _find("distiller", name, {**DISTILLERS, **self.distillers})
        if not isinstance(found, Distiller):
            return Distiller(own_distil(name, found))
        is_own = found is not DISTILLERS.get(name)
        return replace(found, distil=own_distil(name, found.distil)) if is_own else found

    def finish(self, name: str) -> Finish:
        """Return the finish `name`.

        Raises:
            ConfigError: there is none of this name.
        """
        found = _find("finish", name, {**FINISHES, **self.finishes})
        built_in = FINISHES.get(name)
        return built_in if built_in is not None and found is built_in else own_finish(name, found)

    def verifier(self, name: str) -> Verify:
        """Return the verifier `name`.

        Raises:
            ConfigError: there is none of this name.
        """
        found = _find("verifier", name, {**VERIFIERS, **self.verifiers})
        built_in = VERIFIERS.get(name)
        return built_in if built_in is not None and found is built_in else own_verify(name, found)

    def check(self, config: PDRConfig) -> None:
        """Refuse a config that names an unknown part.

        Raises:
            ConfigError: an unknown distiller, finish, verifier or answer kind, a judge that no
                part of the run asks, or a distiller that needs one where there is none.
        """
        answer_kind(config.answer)
        self.distiller(config.distiller)
        self.finish(config.finish)
        self.verifier(config.verifier)
        if self.judge is not None and not config.weighs:
            raise ConfigError(
                f"a judge weighs drafts, and neither finish {config.finish!r} nor distiller "
                f"{config.distiller!r} asks for weights; choose finish weighted_vote or guarded, "
                "or distiller evidence, contested or trusted, or leave the judge out"
            )
        if config.distiller == "trusted" and config.distils and self.judge is None:
            raise ConfigError(
                "distiller 'trusted' admits what a judge trusts, and there is none; name one by "
                "--judge FILE, or Extensions(judge=…), or choose distiller evidence"
            )


def _find(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name in known:
        return known[name]
    if ":" not in name:
        raise ConfigError(
            f"unknown {kind} {shown(name)}; {choice(name, [*known])}, or package.module:attribute"
        )
    plain = name.isprintable() and len(name) <= 200
    option = shlex.join([f"--{kind}", name]) if plain else f"--{kind}"
    raise ConfigError(
        f"{kind} {shown(name)} is code that a stored run or a request names; if you trust it, give "
        f"it again by {option}, in Python by changes, a PDRConfig as context, or Extensions"
    )


def _imported(kind: str, name: str) -> Any:  # Any: whatever the user's module holds
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {shown(name)} cannot be imported: {error}") from None
    if not callable(found) and not (kind == "distiller" and isinstance(found, Distiller)):
        raise ConfigError(f"{kind} {shown(name)} is not callable")
    return found


@dataclass(frozen=True, slots=True)
class Parts:
    """Optional parts of a run, which all doors share."""

    extensions: Extensions | None = None
    """Distillers, finishes and verifiers of your own; None adds none."""
    prompts: Prompts | None = None
    """None is the built-in ones; on resume, None compares no prompts with the record."""
    trace: Trace | None = None
    """Receives every model call in full; None keeps nothing."""
    on_event: OnEvent | None = None
    """Receives the run's events, see `pdr_graph.events`; None drops them."""
    control: RunControl | None = None
    """`control.request_drain()` stops the run at the next super-step, to be resumed."""
    stream_answer: bool = False
    """Whether the refinement is streamed, as `chunk` events, while the model writes it. A further
    attempt at the call, or another round after a rejected solution, begins it anew."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What a door was given, checked."""

    config: PDRConfig | None
    """None where none was given."""
    models: Models
    parts: Parts
    extensions: Extensions
    """The steps of `parts`, with the judge and with the code that the config names."""

    @classmethod
    def of(
        cls,
        config: object = None,
        *,
        model: object,
        models: ModelsByRole | None = None,
        parts: object = None,
        extensions: object = None,
        judge: DraftJudge | None = None,
        drops: str = "",
        **beside: Any,  # Any: fields of `Parts`, each checked
    ) -> "RunOrder":
        """Check what a door was given.

        Args:
            config: A `PDRConfig`, a preset's name, or a mapping of fields; None is none.
            model: A chat model, a client or `Models`; a string is a name for `init_chat_model`.
            models: Those of some roles.
            parts: Parts of the run in one object.
            extensions: Given beside `parts`; a field of `parts` may be given only once.
            judge: Beside `extensions`.
            drops: Name that the message gives the run, if the door takes neither `on_event` nor
                `control`; empty if it takes both.
            beside: Fields of `parts`; None and False count as not given.

        Raises:
            ConfigError: an argument has the wrong form, or two contradict each other. The message
                says what was expected.
        """
        whole = Parts() if parts is None else parts
        _is_a("parts", whole, Parts, "Parts(extensions=…, prompts=…, trace=…)")
        assert isinstance(whole, Parts)
        given = {"extensions": extensions, **beside}
        for name, value in given.items():
            if value is not None and value is not False:
                if getattr(whole, name) not in (None, False, value):
                    raise ConfigError(f"{name} is given by itself and in parts; leave one out")
                whole = replace(whole, **{name: value})
        _check_parts(whole)
        if drops and (whole.on_event is not None or whole.control is not None):
            raise ConfigError(
                f"parts.on_event and parts.control are for solve and resume; {drops} tells its "
                "events on the stream of the graph, and stops with it"
            )
        steps = (whole.extensions or Extensions()).with_judge(judge)
        checked = None if config is None else config_given(config)
        steps = steps.with_code(checked or {})
        of_all = Models.of(_model_given(model), _models_given(models))
        return cls(checked, of_all, replace(whole, extensions=steps), steps)


def config_given(config: object) -> PDRConfig:
    """Return a config that is given as itself, as the name of a preset, or as its fields.

    Raises:
        ConfigError: there is no such preset, a field does not fit, or it is none of the three.
    """
    if isinstance(config, PDRConfig):
        return config
    if isinstance(config, str):
        return preset(config)
    if isinstance(config, Mapping):
        return default_config(config)
    raise ConfigError(
        "config must be a PDRConfig, such as preset('pdr') returns, a preset's name, or a dict of "
        f"fields, not {shown(config)}"
    )


def check_saver(checkpointer: object) -> None:
    """Refuse a value that is neither an open checkpointer nor None.

    Raises:
        ConfigError: it is an address, a checkpointer that is not open, or anything else.
    """
    if checkpointer is not None:
        how = (
            "an open checkpointer of LangGraph: `async with open_checkpointer(url) as saver` of "
            "pdr_checkpoints, or InMemorySaver()"
        )
        _is_a("checkpointer", checkpointer, BaseCheckpointSaver, how)


def _is_a(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be {what}, not {shown(value)}")


def _check_parts(parts: Parts) -> None:
    if (steps := parts.extensions) is not None:
        _is_a("extensions", steps, Extensions, "Extensions(distillers=…, finishes=…, verifiers=…)")
        for kind, named in (
            ("distiller", steps.distillers),
            ("finish", steps.finishes),
            ("verifier", steps.verifiers),
        ):
            plural = "finishes" if kind == "finish" else f"{kind}s"
            _is_a(plural, named, Mapping, f"a dict of functions by name, as {{'mine': my_{kind}}}")
            for name, step in named.items():
                if not callable(step) and not (kind == "distiller" and isinstance(step, Distiller)):
                    raise ConfigError(
                        f"{kind} {shown(name)} must be a function of a Step, not {shown(step)}"
                    )
    if parts.prompts is not None:
        _is_a("prompts", parts.prompts, Prompts, "Prompts, such as Prompts.load(folder) returns")
    if parts.trace is not None and not callable(getattr(parts.trace, "record", None)):
        raise ConfigError(
            "trace must have a method record, as JsonLinesTrace(Path('calls.jsonl')) has, not "
            f"{shown(parts.trace)}"
        )
    if parts.on_event is not None and not callable(parts.on_event):
        raise ConfigError(f"on_event must be a function of an event, not {shown(parts.on_event)}")
    if parts.control is not None:
        _is_a("control", parts.control, RunControl, "a RunControl of langgraph.runtime")


_OPENED = (
    "open one: `async with open_client() as model` of pdr_graph.connect, "
    "ChatVLLM(base_url=…, model=…), or init_chat_model('provider:name') of langchain"
)


def _model_given(model: object) -> BaseChatModel | ModelClient | Models:
    if isinstance(model, BaseChatModel | ModelClient | Models):
        return model
    if isinstance(model, str):
        return _named_model(model)
    raise ConfigError(
        f"model must be a LangChain chat model or a ModelClient, not {shown(model)}; {_OPENED}"
    )


def _models_given(models: ModelsByRole | None) -> ModelsByRole | None:
    if models is None:
        return None
    _is_a("models", models, Mapping, "a dict of roles and models, as {'refiner': large}")
    return {
        role: _named_model(each) if isinstance(each, str) else each for role, each in models.items()
    }


def _named_model(name: str) -> BaseChatModel:
    """Return the chat model of a name of the form `provider:model`, as agents of LangChain do.

    Any other name is refused, since it does not say which server has the model.
    """
    if ":" not in name or "://" in name:
        raise ConfigError(f"model {shown(name)} is a name, and no model; {_OPENED}")
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        raise ConfigError(
            f"model {shown(name)} needs langchain: {install_command('agent')}; or {_OPENED}"
        ) from None
    try:
        return init_chat_model(name)
    # Each provider raises errors of its own kind for a missing key or package.
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"model {shown(name)} cannot be opened: {why}; {_OPENED}") from error

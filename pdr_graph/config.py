"""The settings of one run, and the presets: one family of strategies.

A strategy is a set of values of `PDRConfig`, above all widths, distiller and finish. Sources: PDR
and SR arXiv 2510.01123; RSA 2509.26626; PaCoRe 2601.05593; the adaptive stop 2604.07725.
"""

import math
from collections.abc import Iterator, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from pdr_graph.errors import ConfigError
from pdr_graph.validation import Fault, choice, differences


def _for_nodes(*names: str, kind: str | None = None) -> dict[str, Any]:
    """Return the schema entries by which LangGraph Studio shows a field at these nodes."""
    return {"langgraph_nodes": list(names), **({"langgraph_type": kind} if kind else {})}


def _prompt(*nodes: str) -> Any:  # Any: what pydantic's Field returns
    return Field(None, json_schema_extra=_for_nodes(*nodes, kind="prompt"))


MIN_KAPPA = 16
"""Model tokens that one line of text with an answer in it needs."""

DRAFT_FINISHES = frozenset({"vote", "select", "weighted_vote", "pairwise_vote"})
"""Finishes that read the last drafts themselves, which then need no distilling."""
FREE_FINISHES = frozenset({"vote", "weighted_vote"})
"""Finishes that make no call."""
SHORT_FINISHES = FREE_FINISHES | {"pairwise_vote"}
"""Finishes that make no call, or only calls whose reply is one token."""
_VOTES = SHORT_FINISHES | {"guarded"}
"""Finishes that compare the answers of drafts."""
_WEIGHING_FINISHES = frozenset({"weighted_vote", "pairwise_vote", "guarded"})
_WEIGHING_DISTILLERS = frozenset({"evidence", "contested", "trusted"})
"""Distillers that use more of a draft than its answer: its signals or its weight."""
_BY_ANSWER = _WEIGHING_DISTILLERS | {"consensus"}
"""Distillers that group drafts by their answers."""
BUDGETS = ("max_tokens", "solution_tokens", "kappa")
"""Fields that follow the model's context window where nobody sets them."""


class PDRConfig(BaseModel):
    """What one run is asked to do; also the form that LangGraph Studio shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: str = "pdr"
    """Name of the strategy that this config started from; `strategy` says what was changed."""
    widths: tuple[int, ...] = Field((8, 4), json_schema_extra=_for_nodes("plan"))
    """Drafts in each parallel round, M_1..M_R; empty is long CoT. The final call comes on top."""
    distiller: str = Field("summary", json_schema_extra=_for_nodes("distiller"))
    """How a round of drafts becomes the next workspace: a built-in distiller, or your own."""
    finish: str = Field("refine", json_schema_extra=_for_nodes("refiner"))
    """How the run ends: `refine` (one more call), `vote`, `weighted_vote`, `pairwise_vote` (a
    tie is decided by comparing two drafts), `guarded` (one more call that is one voice in the
    vote), `select`, or your own."""
    verifier: str = Field("none", json_schema_extra=_for_nodes("verifier"))
    """Who judges the solution: `none`, `consensus`, `judge`, or your own."""
    answer: str = "math"
    """Answer kind: `math` (boxed), `choice` (a letter), `text` (no short answer)."""
    kappa: int = Field(2048, json_schema_extra=_for_nodes("distiller") | {"minimum": MIN_KAPPA})
    """Bound on each workspace, in model tokens."""
    k: int = Field(2, ge=1, json_schema_extra=_for_nodes("distiller"))
    """Solutions in each workspace, for distillers that pick drafts."""
    max_tokens: int = Field(10240, ge=1)
    """Completion tokens allotted to each call, thought and solution together. The default is the
    paper's T = 8192 thinking tokens plus a buffer of 2048 for the solution."""
    solution_tokens: int = Field(2048, ge=MIN_KAPPA)
    """Model tokens of a draft's solution part that are kept; its final answer always is."""
    thinking_token_budget: int | None = Field(None, ge=0)
    """Thinking tokens after which vLLM closes the thought; None sets no limit but `max_tokens`."""
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    """Sampling temperature of drafts and the refinement."""
    refine_temperature: float | None = Field(
        None, ge=0.0, le=2.0, json_schema_extra=_for_nodes("refiner")
    )
    """Sampling temperature of the final call alone; None is that of the drafts."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus sampling mass."""
    seed: int | None = Field(None, ge=0, lt=2**31)
    """Seed of the run, from which the seed of each call is derived; None draws and records one."""
    quorum: float = Field(1.0, gt=0.0, le=1.0, json_schema_extra=_for_nodes("drafter"))
    """Share of a round's drafts to wait for; the requests of the others are then cancelled."""
    min_success: float = Field(0.5, gt=0.0, le=1.0)
    """Share of a round's drafts that must succeed for the run to go on."""
    stop_on_consensus: float | None = Field(
        None, gt=0.0, le=1.0, json_schema_extra=_for_nodes("distiller")
    )
    """Share of drafts with one answer at which further rounds are skipped; None never skips."""
    pool_rounds: bool = False
    """Whether agreement and `vote` count the drafts of all rounds instead of the last alone."""
    max_extra_rounds: int = Field(0, ge=0, json_schema_extra=_for_nodes("verifier"))
    """Further rounds that a rejected solution may cause."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Bound on B_total, in tokens; a round that could exceed it is not started. None sets none."""
    deadline_s: float | None = Field(None, gt=0.0)
    """Seconds of work after which no further round is started; None sets no limit."""

    models: str = ""
    """The model of each role, as `refiner=large, judge=small`: the names are those of models that
    this process has. A role that is left out keeps the model that the process gives it."""

    draft_prompt: str | None = _prompt("drafter")
    """Template of a draft without a workspace, with $problem and $answer_format; None is the
    built-in one."""
    improve_prompt: str | None = _prompt("drafter", "refiner")
    """Template of a draft or refinement with a workspace, with $problem, $workspace and
    $answer_format; None is the built-in one."""
    distill_prompt: str | None = _prompt("distiller")
    """Template of the distiller `summary` or `critique`, with $problem, $candidates and $words;
    None is the built-in one."""
    judge_prompt: str | None = _prompt("verifier")
    """Template of the verifier `judge`, with $problem and $candidates; None is the built-in one."""

    @property
    def distils(self) -> bool:
        """Whether any round of the run is distilled into a workspace."""
        more = len(self.widths) > 1 or self.max_extra_rounds > 0
        return bool(self.widths) and (more or self.finish not in DRAFT_FINISHES)

    @property
    def weighs(self) -> bool:
        """Whether a part of the run uses signals of drafts; the model is then asked for them."""
        by_distiller = self.distiller in _WEIGHING_DISTILLERS and self.distils
        return self.finish in _WEIGHING_FINISHES or by_distiller

    @property
    def changes(self) -> dict[str, str]:
        """Fields in which this strategy differs from the preset that it names, as text.

        Budgets, sampling and prompts are not compared: they define no preset. Empty for a preset of
        your own, whose fields are not known here.
        """
        return dict(_changes(self))

    @property
    def strategy(self) -> str:
        """The preset's name and the changed fields, as `eval` takes them: `pdr@widths=8,4`."""
        changed = ";".join(f"{name}={value}" for name, value in self.changes.items())
        return f"{self.preset}@{changed}" if changed else self.preset

    @property
    def label(self) -> str:
        """The preset's name, with a star where anything of the strategy was changed: `pdr*`."""
        return f"{self.preset}*" if self.changes else self.preset

    def asked(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the fields as plain data, without those that follow the model's window."""
        free = set(BUDGETS) - self.model_fields_set
        return self.model_dump(mode="json", exclude=free)

    @field_validator("widths")
    @classmethod
    def _widths_are_positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        for width in widths:
            if width < 1:
                raise ValueError(f"each round needs at least 1 draft, got {width}")
        return widths

    @field_validator("kappa")
    @classmethod
    def _kappa_holds_a_line(cls, kappa: int) -> int:
        if kappa < MIN_KAPPA:
            raise ValueError(
                f"a workspace must hold at least one line, use {MIN_KAPPA} tokens or more"
            )
        return kappa

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        needs_answer = {
            f"finish {self.finish!r}": self.finish in _VOTES,
            "verifier 'consensus'": self.verifier == "consensus",
            f"distiller {self.distiller!r}": self.distiller in _BY_ANSWER,
            "stop_on_consensus": self.stop_on_consensus is not None,
            "pool_rounds": self.pool_rounds,
        }
        for what, asked in needs_answer.items():
            if asked and self.answer == "text":
                raise ValueError(
                    f"{what} compares short answers, and answer kind 'text' has none; "
                    "choose answer 'math' or 'choice', or another way to end"
                )
        needs_drafts = {
            f"finish {self.finish!r}": self.finish in DRAFT_FINISHES | _VOTES,
            "verifier 'consensus'": self.verifier == "consensus",
        }
        for what, asked in needs_drafts.items():
            if asked and not self.widths:
                raise ValueError(f"{what} needs drafts, and widths is empty; give it a round")
        return self


def form_of(config: PDRConfig) -> type[PDRConfig]:
    """Return `PDRConfig` with the values of `config` as its defaults, for a form to show."""
    if config == PDRConfig():
        return PDRConfig
    fields: dict[str, Any] = {}  # Any: as create_model types them
    for name, info in PDRConfig.model_fields.items():
        own = copy(info)
        own.default = getattr(config, name)
        fields[name] = (info.annotation, own)
    return create_model("PDRConfig", __base__=PDRConfig, **fields)


def with_defaults(config: PDRConfig, **values: object) -> PDRConfig:
    """Return a config with other values of fields that still count as set by nobody."""
    fields: dict[str, Any] = {**dict(config), **values}  # Any: as model_construct takes them
    return type(config).model_construct(_fields_set=set(config.model_fields_set), **fields)


def make_config(**fields: object) -> PDRConfig:
    """Build a config from fields given by keyword.

    Raises:
        ConfigError: a field is unknown or its value does not fit; one sentence names it.
    """
    try:
        return PDRConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(Fault.of(error).sentence(model=PDRConfig)) from None


def changed_fields(recorded: PDRConfig, asked: PDRConfig) -> list[str]:
    """Name the fields in which two configs differ; an asked seed of None matches any seed."""
    free = {"seed"} if asked.seed is None else set()
    changed = differences(recorded.model_dump(), asked.model_dump(), free=free)
    return [each.name for each in changed]


# ---------------------------------------------------------------------------------- presets

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "long_cot": {"widths": (), "finish": "refine"},
        "sr": {"widths": (1, 1, 1), "distiller": "latest"},
        "sr_error_analysis": {"widths": (1, 1, 1), "distiller": "critique"},
        "pdr": {"widths": (16, 8, 4), "distiller": "summary"},
        "pdr_adaptive": {
            "widths": (4, 4, 4, 4),
            "distiller": "none",
            "finish": "vote",
            "pool_rounds": True,
            "stop_on_consensus": 0.75,
        },
        "majority": {"widths": (16,), "finish": "vote"},
        "vote_first": {
            "widths": (3, 2, 3, 4, 4),
            "distiller": "none",
            "finish": "weighted_vote",
            "pool_rounds": True,
            "stop_on_consensus": 0.75,
        },
        "rsa": {"widths": (16,) * 10, "distiller": "random_k", "k": 4, "finish": "vote"},
        "pacore": {"widths": (32, 4), "distiller": "answers"},
        "genselect": {"widths": (16,), "finish": "select"},
        "tournament": {"widths": (16, 8, 4), "distiller": "tournament", "k": 4},
    }
)
"""The built-in presets, each with its fields of `PDRConfig`."""

RECOMMENDED = "vote_first"
"""The default preset: no worse than a vote, and cheaper."""
PAPER = "pdr"
"""The preset of the paper; base of a run that sets parts of the method but names no preset."""
STRATEGY = frozenset(name for fields in PRESETS.values() for name in fields)
"""Fields that make one preset differ from another."""
_OF_THE_METHOD = frozenset({"widths", "distiller", "finish", "kappa"})
"""Fields that mean the paper's method where no preset is named."""


def _changes(config: PDRConfig) -> Iterator[tuple[str, str]]:
    if config.preset not in PRESETS:
        return
    own = PRESETS[config.preset]
    for name, field in PDRConfig.model_fields.items():
        value = getattr(config, name)
        if name in STRATEGY and value != own.get(name, field.default):
            parts = value if isinstance(value, tuple) else (value,)
            yield name, ",".join("none" if part is None else str(part) for part in parts)


def base_preset(given: Mapping[str, object]) -> str:
    """Return the preset that fields of a config start from.

    It is the one that they name. If they name none, it is the paper's for fields that set parts of
    its method, and for answers that cannot be voted on. Else it is the recommended one.
    """
    if "preset" in given:
        return str(given["preset"])
    no_vote = given.get("answer") == "text"
    return PAPER if no_vote or not _OF_THE_METHOD.isdisjoint(given) else RECOMMENDED


def default_config(given: Mapping[str, object] | None = None) -> PDRConfig:
    """Return the config of a run of which only some fields are given, or none.

    Args:
        given: Fields of `PDRConfig`; the rest is from `base_preset`.

    Raises:
        ConfigError: no such preset, or a field does not fit.
    """
    fields = dict(given or {})
    name = base_preset(fields)
    fields.pop("preset", None)
    return preset(name, **fields)


def preset(
    name: str,
    presets: Mapping[str, Mapping[str, object]] = PRESETS,
    /,
    **overrides: object,
) -> PDRConfig:
    """Return the config of a named strategy; `overrides` win over its fields.

    Args:
        name: A key of `presets`.
        presets: Where to look it up; `{**PRESETS, "mine": {...}}` adds one of your own.
        overrides: Fields of `PDRConfig`.

    Raises:
        ConfigError: no such preset, or a field does not fit or contradicts its name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a preset is named by a text, such as {PAPER!r}, not by {name!r}")
    try:
        fields = presets[name]
    except KeyError:
        raise ConfigError(f"unknown preset {name!r}; {choice(name, [*presets])}") from None
    config = make_config(**{"preset": name, **fields, **overrides})
    if fields.get("widths") == () and config.widths:
        shown = ",".join(map(str, config.widths))
        raise ConfigError(
            f"preset {name!r} has no rounds of drafts, and widths {shown} asks for some; leave "
            f"widths out, or choose another preset, such as {PAPER!r}"
        )
    if fields.get("widths") and not config.widths:
        raise ConfigError(
            f"preset {name!r} is made of rounds of drafts, and widths is empty; give it a round, "
            "or choose preset 'long_cot', which has none"
        )
    return config


def num_rounds(config: PDRConfig, extra_rounds: int = 0) -> int:
    """Return how many parallel rounds the run may have, extra ones included."""
    return len(config.widths) + extra_rounds


def width_of(config: PDRConfig, round_number: int) -> int:
    """Return M_r; a round beyond the planned ones has the last width, or 1 if none is planned."""
    if round_number <= len(config.widths):
        return config.widths[round_number - 1]
    return config.widths[-1] if config.widths else 1


def drafts_needed(config: PDRConfig, round_number: int) -> int:
    """Return how many drafts of a round must have a solution for the run to go on."""
    return _share_of(config, round_number, min(config.min_success, config.quorum))


def drafts_awaited(config: PDRConfig, round_number: int) -> int:
    """Return how many drafts with a solution a round waits for before it cancels the others."""
    return _share_of(config, round_number, config.quorum)


def _share_of(config: PDRConfig, round_number: int, share: float) -> int:
    # The tolerance keeps 0.1 * 30 from asking for a fourth draft.
    return max(1, math.ceil(share * width_of(config, round_number) - 1e-9))

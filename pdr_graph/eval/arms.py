"""Arms as typed on the command line: `[NAME=]PRESET[@FIELD=VALUE;FIELD=VALUE…]`.

>>> parse_arm("narrow=pdr@widths=8,4;T=8192").name
'narrow'
>>> parse_arm("majority@widths=8").name
'majority@widths=8'

The fields are those of `PDRConfig`. `T` is the paper's thinking budget: `max_tokens` is then T plus
the tokens of the solution. A sweep `FIELD=VALUE,VALUE…` replaces each arm by one arm for each
value. Values that contain commas are separated by semicolons (`widths=16;8,4`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import NoneType
from typing import Any, get_args, get_origin

from pdr_graph.config import (
    BUDGETS,
    DRAFT_FINISHES,
    PRESETS,
    PDRConfig,
    with_defaults,
)
from pdr_graph.errors import ConfigError
from pdr_graph.eval.budgets import ArmFit, ArmSpec, Budgets, Fields
from pdr_graph.eval.judge import Judge, oracles
from pdr_graph.eval.problems import Problem
from pdr_graph.eval.records import BudgetRecord
from pdr_graph.extensions import Extensions
from pdr_graph.judge import DraftJudge
from pdr_graph.nodes.plan import budgets_note, fitted
from pdr_graph.validation import choice

THINKING = "T"
_NOT_ALLOWED = {
    "preset": "name it before the @",
    "seed": "give --seed to all arms; every sample draws its own from it",
}
_NEED_DRAFTS = frozenset({"widths", "solution_tokens"})
"""Fields without effect on an arm that has no drafts."""
_NEED_DISTILLER = frozenset({"k", "distiller", "kappa"})
"""Fields without effect on an arm that distils nothing."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm, ready to run."""

    name: str
    spec: str
    """As typed, sweeps included."""
    preset: str
    config: PDRConfig
    """Its seed is None: every sample has its own."""
    budget: BudgetRecord


@dataclass(frozen=True, slots=True)
class Sweep:
    """One field, and the values that it takes in turn."""

    field: str
    values: Mapping[str, object]
    """By the text of each value, the value as read."""


def parse_arm(text: str) -> ArmSpec:
    """Parse one arm.

    Raises:
        ConfigError: it is malformed, or names an unknown preset or field.
    """
    head, at, tail = text.partition("@")
    name, named, preset_name = head.rpartition("=")
    preset_name, name = preset_name.strip(), name.strip()
    if named and not name:
        raise ConfigError(f"arm {text!r} begins with '=': write NAME=PRESET, or PRESET alone")
    if preset_name not in PRESETS:
        near = choice(preset_name, [*PRESETS])
        raise ConfigError(f"arm {text!r}: unknown preset {preset_name!r}; {near}")
    if at and not tail.strip():
        raise ConfigError(f"arm {text!r} ends in '@'; write PRESET@FIELD=VALUE;FIELD=VALUE")
    fields: dict[str, object] = {}
    for part in filter(None, map(str.strip, tail.split(";"))):
        field, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise ConfigError(f"arm {text!r}: {part!r} is not FIELD=VALUE")
        if field in fields:
            raise ConfigError(f"arm {text!r} sets {field} twice")
        fields[field] = _read_value(field, value, f"arm {text!r}")
    return ArmSpec(name or text.strip(), text, preset_name, fields)


def parse_sweep(text: str) -> Sweep:
    """Parse one sweep.

    Raises:
        ConfigError: it is malformed, or an arm has no such field.
    """
    field, equals, tail = text.partition("=")
    field = field.strip()
    parts = tail.split(";") if ";" in tail else tail.split(",")
    written = [part.strip() for part in parts if part.strip()]
    if not equals or not written:
        raise ConfigError(
            f"sweep {text!r} is not FIELD=VALUE,VALUE…, for example kappa=256,512,1024"
        )
    values = {value: _read_value(field, value, f"sweep {text!r}") for value in written}
    if len(values) < len(written):
        raise ConfigError(f"sweep {text!r} names a value twice")
    return Sweep(field, values)


def _read_value(field: str, text: str, where: str) -> object:
    """Read what pydantic would not read from the text of a field: lists, and None.

    Raises:
        ConfigError: an arm has no such field.
    """
    if field in _NOT_ALLOWED:
        raise ConfigError(f"{where} cannot set {field}: {_NOT_ALLOWED[field]}")
    if field == THINKING:
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{where}: T is {text!r}, it must be a number of tokens")
        return int(text)
    info = PDRConfig.model_fields.get(field)
    if info is None:
        known = [name for name in PDRConfig.model_fields if name not in _NOT_ALLOWED]
        raise ConfigError(f"{where}: unknown field {field!r}; {choice(field, ['T', *known])}")
    if get_origin(info.annotation) is tuple:
        return tuple(part.strip() for part in text.split(",")) if text else ()
    return None if text == "none" and NoneType in get_args(info.annotation) else text


def swept(specs: Sequence[ArmSpec], sweeps: Sequence[Sweep]) -> list[ArmSpec]:
    """Replace each arm by the arms of all sweeps that have an effect on it."""
    arms: list[ArmSpec] = []
    for spec in specs:
        fitting = [each for each in sweeps if _has_effect(each.field, spec)]
        for values in product(*(each.values.items() for each in fitting)):
            chosen = dict(zip((each.field for each in fitting), values, strict=True))
            shown = ";".join(f"{field}={written}" for field, (written, _) in chosen.items())
            read = {field: value for field, (_, value) in chosen.items()}
            name = f"{spec.name}[{shown}]" if shown else spec.name
            text = f"{spec.text} swept {shown}" if shown else spec.text
            arms.append(replace(spec, name=name, text=text, fields={**spec.fields, **read}))
    return arms


def _has_effect(field: str, spec: ArmSpec) -> bool:
    plain: dict[str, Any] = dict(PRESETS[spec.preset]) | {  # Any: values of several types
        name: value for name, value in spec.fields.items() if name in PDRConfig.model_fields
    }
    widths = plain.get("widths", PDRConfig.model_fields["widths"].default)
    if field in _NEED_DRAFTS:
        return bool(widths)
    if field in _NEED_DISTILLER:
        distils = len(widths) > 1 or plain.get("finish", "refine") not in DRAFT_FINISHES
        return bool(widths) and distils
    return True


def make_arms(
    specs: Sequence[ArmSpec], common: Fields, budgets: Budgets, judge: DraftJudge | None = None
) -> list[Arm]:
    """Settle every field of every arm.

    Args:
        specs: The arms, sweeps applied.
        common: Fields for all arms; the fields that an arm sets itself take precedence.
        budgets: What to match.
        judge: Weighs drafts, in the arms that ask for weights.

    Raises:
        ConfigError: two arms have one name, a field does not fit, or a budget cannot be met.
    """
    # Names, and how many calls they make; every sample has oracles of its own problem.
    known = oracles(Judge.of_kind("math"), Problem("", "", ""), judge)
    arms: dict[str, Arm] = {}
    for spec in specs:
        if spec.name in arms:
            raise ConfigError(f"two arms are named {spec.name!r}; name them, as in mine=pdr@…")
        settled = replace(spec, fields=_settled(spec, common, known))
        config, budget = ArmFit(settled, known.with_code(settled.fields)).to(budgets)
        arms[spec.name] = Arm(spec.name, spec.text, spec.preset, config, budget)
    return list(arms.values())


def arms_within(arms: Sequence[Arm], problem_tokens: int, window: int | None) -> list[Arm]:
    """Return arms whose calls fit the model's window; only budgets that nobody has set change.

    Such a budget is the same in all arms that leave it open, so that they stay comparable.

    Args:
        arms: The arms.
        problem_tokens: Of the longest problem.
        window: Context window of the model; None is unknown.
    """
    fits = [fitted(arm.config, problem_tokens, window) for arm in arms]
    if all(fit is arm.config for fit, arm in zip(fits, arms, strict=True)):
        return list(arms)
    least = {
        name: min(getattr(fit, name) for fit in fits if name not in fit.model_fields_set)
        for name in BUDGETS
        if any(name not in fit.model_fields_set for fit in fits)
    }
    return [with_budgets(arm, least, window) for arm in arms]


def with_budgets(arm: Arm, values: Fields, window: int | None) -> Arm:
    """Return an arm with values of the budgets that it leaves open."""
    free = {name: values[name] for name in values if name not in arm.config.model_fields_set}
    config, budget = with_defaults(arm.config, **free), arm.budget
    if config == arm.config:
        return arm
    return replace(
        arm,
        config=config,
        budget=BudgetRecord(
            max_tokens=config.max_tokens,
            sequential_calls=budget["sequential_calls"],
            total_calls=budget["total_calls"],
            b_seq_nominal=budget["sequential_calls"] * config.max_tokens,
            b_total_nominal=budget["total_calls"] * config.max_tokens,
            derived=budget["derived"] or budgets_note(config, window),
        ),
    )


def _settled(spec: ArmSpec, common: Fields, known: Extensions) -> Fields:
    """Return the fields of an arm, T resolved, if they fit together."""
    fields = {**common, **spec.fields}
    thinking = fields.pop(THINKING, None)
    try:
        if thinking is not None:
            if "max_tokens" in spec.fields:
                raise ConfigError("it sets both T and max_tokens; keep one of them")
            fields.pop("max_tokens", None)
            solution_tokens = replace(spec, fields=fields).config().solution_tokens
            fields["max_tokens"] = int(str(thinking)) + solution_tokens
        config = replace(spec, fields=fields).config()
        known.with_code(fields).of(config).check(config)
    except ConfigError as error:
        raise ConfigError(f"arm {spec.name!r}: {error}") from None
    return fields

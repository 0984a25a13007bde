"""From the words of the command line to arms: `[NAME=]PRESET[@FIELD=VALUE;FIELD=VALUE…]`.

>>> parse_arm("narrow=pdr@widths=8,4;T=8192").name
'narrow'
>>> parse_arm("majority@widths=8").name
'majority@widths=8'

Fields are those of `PDRConfig`; `T` is the paper's thinking budget, to which the solution's tokens
are added to make `max_tokens`. A sweep `FIELD=VALUE,VALUE…` puts one arm in the place of each arm
for each value; values that hold commas are parted by semicolons (`widths=16;8,4`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import NoneType
from typing import Any, get_args, get_origin

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.budgets import Budgets, Fields, OpenArm, fit
from pdr_graph.eval.records import BudgetRecord
from pdr_graph.extensions import Extensions
from pdr_graph.finish import DRAFT_FINISHES
from pdr_graph.strategies import PRESETS, preset

THINKING = "T"
_NOT_AN_ARMS = {
    "preset": "name it before the @",
    "seed": "give --seed to all arms; every sample draws its own from it",
}
_NEED_ROUNDS = frozenset({"widths", "k", "distiller", "kappa", "solution_tokens"})
"""Fields that say nothing to an arm that drafts or distils nothing."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm as asked for."""

    name: str
    text: str
    """As typed."""
    preset: str
    fields: Fields
    """Set by the arm itself."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm, ready to run."""

    name: str
    spec: str
    preset: str
    config: PDRConfig
    """Its seed is None."""
    budget: BudgetRecord


@dataclass(frozen=True, slots=True)
class Sweep:
    """One field and the values it takes in turn."""

    field: str
    values: tuple[str, ...]


def parse_arm(text: str) -> ArmSpec:
    """Read one arm.

    Raises:
        ConfigError: it is malformed, or names a preset or field that there is not.
    """
    head, at, tail = text.partition("@")
    name, named, preset_name = head.rpartition("=")
    preset_name, name = preset_name.strip(), name.strip()
    if named and not name:
        raise ConfigError(f"arm {text!r} begins with '=': write NAME=PRESET, or PRESET alone")
    if preset_name not in PRESETS:
        raise ConfigError(
            f"arm {text!r}: unknown preset {preset_name!r}; known: {', '.join(PRESETS)}"
        )
    if at and not tail.strip():
        raise ConfigError(f"arm {text!r} ends in '@'; write PRESET@FIELD=VALUE;FIELD=VALUE")
    fields: dict[str, object] = {}
    for part in filter(None, map(str.strip, tail.split(";"))):
        field, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"arm {text!r}: {part!r} is no FIELD=VALUE")
        if field.strip() in fields:
            raise ConfigError(f"arm {text!r} sets {field.strip()} twice")
        fields[field.strip()] = read_value(field.strip(), value.strip(), f"arm {text!r}")
    return ArmSpec(name or text.strip(), text, preset_name, fields)


def parse_sweep(text: str) -> Sweep:
    """Read one sweep.

    Raises:
        ConfigError: it is malformed, or its field is none of an arm's.
    """
    field, equals, tail = text.partition("=")
    parts = tail.split(";") if ";" in tail else tail.split(",")
    values = tuple(part.strip() for part in parts if part.strip())
    if not equals or not values:
        raise ConfigError(f"sweep {text!r} is no FIELD=VALUE,VALUE…, as kappa=256,512,1024")
    for value in values:
        read_value(field.strip(), value, f"sweep {text!r}")
    if len(set(values)) < len(values):
        raise ConfigError(f"sweep {text!r} names a value twice")
    return Sweep(field.strip(), values)


def read_value(field: str, text: str, where: str) -> object:
    """Read a field's value as far as pydantic would not: lists, and None.

    Raises:
        ConfigError: an arm has no such field.
    """
    if field in _NOT_AN_ARMS:
        raise ConfigError(f"{where} cannot set {field}: {_NOT_AN_ARMS[field]}")
    if field == THINKING:
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{where}: T is {text!r}, it must be a number of tokens")
        return int(text)
    info = PDRConfig.model_fields.get(field)
    if info is None:
        known = [name for name in PDRConfig.model_fields if name not in _NOT_AN_ARMS]
        raise ConfigError(f"{where}: unknown field {field!r}; known: T, {', '.join(known)}")
    if get_origin(info.annotation) is tuple:
        return tuple(part.strip() for part in text.split(",")) if text else ()
    return None if text == "none" and NoneType in get_args(info.annotation) else text


def swept(specs: Sequence[ArmSpec], sweeps: Sequence[Sweep]) -> list[ArmSpec]:
    """Put the arms of all sweeps in the place of those they concern."""
    arms: list[ArmSpec] = []
    for spec in specs:
        fitting = [each for each in sweeps if _concerns(each.field, spec)]
        for values in product(*(each.values for each in fitting)):
            chosen = dict(zip((each.field for each in fitting), values, strict=True))
            shown = ";".join(f"{field}={value}" for field, value in chosen.items())
            read = {
                field: read_value(field, value, f"sweep of {spec.name!r}")
                for field, value in chosen.items()
            }
            name = f"{spec.name}[{shown}]" if shown else spec.name
            text = f"{spec.text} swept {shown}" if shown else spec.text
            arms.append(replace(spec, name=name, text=text, fields={**spec.fields, **read}))
    return arms


def make_arms(
    specs: Sequence[ArmSpec], common: Fields, budgets: Budgets, extensions: Extensions
) -> list[Arm]:
    """Settle every arm.

    Args:
        specs: The arms, sweeps applied.
        common: Fields for all arms; a preset's and an arm's own come before them.
        budgets: What to match.
        extensions: Distillers and verifiers that an arm may name.

    Raises:
        ConfigError: two arms have one name, a field does not fit, or a budget cannot be met.
    """
    arms: list[Arm] = []
    for spec in specs:
        if any(arm.name == spec.name for arm in arms):
            raise ConfigError(f"two arms are named {spec.name!r}; name them, as in mine=pdr@…")
        arms.append(_arm(spec, common, budgets, extensions))
    return arms


def _arm(spec: ArmSpec, common: Fields, budgets: Budgets, extensions: Extensions) -> Arm:
    fields = {**common, **spec.fields}
    try:
        if THINKING in fields:
            thinking = int(str(fields.pop(THINKING)))
            if "max_tokens" in spec.fields:
                raise ConfigError("it sets both T and max_tokens, of which one follows")
            fields.pop("max_tokens", None)
            config = preset(spec.preset, **fields)
            fields["max_tokens"] = thinking + config.solution_tokens
        extensions.check(preset(spec.preset, **fields))
    except ConfigError as error:
        raise ConfigError(f"arm {spec.name!r}: {error}") from None
    config, budget = fit(OpenArm(spec.name, spec.preset, fields, extensions), budgets)
    return Arm(spec.name, spec.text, spec.preset, config, budget)


def _concerns(field: str, spec: ArmSpec) -> bool:
    """Tell whether a field makes a difference to an arm, so that sweeping it says something."""
    if field not in _NEED_ROUNDS:
        return True
    plain: dict[str, Any] = dict(PRESETS[spec.preset]) | {  # Any: values of several types
        name: value for name, value in spec.fields.items() if name in PDRConfig.model_fields
    }
    widths = plain.get("widths", PDRConfig.model_fields["widths"].default)
    if field in {"widths", "solution_tokens"} or not widths:
        return bool(widths)
    distils = len(widths) > 1 or plain.get("finish", "refine") not in DRAFT_FINISHES
    return distils

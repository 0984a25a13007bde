"""Distillers, finishes and verifiers of the user's own, beside the built-in ones, and a judge.

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

from pdr_graph.answers import answer_kind
from pdr_graph.config import PDRConfig
from pdr_graph.distill import DISTILLERS, Distil, Distiller
from pdr_graph.errors import ConfigError
from pdr_graph.finish import FINISHES, VERIFIERS, Finish, Verify
from pdr_graph.judge import DraftJudge
from pdr_graph.validation import shown

T = TypeVar("T")

STEPS = ("distiller", "finish", "verifier")
"""Fields of `PDRConfig` that may name code."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """A user's own steps, by the names that configs use for them."""

    distillers: Mapping[str, Distil | Distiller] = field(default_factory=dict)
    finishes: Mapping[str, Finish] = field(default_factory=dict)
    verifiers: Mapping[str, Verify] = field(default_factory=dict)
    judge: DraftJudge | None = None
    """Weighs drafts, for the parts that use weights; None leaves all drafts alike."""

    def with_code(self, given: PDRConfig | Mapping[str, object]) -> "Extensions":
        """Return these steps, and those that the user names as `package.module:attribute`.

        Args:
            given: What the user gives now. Never what was stored, nor what a request asks for: the
                modules that it names are imported.

        Raises:
            ConfigError: a module or an attribute is absent, or no step.
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
        """Return the distiller `name`; a plain function is taken to make one call.

        Raises:
            ConfigError: there is none of this name.
        """
        found = _find("distiller", name, {**DISTILLERS, **self.distillers})
        return found if isinstance(found, Distiller) else Distiller(found)

    def finish(self, name: str) -> Finish:
        """Return the finish `name`.

        Raises:
            ConfigError: there is none of this name.
        """
        return _find("finish", name, {**FINISHES, **self.finishes})

    def verifier(self, name: str) -> Verify:
        """Return the verifier `name`.

        Raises:
            ConfigError: there is none of this name.
        """
        return _find("verifier", name, {**VERIFIERS, **self.verifiers})

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
            f"unknown {kind} {shown(name)}; known: {', '.join(known)}, or package.module:attribute"
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

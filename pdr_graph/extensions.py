"""Distillers, finishes and verifiers of the user's own, beside the built-in ones, and a judge.

A name in a config is looked up among what the user passed, then among the built-in ones. A name of
the form `package.module:attribute` is imported, also on the command line.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pdr_graph.answers import answer_kind
from pdr_graph.config import PDRConfig
from pdr_graph.distill import DISTILLERS, Distil, Distiller
from pdr_graph.errors import ConfigError
from pdr_graph.finish import FINISHES, Finish
from pdr_graph.judge import DraftJudge
from pdr_graph.verify import VERIFIERS, Verify

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extensions:
    """A user's own steps, by the names that configs use for them."""

    distillers: Mapping[str, Distil | Distiller] = field(default_factory=dict)
    finishes: Mapping[str, Finish] = field(default_factory=dict)
    verifiers: Mapping[str, Verify] = field(default_factory=dict)
    judge: DraftJudge | None = None
    """Weighs drafts, for the parts that use weights; None leaves all drafts alike."""

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
            ConfigError: an unknown distiller, finish, verifier or answer kind, or a judge that
                no part of the run asks.
        """
        answer_kind(config.answer)
        self.distiller(config.distiller)
        self.finish(config.finish)
        self.verifier(config.verifier)
        if self.judge is not None and not config.weighs:
            raise ConfigError(
                f"a judge weighs drafts, and neither finish {config.finish!r} nor distiller "
                f"{config.distiller!r} asks for weights; choose finish weighted_vote or guarded, "
                "or distiller evidence or contested, or leave the judge out"
            )


def _find(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"unknown {kind} {name!r}; known: {', '.join(known)}, or package.module:attribute"
        )
    try:
        found: T = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}") from None
    if not callable(found) and not isinstance(found, Distiller):
        raise ConfigError(f"{kind} {name!r} is not callable")
    return found

"""The models of a graph: one for all roles, or some roles with a model of their own.

    Models.of(small, {"refiner": large})

A small model may make the many drafts, and a large one the few calls that decide (Squeeze-Evolve,
arXiv 2604.07725). The role `contested` is a policy after that paper: where the drafts of a round
did not agree, those of the next are asked of another model. Without one, the drafter goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, enumerated
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.tokens import EstimateCounter, Source, TokenCounter
from pdr_graph.types import ROLES, Price
from pdr_graph.validation import choice, shown

ModelsByRole = Mapping[str, BaseChatModel | ModelClient]
"""A model for each of some roles, by the names of `types.ROLES`."""


class WidestCounter:
    """Returns the largest count of several models, so that what fits by it fits all of them."""

    def __init__(self, counters: list[TokenCounter]) -> None:
        self._counters = counters

    @property
    def source(self) -> Source:
        """`estimate` if any of the last counts was one, else the source of the first."""
        sources: list[Source] = [each.source for each in self._counters]
        return "estimate" if "estimate" in sources else sources[0]

    async def count(self, text: str) -> int:
        """Return the largest of the counts."""
        # In turn: a counter is quick, and that of a server may open a connection.
        return max([await each.count(text) for each in self._counters])


def widest(clients: list[ModelClient]) -> TokenCounter:
    """Return a counter whose every count holds for all of these models."""
    counters: dict[object, TokenCounter] = {}
    for client in clients:
        # All estimating counters count alike, so one is enough.
        same = EstimateCounter if isinstance(client.counter, EstimateCounter) else client.counter
        counters.setdefault(same if same is EstimateCounter else id(same), client.counter)
    found = list(counters.values())
    return found[0] if len(found) == 1 else WidestCounter(found)


@dataclass(frozen=True, slots=True)
class Models:
    """A client for each role; each has a window, a tokenizer, limits and a price of its own."""

    default: ModelClient
    """The model of all roles that are not named."""
    by_role: Mapping[str, ModelClient] = field(default_factory=dict)
    """Models of the named roles, by the names of `types.ROLES`."""

    @classmethod
    def of(
        cls, model: "BaseChatModel | ModelClient | Models", by_role: ModelsByRole | None = None
    ) -> "Models":
        """Return the models of a graph.

        Args:
            model: Has the roles that are not named; `Models` keep what they name.
            by_role: Models of their own for some roles. One model named twice is one client.

        Raises:
            ConfigError: there is no such role, or what is named is no model.
        """
        before = model if isinstance(model, Models) else cls(ModelClient.of(model))
        if not by_role:
            return before
        clients: dict[int, ModelClient] = {}
        named = dict(before.by_role)
        for role, each in by_role.items():
            check_role(role)
            if not isinstance(each, BaseChatModel | ModelClient):
                raise ConfigError(
                    f"the model of role {role!r} must be a LangChain chat model or a ModelClient, "
                    f"not {shown(each)}"
                )
            same = each is model
            client = before.default if same else ModelClient.of(each)
            named[role] = clients.setdefault(id(each), client)
        return cls(before.default, named)

    def client(self, role: str) -> ModelClient:
        """Return the client of a role: its own, or that of the role which stands in for it."""
        at: str | None = role
        while at is not None:
            if at in self.by_role:
                return self.by_role[at]
            at = ROLES[at]
        return self.default

    @property
    def name(self) -> str:
        """Name of the model that drafts, for the record of a run."""
        return self.client("drafter").name

    @property
    def escalates(self) -> bool:
        """Whether drafts that follow on disagreement are asked of a model of their own."""
        return "contested" in self.by_role

    @property
    def names(self) -> dict[str, str]:
        """The model of each role; empty where one model has all of them."""
        found = {role: self.client(role).name for role in ROLES}
        return found if len(set(found.values())) > 1 else {}

    @property
    def recorded(self) -> dict[str, Any]:  # Any: plain JSON data
        """What a record says of them: `model`, and `models` where roles have their own."""
        return {"model": self.name, **({"models": self.names} if self.names else {})}

    @property
    def summary(self) -> str:
        """The names in a line: the drafter's, then those of the roles that have another."""
        others = [f"{role}: {name}" for role, name in self.names.items() if name != self.name]
        return f"{self.name} ({', '.join(others)})" if others else self.name

    @property
    def prices(self) -> dict[str, Price]:
        """The stated prices, by the name of the model."""
        priced = [(each.name, each.price) for each in self.clients]
        return {name: price for name, price in priced if price is not None}

    @property
    def clients(self) -> list[ModelClient]:
        """Every client that has a role, once."""
        found = {id(client): client for client in map(self.client, ROLES)}
        return list(found.values())

    @property
    def window(self) -> int | None:
        """The smallest context window of them, in tokens; None where none is known."""
        return min((each.window for each in self.clients if each.window is not None), default=None)

    def mapped(self, change: Callable[[ModelClient], ModelClient]) -> "Models":
        """Return models with each client changed, once."""
        changed = {id(each): change(each) for each in [self.default, *self.clients]}
        named = {role: changed[id(each)] for role, each in self.by_role.items()}
        return Models(changed[id(self.default)], named)

    def for_run(self, config: PDRConfig) -> "Models":
        """Return the models of one run: its config may give roles to others of these models.

        Raises:
            ConfigError: it names an unknown role, or a model that is none of these.
        """
        if not config.models.strip():
            return self
        known = {client.name: client for client in [*self.clients, self.default]}
        named = dict(self.by_role)
        for part in filter(None, (each.strip() for each in config.models.split(","))):
            role, equals, name = (each.strip() for each in part.partition("="))
            if not equals:
                raise ConfigError(
                    f"models {shown(part)}: write it as ROLE=NAME, as in refiner=large"
                )
            check_role(role)
            if name not in known:
                raise ConfigError(
                    f"models: role {role} is given to {shown(name)}, which this process does not "
                    f"have; it has: {', '.join(known)}"
                )
            named[role] = known[name]
        return Models(self.default, named)

    def asked_by(self, config: PDRConfig) -> dict[str, ModelClient]:
        """Return the roles that a run of this config may ask, with their clients."""
        drafts = bool(config.widths or config.max_extra_rounds)
        by_model = config.verifier not in {"none", "consensus"}
        asked = {
            "drafter": drafts,
            "contested": drafts and self.escalates,
            "distiller": drafts,
            "refiner": True,
            verifying(config): by_model,
        }
        return {role: self.client(role) for role, is_asked in asked.items() if is_asked}

    @property
    def counter(self) -> TokenCounter:
        """Counts what any role may read: problem and drafts."""
        return widest(self.clients)

    @property
    def readers(self) -> TokenCounter:
        """Counts what is written into workspaces, by the models that read these."""
        return widest([self.client(role) for role in ("drafter", "contested", "refiner")])


def verifying(config: PDRConfig) -> str:
    """Return the role of the run's verifier."""
    return "judge" if config.verifier == "judge" else "verifier"


def check_role(role: object) -> None:
    """Refuse a role that does not exist.

    Raises:
        ConfigError: the message names the roles.
    """
    if role not in ROLES:
        raise ConfigError(f"unknown role {shown(role)}; {choice(role, [*ROLES])}")


def changed_models(
    recorded: Mapping[str, Any],  # Any: the fields of a record
    asked: Mapping[str, Any],
) -> list[str]:
    """Say which models of a run's record differ from those of now.

    Args:
        recorded: The record: `model`, and `models` where roles have their own.
        asked: The models of now, in the same form.
    """
    changed: dict[tuple[str, str], list[str]] = {}
    for role in ROLES:
        was, now = (each.get("models", {}).get(role, each["model"]) for each in (recorded, asked))
        if was != now:
            changed.setdefault((was, now), []).append(role)
    return [f"model {_whose(roles)}({was!r}, now {now!r})" for (was, now), roles in changed.items()]


def _whose(roles: list[str]) -> str:
    if len(roles) == len(ROLES):
        return ""
    # A role whose stand-in is listed too need not be named.
    own = [role for role in roles if ROLES[role] not in roles]
    return f"of {enumerated(own)} "

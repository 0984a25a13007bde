"""Decides what comes next: another round of drafts, or the final call."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from pdr_graph.budget import (
    TEMPLATE_TOKENS,
    abandoned_rows,
    finish_cost,
    round_cost,
    workspace_limit,
)
from pdr_graph.config import (
    BUDGETS,
    FREE_FINISHES,
    MIN_KAPPA,
    PDRConfig,
    make_config,
    width_of,
    with_defaults,
)
from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.events import BeginEvent, NoteEvent, RoundEvent, log_event
from pdr_graph.invocation import Invocation
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models
from pdr_graph.llm.tokens import wellformed
from pdr_graph.nodes.toolbox import Toolbox, run_name, superstep, tell, thread_id, why_not_round
from pdr_graph.state import PDRState, config_of, rounds_left, state_of
from pdr_graph.types import RunRecord
from pdr_graph.validation import check_problem

LEAST_CALL = 64
"""Fewest completion tokens of a call whose budget follows the model's window."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Records the config on entry, then starts rounds while any are left and can be paid for."""

    toolbox: Toolbox
    default: PDRConfig
    """The config of a run whose caller gives none."""

    async def __call__(self, state: PDRState, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the update that opens a run, a round, or the finish."""
        call = Invocation.current()
        # If the call brings a new problem, a run that stopped is left as it is.
        if call.opens or state.get("phase") in {None, "done"}:
            opening = await self._open(state, self._asked(state, runtime))
            opening["run"] = call.run = run_name()
            opening["ledger"] = abandoned_rows(call.abandoned, superstep())
            state = state_of({**state, **opening})
            begin = BeginEvent(event="begin", preset=config_of(state).strategy, resumed=False)
            log_event(thread_id(), begin)
            for note in state["notes"]:
                tell(runtime.stream_writer, NoteEvent(event="note", text=note))
            call.opens, ledger = False, Overwrite(opening["ledger"])
            return {**opening, **self._next(state, runtime), "ledger": ledger}
        if state["phase"] == "short":
            return {"phase": "draft"}  # the same round, for the drafts that it still owes
        return self._next(state, runtime)

    def _asked(self, state: PDRState, runtime: Runtime[PDRConfig]) -> PDRConfig:
        # A graph around this one may have a context of its own.
        if isinstance(runtime.context, PDRConfig):
            return runtime.context
        given = state.get("config")
        return make_config(**given) if given else self.default

    async def _open(self, state: PDRState, config: PDRConfig) -> dict[str, object]:
        check_problem(state.get("problem", ""))
        problem = wellformed(state["problem"]).strip()
        operators = self.toolbox.operators.of(config)
        operators.check(config)
        models = self.toolbox.models.for_run(config)
        record = RunRecord(
            version=_own_version(),
            model=models.name,
            prompts=self.toolbox.prompts.of_run(config).hashes(),
            token_counts="",
        )
        if models.names:
            record["models"] = models.names
        if own := self.toolbox.prompts.own:
            record["own_prompts"] = own
        if (judge := operators.judge) is not None:
            judge.check(record["model"])
            record["judge"] = judge.digest
        if config.seed is None:
            config = config.model_copy(update={"seed": secrets.randbits(31)})
        asked, window = config, None
        lengths = await lengths_of(problem, models.asked_by(config).values())
        for client, tokens in lengths.items():
            smaller = fitted(config, tokens, client.window)
            window = client.window if smaller is not config else window
            config = smaller
        check_windows(config, lengths, models)
        # The largest of several counts, so that no sum is too small.
        problem_tokens = max(lengths.values())
        _check_budget(config, problem_tokens)
        return {
            "problem": problem,
            "config": config.model_dump(mode="json"),
            "record": RunRecord({**record, "token_counts": models.counter.source}),
            "problem_tokens": problem_tokens,
            "round": 0,
            "extra_rounds": 0,
            "drafts": Overwrite([]),
            "workspaces": [],
            "tally": None,
            **({"contested": False} if models.escalates else {}),
            "consensus": None,
            "solution": None,
            "verdict": None,
            "notes": [budgets_note(config, window)] if config is not asked else [],
        }

    def _next(self, state: PDRState, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        config, next_round = config_of(state), state["round"] + 1
        if rounds_left(state) <= 0:
            return {"phase": "finish"}
        distiller = self.toolbox.operators.distiller(config.distiller)
        why_not = why_not_round(state, distiller.max_calls, self.toolbox.extensions)
        if why_not is not None:
            note = f"round {next_round} and later were skipped: {why_not}"
            tell(runtime.stream_writer, NoteEvent(event="note", text=note))
            return {"phase": "finish", "notes": [*state["notes"], note]}
        width = width_of(config, next_round)
        tell(runtime.stream_writer, RoundEvent(event="round", round=next_round, width=width))
        return {"phase": "draft", "round": next_round}


@cache
def _own_version() -> str:
    # Cached: the lookup searches the folders of installed packages.
    return version("pdr-graph")


def fitted(config: PDRConfig, problem_tokens: int, window: int | None) -> PDRConfig:
    """Return the config with budgets that fit the model's window; None is an unknown window.

    Only budgets that nobody has set are made smaller, and only where the defaults do not fit. Where
    calls read drafts or workspaces, half of the room beside the problem is for the reply.
    """
    free = 0 if window is None else window - problem_tokens - TEMPLATE_TOKENS
    workspace = workspace_limit(config)
    if window is None or workspace + config.max_tokens <= free:
        return config
    unset = set(BUDGETS) - config.model_fields_set
    kappa, max_tokens = config.kappa, config.max_tokens
    if workspace and "kappa" in unset:
        room = free // 4 if "max_tokens" in unset else free - max_tokens
        kappa = workspace = max(MIN_KAPPA, min(kappa, room))
    if "max_tokens" in unset:
        reads = workspace > 0 or config.finish == "select"
        room = free // 2 if reads and "kappa" in unset else free - workspace
        max_tokens = max(LEAST_CALL, min(max_tokens, room))
    kept = config.solution_tokens
    if "solution_tokens" in unset:
        kept = max(MIN_KAPPA, min(kept, max_tokens))
    return with_defaults(config, kappa=kappa, max_tokens=max_tokens, solution_tokens=kept)


def budgets_note(config: PDRConfig, window: int | None) -> str:
    """Return the sentence on budgets that were made to fit the model's window."""
    used = ", ".join(
        f"{name} {getattr(config, name)}"
        for name in BUDGETS
        if name not in config.model_fields_set and (name != "kappa" or workspace_limit(config))
    )
    return f"budgets follow the model's context window of {window} tokens: {used}"


async def lengths_of(problem: str, clients: Iterable[ModelClient]) -> dict[ModelClient, int]:
    """Return how many tokens a problem has for each of these models."""
    return {client: await client.counter.count(problem) for client in dict.fromkeys(clients)}


def check_windows(config: PDRConfig, lengths: Mapping[ModelClient, int], models: Models) -> None:
    """Refuse a problem whose calls may not fit the window of a model that the run asks.

    Args:
        config: What the run is asked for.
        lengths: Tokens of the problem, for each of the models that the run may ask.
        models: The models of the run.

    Raises:
        ContextWindowError: the sentence names every part of the call, and the role.
    """
    for role, client in models.asked_by(config).items():
        whose = f"the model of role {role}" if models.names else "the model"
        check_window(config, lengths[client], client.window, whose)


def check_window(
    config: PDRConfig, problem_tokens: int, window: int | None, whose: str = "the model"
) -> None:
    """Refuse a problem whose calls may not fit a window; None is an unknown window.

    Raises:
        ContextWindowError: the sentence names every part of the call.
    """
    workspace = workspace_limit(config)
    needed = problem_tokens + workspace + TEMPLATE_TOKENS + config.max_tokens
    if window is None or needed <= window:
        return
    own = ["max_tokens", "kappa"] if workspace else ["max_tokens"]
    to_lower = " or ".join(name for name in own if name in config.model_fields_set)
    if not to_lower or window - problem_tokens - TEMPLATE_TOKENS < MIN_KAPPA:
        raise ContextWindowError(
            f"the problem has {problem_tokens} tokens and {whose}'s context window is {window}: "
            f"with {TEMPLATE_TOKENS} for the words around it, no room is left for an answer; "
            "shorten the problem, or serve a larger window"
        )
    parts = f"problem {problem_tokens}, " + (f"kappa {workspace}, " if workspace else "")
    raise ContextWindowError(
        f"a call needs up to {needed} tokens ({parts}template {TEMPLATE_TOKENS}, max_tokens "
        f"{config.max_tokens}) and {whose}'s context window is {window}; lower {to_lower}, or "
        "serve a larger window"
    )


def _check_budget(config: PDRConfig, problem_tokens: int) -> None:
    least = finish_cost(config, problem_tokens=problem_tokens)
    if config.finish in FREE_FINISHES:
        least += round_cost(
            config, width=config.widths[0], problem_tokens=problem_tokens, distiller_calls=0
        )
    if config.max_total_tokens is not None and config.max_total_tokens < least:
        raise ConfigError(
            f"max_total_tokens {config.max_total_tokens} cannot pay for one answer, which may cost "
            f"{least} tokens; raise it, or lower max_tokens"
        )

"""Decides what comes next: another round of drafts, or the final call."""

import secrets
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from pdr_graph.budget import (
    TEMPLATE_TOKENS,
    abandoned_row,
    finish_cost,
    round_cost,
    workspace_limit,
)
from pdr_graph.config import FREE_FINISHES, PDRConfig, make_config, width_of
from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.events import BeginEvent, NoteEvent, RoundEvent, log_event
from pdr_graph.invocation import Invocation
from pdr_graph.llm.tokens import wellformed
from pdr_graph.nodes.toolbox import Toolbox, run_name, superstep, tell, thread_id, why_not_round
from pdr_graph.state import PDRState, config_of, rounds_left, state_of
from pdr_graph.types import RunRecord


@dataclass(frozen=True, slots=True)
class Planner:
    """Records the config on entry, then starts rounds while any are left and can be paid for."""

    toolbox: Toolbox
    default: PDRConfig
    """The config of a run whose caller gives none."""

    async def __call__(self, state: PDRState, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the update that opens a run, a round, or the finish."""
        call = Invocation.current()
        # A run that stopped is left behind as it is where the call brings a new problem.
        if call.opens or state.get("phase") in {None, "done"}:
            opening = await self._open(state, self._asked(state, runtime))
            opening["run"] = call.run = run_name()
            old = abandoned_row(call.abandoned, superstep())
            opening["ledger"] = [old] if old["calls"] else []
            state = state_of({**state, **opening})
            begin = BeginEvent(event="begin", preset=config_of(state).preset, resumed=False)
            log_event(thread_id(), begin)
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
        problem = wellformed(state.get("problem", "")).strip()
        if not problem:
            raise ConfigError("the problem is empty; state the task to be solved")
        self.toolbox.operators.check(config)
        record = RunRecord(
            version=_own_version(),
            model=self.toolbox.client.name,
            prompts=self.toolbox.prompts.of_run(config).hashes(),
            token_counts="",
        )
        if (judge := self.toolbox.extensions.judge) is not None:
            judge.check(record["model"])
            record["judge"] = judge.digest
        if config.seed is None:
            config = config.model_copy(update={"seed": secrets.randbits(31)})
        client = self.toolbox.client
        problem_tokens = await client.counter.count(problem)
        check_window(config, problem_tokens, client.window)
        _check_budget(config, problem_tokens)
        return {
            "problem": problem,
            "config": config.model_dump(mode="json"),
            "record": RunRecord({**record, "token_counts": client.counter.source}),
            "problem_tokens": problem_tokens,
            "round": 0,
            "extra_rounds": 0,
            "drafts": Overwrite([]),
            "workspaces": [],
            "tally": None,
            "consensus": None,
            "solution": None,
            "verdict": None,
            "notes": [],
        }

    def _next(self, state: PDRState, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        config, next_round = config_of(state), state["round"] + 1
        if rounds_left(state) <= 0:
            return {"phase": "finish"}
        distiller = self.toolbox.operators.distiller(config.distiller)
        why_not = why_not_round(state, distiller.max_calls, self.toolbox.extensions.judge)
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


def check_window(config: PDRConfig, problem_tokens: int, window: int | None) -> None:
    """Refuse a problem whose calls may not fit the model's window; None is an unknown window.

    Raises:
        ContextWindowError: the sentence names every part of the call.
    """
    workspace = workspace_limit(config)
    needed = problem_tokens + workspace + TEMPLATE_TOKENS + config.max_tokens
    if window is not None and needed > window:
        parts = f"problem {problem_tokens}, " + (f"kappa {workspace}, " if workspace else "")
        raise ContextWindowError(
            f"a call needs up to {needed} tokens ({parts}template {TEMPLATE_TOKENS}, max_tokens "
            f"{config.max_tokens}) and the model's context window is {window}; lower max_tokens"
            f"{' or kappa' if workspace else ''}, or serve a larger window"
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

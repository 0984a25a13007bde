"""Records trajectories from the graph that serves inference: every call of a run, by a trace.

The tokens come from the server or the policy that drew them: encoding a reply's text again would
not always give the same tokens. They are drawn from the whole distribution (`top_p` 1),
and the log-probabilities must be those of that distribution (vLLM's `--logprobs-mode
processed_logprobs`).

A right answer is rewarded with 1, any other with -1, by the judge of an evaluation (paper section
4). Runs have names like `v12-s81923-p0-r3`: after 12 updates, seed of the step on this rank, run 3
of problem 0. No name is given twice.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from pdr_graph.answers import one_vote
from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError, ConfigError, EndpointError, QuorumError
from pdr_graph.eval.judge import Judge, Judgement
from pdr_graph.eval.problems import Problem
from pdr_graph.graph import build_graph
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import CUT, ModelClient
from pdr_graph.run import drive, new_thread_id
from pdr_graph.trace import TraceRecord
from pdr_graph.train.trajectory import Call, Role, Trajectory
from pdr_graph.types import Solution

RIGHT, WRONG = 1.0, -1.0
START_SERVER = (
    "start it as `vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs`"
)
_NODES = ("drafter", "distiller", "refiner", "verifier")
_ANSWERING: frozenset[Role] = frozenset({"direct", "draft", "refine"})
_RUN_NAME = re.compile(r"v(\d+)-s\d+-p\d+-r\d+")

RoleOf = Callable[[TraceRecord], Role]
"""Says what a call was for."""


def run_name(policy_version: int, seed: int, position: int, index: int) -> str:
    """Return the name of a run.

    Args:
        policy_version: Weight updates before the policy that draws.
        seed: Of the step's rollouts, on this rank.
        position: Of the problem among those that the rank asks.
        index: Of the run among those of its problem.
    """
    return f"v{policy_version}-s{seed}-p{position}-r{index}"


def version_of(name: str) -> int:
    """Return the version of the policy that drew a run.

    Raises:
        ValueError: this is no name of a run.
    """
    found = _RUN_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a run")
    return int(found[1])


def role_of(record: TraceRecord) -> Role:
    """Return what a call was for, by its node and by whether it read a workspace."""
    match record["node"], record["template"]:
        case _, "self_check" | "prefer":
            return "judge"
        case "drafter", _:
            return "draft"
        case "distiller", _:
            return "distill"
        case "verifier", _:
            return "judge"
        case _, "select":
            return "select"
        case _, "improve":
            return "refine"
    return "direct"


def reward_of(judgement: Judgement) -> float:
    """Return 1 for a right answer, -1 for any other.

    An answer that the checker cannot read or decide in time counts as wrong. Otherwise a policy
    could learn to write such answers. `judgement.reason` says why.
    """
    return RIGHT if judgement.correct else WRONG


def telling_tokens(model: ChatVLLM) -> ChatVLLM:
    """Return a model whose replies carry token ids and logprobs, on the same connections."""
    return model.model_copy(update={"return_token_ids": True, "logprobs": True})


class Recorder:
    """Runs one compiled graph on many problems, side by side, and keeps every call of each run."""

    def __init__(self, client: ModelClient, judge: Judge) -> None:
        """Compile the graph, which takes longer than to run it on a small model.

        Args:
            client: Its model returns tokens: `ChatVLLM` by `telling_tokens`, or `PolicyChat`.
            judge: Decides what is right.

        Raises:
            ConfigError: the model does not return tokens.
        """
        _check_model(client)
        # A policy in this process draws the calls of concurrent runs together.
        self._going_on = getattr(client.model, "going_on", nullcontext)
        self._judge = judge
        self._calls = _CallsOfRuns()
        self._graph = build_graph(client, trace=self._calls)

    async def record(
        self,
        problem: Problem,
        config: PDRConfig,
        *,
        policy_version: int = 0,
        thread_id: str | None = None,
        role: RoleOf = role_of,
    ) -> Trajectory:
        """Run the graph on a problem and keep every call of it.

        A run that stops, because calls failed or too few drafts have a solution, is a trajectory
        without an answer: `stopped` says why, and earlier calls are kept.

        Args:
            problem: A problem with its gold answer.
            config: The strategy.
            policy_version: Weight updates before the policy that the client calls.
            thread_id: Name of the run and, with it, of its calls; None makes one up. Concurrent
                runs need different names.
            role: Says what each call was for.

        Raises:
            ConfigError: sampling is cut or greedy, or the request cannot be carried out.
            EndpointError: the server did not send token ids and log-probabilities.
            ContextWindowError: prompt and completion do not fit the model, found before any call.
        """
        _check_sampling(config)
        thread_id = thread_id or new_thread_id()
        solution: Solution | None = None
        stopped = ""
        with self._calls.of(thread_id) as records, self._going_on():
            try:
                run = await drive(self._graph, problem.text, config, thread_id)
                solution = run.state["solution"]
            except (CallError, QuorumError) as error:
                if not records:
                    raise
                stopped = str(error)
        verdicts = _Verdicts(problem, self._judge)
        judged = Judgement(None, "failed")
        done = [record for record in records if not record["error"]]
        with one_vote():
            if solution is not None:
                judged = await verdicts.of(solution["text"], truncated=solution["truncated"])
            calls = await _judged_calls(done, verdicts, policy_version, role)
        return Trajectory(
            thread_id=thread_id,
            problem_id=problem.id,
            problem=problem.text,
            gold=problem.gold,
            preset=config.preset,
            temperature=config.temperature,
            calls=calls,
            failed_calls=len(records) - len(done),
            answer=judged.answer,
            reason=judged.reason,
            reward=reward_of(judged),
            correct=judged.correct,
            stopped=stopped,
        )


async def _judged_calls(
    records: Sequence[TraceRecord], verdicts: "_Verdicts", policy_version: int, role: RoleOf
) -> tuple[Call, ...]:
    """Return the calls of a run in their order.

    Raises:
        EndpointError: one came without its tokens.
    """
    # A stable sort: calls of one node with one index were made one after another.
    ordered = sorted(records, key=lambda r: (r["round"], _NODES.index(r["node"]), r["index"]))
    calls = []
    for position, record in enumerate(ordered):
        if not {"prompt_ids", "token_ids", "logprobs"} <= record.keys():
            raise EndpointError(
                f"the server sent no token ids and log-probabilities with the {record['node']}'s "
                f"reply, which training needs; {START_SERVER}"
            )
        purpose = role(record)
        reward = None
        if purpose in _ANSWERING:
            truncated = record["finish_reason"] in CUT
            reward = reward_of(await verdicts.of(record["solution"], truncated=truncated))
        calls.append(
            Call(
                role=purpose,
                round=record["round"],
                rollout=f"{record['thread_id']}:{position}",
                prompt_ids=tuple(record["prompt_ids"]),
                token_ids=tuple(record["token_ids"]),
                logprobs=tuple(record["logprobs"]),
                text=record["solution"],
                finish_reason=record["finish_reason"],
                seed=record["seed"],
                policy_version=policy_version,
                reward=reward,
            )
        )
    return tuple(calls)


@dataclass(slots=True)
class _Verdicts:
    """Judges the solutions of one problem, equal ones once."""

    problem: Problem
    judge: Judge
    known: dict[tuple[str, bool], Judgement] = field(default_factory=dict)

    async def of(self, text: str, *, truncated: bool) -> Judgement:
        """Judge one solution; `truncated` says that the token limit cut it."""
        key = text, truncated
        if key not in self.known:
            self.known[key] = await self.judge.solution(self.problem, text, truncated=truncated)
        return self.known[key]


class _CallsOfRuns:
    """A trace that keeps the calls of running runs in memory."""

    def __init__(self) -> None:
        self._runs: dict[str, list[TraceRecord]] = {}

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self._runs[call["thread_id"]].append(call)

    @contextmanager
    def of(self, thread_id: str) -> Iterator[list[TraceRecord]]:
        """Keep the calls of a run for as long as the block lasts."""
        if thread_id in self._runs:
            raise ConfigError(f"a run named {thread_id!r} is going on; give each its own name")
        records = self._runs[thread_id] = []
        try:
            yield records
        finally:
            del self._runs[thread_id]


def _check_sampling(config: PDRConfig) -> None:
    if config.top_p != 1.0:
        raise ConfigError(
            f"top_p {config.top_p:g}: training draws from the whole distribution, of which its "
            "log-probabilities are; set top_p 1"
        )
    if config.temperature == 0.0:
        raise ConfigError("temperature 0: training needs samples that differ; set 1")


def _check_model(client: ModelClient) -> None:
    model = client.model
    tells = getattr(model, "tells_tokens", None)
    if isinstance(model, ChatVLLM):
        tells = model.return_token_ids and bool(model.logprobs)
        if not tells:
            raise ConfigError(
                "trajectories need the tokens of every call; make the model with "
                "return_token_ids=True, logprobs=True (or by telling_tokens)"
            )
    if not tells:
        raise ConfigError(
            f"trajectories need the tokens of every call, and {type(model).__name__} has none; "
            f"pass ChatVLLM on a vLLM server, or PolicyChat on a model in this process: "
            f"{START_SERVER}"
        )

"""The calls of one run as training has them: each with its purpose, and what its answer earned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pdr_graph.errors import EndpointError
from pdr_graph.eval.judging import Judge, Judgement
from pdr_graph.eval.problems import Problem
from pdr_graph.trace import TraceRecord
from pdr_graph.train.reward import reward_of
from pdr_graph.train.trajectory import Call, Role
from pdr_graph.types import Solution

START_SERVER = (
    "start it as `vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs`"
)

_NODES = ("drafter", "distiller", "refiner", "verifier")
_ANSWERING: frozenset[Role] = frozenset({"direct", "draft", "refine"})

RoleOf = Callable[[TraceRecord], Role]
"""Says what a call was for."""


def role_of(record: TraceRecord) -> Role:
    """Return what a call was for, by its node and by whether it read a workspace."""
    match record["node"], record["template"]:
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


@dataclass(slots=True)
class Verdicts:
    """Judges the solutions of one problem, equal ones once."""

    problem: Problem
    judge: Judge
    known: dict[tuple[str, bool], Judgement] = field(default_factory=dict)

    async def of(self, text: str, *, truncated: bool) -> Judgement:
        """Judge one solution."""
        key = text, truncated
        if key not in self.known:
            self.known[key] = await self.judge.solution(self.problem, text, truncated=truncated)
        return self.known[key]

    async def of_run(self, solution: Solution | None) -> Judgement:
        """Judge what a run handed in, None if it stopped before."""
        if solution is None:
            return Judgement(None, "failed")
        return await self.of(solution["text"], truncated=solution["truncated"])


async def judged_calls(
    records: Sequence[TraceRecord], verdicts: Verdicts, policy_version: int, role: RoleOf
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
                f"reply, without which nothing can be learnt from it; {START_SERVER}"
            )
        purpose = role(record)
        reward = None
        if purpose in _ANSWERING:
            truncated = record["finish_reason"] == "length"
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

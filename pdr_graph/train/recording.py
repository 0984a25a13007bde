"""Records trajectories from the graph that serves inference: a run of `solve`, with a trace.

The tokens come from the server: encoding a reply's text again would not always give those that
were drawn. Tokens are drawn from the whole distribution (`top_p` 1), of which the server's
log-probabilities must then be (vLLM's `--logprobs-mode processed_logprobs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, EndpointError
from pdr_graph.eval.judging import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.run import Parts, solve
from pdr_graph.trace import TraceRecord
from pdr_graph.train.reward import judged_reward, reward_of
from pdr_graph.train.trajectory import Call, Role, Trajectory

START_SERVER = (
    "start it as `vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs`"
)

_NODES = ("drafter", "distiller", "refiner", "verifier")
_ANSWERING: frozenset[Role] = frozenset({"direct", "draft", "refine"})


@dataclass(slots=True)
class Recorder:
    """A trace that keeps the calls of one run in memory."""

    records: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.records.append(call)


def telling_tokens(model: ChatVLLM) -> ChatVLLM:
    """Return a model whose replies carry token ids and logprobs, on the same connections."""
    return model.model_copy(update={"return_token_ids": True, "logprobs": True})


async def record_trajectory(
    problem: Problem,
    config: PDRConfig,
    *,
    client: ModelClient,
    judge: Judge,
    policy_version: int = 0,
    parts: Parts | None = None,
) -> Trajectory:
    """Run the graph on a problem and keep every call of it.

    Args:
        problem: What is asked, with its gold answer.
        config: The strategy.
        client: Its model asks for tokens, see `telling_tokens`.
        judge: Decides what is right.
        policy_version: Number of weight updates before the policy that the client calls.
        parts: As for `solve`; the trace is ours.

    Raises:
        ConfigError: sampling is cut or greedy, or the model does not ask for tokens.
        EndpointError: the server did not send token ids and log-probabilities.
        QuorumError, CallError: the run failed, as for `solve`.
    """
    _check_sampling(config)
    _check_model(client)
    recorder = Recorder()
    parts = replace(parts or Parts(), trace=recorder)
    result = await solve(problem.text, config, model=client, parts=parts)
    solution = result.state["solution"]
    assert solution is not None  # the run has ended
    judged = await judge.solution(problem, result.solution, truncated=solution["truncated"])
    done = [record for record in recorder.records if not record["error"]]
    return Trajectory(
        thread_id=result.thread_id,
        problem_id=problem.id,
        problem=problem.text,
        gold=problem.gold,
        preset=config.preset,
        temperature=config.temperature,
        calls=await _calls(done, result.thread_id, problem, judge, policy_version),
        failed_calls=len(recorder.records) - len(done),
        answer=judged.answer,
        reason=judged.reason,
        reward=reward_of(judged),
        correct=judged.correct,
    )


async def _calls(
    records: Sequence[TraceRecord],
    thread_id: str,
    problem: Problem,
    judge: Judge,
    policy_version: int,
) -> tuple[Call, ...]:
    # A stable sort: calls of one node with one index were made one after another.
    ordered = sorted(records, key=lambda r: (r["round"], _NODES.index(r["node"]), r["index"]))
    calls = []
    for position, record in enumerate(ordered):
        if not {"prompt_ids", "token_ids", "logprobs"} <= record.keys():
            raise EndpointError(
                f"the server sent no token ids and log-probabilities with the {record['node']}'s "
                f"reply, without which nothing can be learnt from it; {START_SERVER}"
            )
        role = role_of(record)
        reward = None
        if role in _ANSWERING:
            reward = await judged_reward(
                judge, problem, record["solution"], truncated=record["finish_reason"] == "length"
            )
        calls.append(
            Call(
                role=role,
                round=record["round"],
                rollout=f"{thread_id}:{position}",
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


def _check_sampling(config: PDRConfig) -> None:
    if config.top_p != 1.0:
        raise ConfigError(
            f"top_p {config.top_p:g}: training draws from the whole distribution, else its "
            "log-probabilities are of another one; set top_p 1"
        )
    if config.temperature == 0.0:
        raise ConfigError("temperature 0: training needs samples that differ; set 1")


def _check_model(client: ModelClient) -> None:
    model = client.model
    if not isinstance(model, ChatVLLM):
        raise ConfigError(
            f"trajectories need the tokens of every call, and {type(model).__name__} has none; "
            f"pass ChatVLLM on a vLLM server: {START_SERVER}"
        )
    if not (model.return_token_ids and model.logprobs):
        raise ConfigError(
            "trajectories need the tokens of every call; make the model with "
            "return_token_ids=True, logprobs=True (or by telling_tokens)"
        )

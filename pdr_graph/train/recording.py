"""Records trajectories from the graph that serves inference: each call of a run by a trace.

The tokens come from what drew them, a server or a policy in this process: encoding a reply's text
again would not always give those that were drawn. Tokens are drawn from the whole distribution
(`top_p` 1), of which the log-probabilities must then be (vLLM's `--logprobs-mode
processed_logprobs`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from langchain_core.runnables import RunnableConfig

from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError, ConfigError, QuorumError
from pdr_graph.eval.judging import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.extensions import Extensions
from pdr_graph.graph import build_graph, max_supersteps
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.prompts import Prompts
from pdr_graph.run import new_thread_id
from pdr_graph.state import ProblemInput, state_of
from pdr_graph.trace import TraceRecord
from pdr_graph.train.judged_calls import START_SERVER, RoleOf, Verdicts, judged_calls, role_of
from pdr_graph.train.reward import reward_of
from pdr_graph.train.trajectory import Trajectory
from pdr_graph.types import Solution

__all__ = ["Recorder", "record_trajectory", "role_of", "telling_tokens"]


def telling_tokens(model: ChatVLLM) -> ChatVLLM:
    """Return a model whose replies carry token ids and logprobs, on the same connections."""
    return model.model_copy(update={"return_token_ids": True, "logprobs": True})


class Recorder:
    """Runs one compiled graph on many problems, side by side, and keeps every call of each run."""

    def __init__(
        self,
        client: ModelClient,
        judge: Judge,
        *,
        extensions: Extensions | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        """Compile the graph, which takes longer than to run it on a small model.

        Args:
            client: Its model tells tokens: `ChatVLLM` by `telling_tokens`, or `PolicyChat`.
            judge: Decides what is right.
            extensions: Distillers, finishes and verifiers of your own.
            prompts: None is the built-in ones.

        Raises:
            ConfigError: the model does not tell tokens.
        """
        _check_model(client)
        # A policy in this process draws the calls of runs that go on together.
        self._going_on = getattr(client.model, "going_on", nullcontext)
        self._judge = judge
        self._calls = _CallsOfRuns()
        self._graph = build_graph(client, extensions=extensions, prompts=prompts, trace=self._calls)

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

        A run that stops since calls failed, or too few drafts have a solution, is a trajectory
        without an answer: `stopped` says why, and what was drawn before is kept.

        Args:
            problem: What is asked, with its gold answer.
            config: The strategy.
            policy_version: Number of weight updates before the policy that the client calls.
            thread_id: Names the run, and with it its calls; None makes one up. No two runs at a
                time may have one name.
            role: Says what each call was for.

        Raises:
            ConfigError: sampling is cut or greedy, or the request cannot be carried out as asked.
            EndpointError: the server did not send token ids and log-probabilities.
            ContextWindowError: prompt and completion do not fit the model, found before any call.
        """
        _check_sampling(config)
        thread_id = thread_id or new_thread_id()
        run: RunnableConfig = {
            "configurable": {"thread_id": thread_id},
            "recursion_limit": max_supersteps(config),
        }
        entry = ProblemInput(problem=problem.text, config=config.model_dump(mode="json"))
        solution: Solution | None = None
        stopped = ""
        with self._calls.of(thread_id) as records, self._going_on():
            try:
                state = state_of(await self._graph.ainvoke(entry, run, context=config))
                solution = state["solution"]
            except (CallError, QuorumError) as error:
                if not records:
                    raise
                stopped = str(error)
        verdicts = Verdicts(problem, self._judge)
        judged = await verdicts.of_run(solution)
        done = [record for record in records if not record["error"]]
        return Trajectory(
            thread_id=thread_id,
            problem_id=problem.id,
            problem=problem.text,
            gold=problem.gold,
            preset=config.preset,
            temperature=config.temperature,
            calls=await judged_calls(done, verdicts, policy_version, role),
            failed_calls=len(records) - len(done),
            answer=judged.answer,
            reason=judged.reason,
            reward=reward_of(judged),
            correct=judged.correct,
            stopped=stopped,
        )


async def record_trajectory(
    problem: Problem,
    config: PDRConfig,
    *,
    client: ModelClient,
    judge: Judge,
    policy_version: int = 0,
    extensions: Extensions | None = None,
    prompts: Prompts | None = None,
) -> Trajectory:
    """Run the graph on one problem and keep every call of it, see `Recorder`."""
    recorder = Recorder(client, judge, extensions=extensions, prompts=prompts)
    return await recorder.record(problem, config, policy_version=policy_version)


class _CallsOfRuns:
    """A trace that keeps calls in memory, by run, while the run goes on."""

    def __init__(self) -> None:
        self._runs: dict[str, list[TraceRecord]] = {}

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self._runs[call["thread_id"]].append(call)

    @contextmanager
    def of(self, thread_id: str) -> Iterator[list[TraceRecord]]:
        """Keep the calls of a run."""
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
            f"top_p {config.top_p:g}: training draws from the whole distribution, else its "
            "log-probabilities are of another one; set top_p 1"
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

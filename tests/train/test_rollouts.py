"""What is collected for a step: which calls are made, whose rows they are, what is counted."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdr_graph import solve
from pdr_graph.errors import CallError, ConfigError, ContextWindowError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.client import Sampling
from pdr_graph.policy import Drawn, ScriptedPolicy
from pdr_graph.policy.chat import policy_client
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.recorder import run_name, version_of
from pdr_graph.train.rollouts import Collector, Rollouts, forget_after, keep
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.supervised import TRAJECTORIES
from pdr_graph.train.trajectory import read_trajectories
from tests.policy.letters import LetterTokenizer
from tests.train.test_trajectory import make_call, make_trajectory

LETTERS = LetterTokenizer()
STRATEGY = {"distiller": "answers", "max_tokens": 40, "kappa": 400, "solution_tokens": 64}
PROBLEMS = [Problem(f"q{index}", f"What is {index} x 7?", str(7 * index)) for index in range(4)]
DIRECT, ROUNDS, WORKSPACE = (
    ProblemPlan("direct", 6),
    ProblemPlan("rounds", 6, 2),
    ProblemPlan("workspace", 6, 2),
)


def answer(prompt: str, sampling: Sampling) -> str:
    """Answer rightly or wrongly, as the call's seed has it; one in eight says nothing."""
    rng = random.Random(sampling.seed)
    if rng.random() < 0.125:
        return ""
    problem = next(each for each in PROBLEMS if each.text in prompt)
    return f"So \\boxed{{{problem.gold if rng.random() < 0.5 else 1}}}"


class FailingPolicy(ScriptedPolicy):
    """Fails for some seeds."""

    def __init__(self, fails, script=answer) -> None:
        super().__init__(script, LETTERS)
        self.fails = fails
        self.num_failed = 0

    async def draw(self, prompt_ids, sampling: Sampling) -> Drawn:
        if self.fails(sampling.seed):
            self.num_failed += 1
            raise RuntimeError("the engine is out of memory")
        return await super().draw(prompt_ids, sampling)


def settings_of(credit: dict[str, str] | None = None, **strategy) -> TrainSettings:
    return TrainSettings(model="none", strategy=STRATEGY | strategy, objective=credit or {})


def collector_of(policy, **fields) -> Collector:
    client = policy_client(policy, LETTERS)
    return Collector(client, Judge.of_kind("math", None), settings_of(**fields))


async def collected(plans, policy=None, seed: int = 1, **fields) -> Rollouts:
    """Collect the rows of as many problems as there are plans."""
    collector = collector_of(policy or ScriptedPolicy(answer, LETTERS), **fields)
    return await collector.collect(PROBLEMS[: len(plans)], plans, seed=seed, policy_version=2)


def roles_of(rows) -> Counter[str]:
    return Counter(row.call.role for row in rows)


# ------------------------------------------------------------------------------ the plans


@pytest.mark.parametrize("plan", [DIRECT, ROUNDS, WORKSPACE, ProblemPlan("rounds", 9, 2)])
async def test_every_row_of_a_plan_is_a_call_and_every_call_a_row(plan):
    """No call is made that nobody learns from, and each role has its rows."""
    policy = ScriptedPolicy(["So \\boxed{7}"], LETTERS)
    rollouts = await collected([plan, plan], policy)
    assert len(policy.asked) == 2 * plan.num_rows
    assert [roles_of(rows) for rows in rollouts.rows] == [plan.rows] * 2
    assert len(rollouts.trajectories) == 2 * plan.num_runs


async def test_refinements_of_a_workspace_are_of_one_prompt():
    """That which inference asks of the same drafts: their mean is a baseline for it."""
    policy = ScriptedPolicy(answer, LETTERS)
    rollouts = await collected([WORKSPACE], policy)
    refines = [row.call for row in rollouts.rows[0] if row.call.role == "refine"]
    (prompt_ids,) = {call.prompt_ids for call in refines}
    assert len({call.seed for call in refines}) == len(refines) == 4
    drafts = [row.call for row in rollouts.rows[0] if row.call.role == "draft"]
    said = {call.seed: call.text for call in drafts}
    same = ScriptedPolicy(lambda _, sampling: said.get(sampling.seed, "\\boxed{1}"), LETTERS)
    update = {"widths": (2,), "seed": derived_seed(1, 0, "q0", 0)}
    config = settings_of().config.model_copy(update=update)
    await solve(PROBLEMS[0].text, config, model=policy_client(same, LETTERS))
    assert same.asked[-1][0] == prompt_ids


async def test_each_refinement_of_a_workspace_earns_its_own_reward():
    """Not that of their vote, which ends the run."""
    rollouts = await collected([WORKSPACE] * 4)
    rows = [row for rows in rollouts.rows for row in rows if row.call.role == "refine"]
    assert [row.reward for row in rows] == [row.call.reward for row in rows]
    mixed = [
        found
        for found in rollouts.rows
        if len({row.reward for row in found if row.call.role == "refine"}) == 2
    ]
    assert mixed  # else the test says nothing


async def test_rounds_have_runs_that_read_workspaces_of_their_own():
    """A refinement for each, of its own drafts."""
    rollouts = await collected([ProblemPlan("rounds", 9, 2)])
    refines = [row.call for row in rollouts.rows[0] if row.call.role == "refine"]
    assert [call.rollout.partition(":")[0] for call in refines] == [
        f"v2-s1-p0-r{index}" for index in range(3)
    ]


@pytest.mark.parametrize(("credit", "draft_rows"), [("own", 4), ("outcome", 4), ("none", 0)])
async def test_drafts_are_credited_as_asked(credit, draft_rows):
    """For their own answers, for their run's, or not at all: then their rows are missing."""
    # The settings refuse an outcome with their own plan, of one workspace.
    rounds = {"operator_plan": "rounds", "rows_per_problem": 10}
    settings = TrainSettings(
        model="none", strategy=STRATEGY, objective={"draft_credit": credit}, rollouts=rounds
    )
    client = policy_client(ScriptedPolicy(answer, LETTERS), LETTERS)
    collector = Collector(client, Judge.of_kind("math", None), settings)
    rollouts = await collector.collect(PROBLEMS[:1], [ROUNDS], seed=1, policy_version=2)
    runs = {each.thread_id: each for each in rollouts.trajectories}
    drafts = [row for row in rollouts.rows[0] if row.call.role == "draft"]
    assert len(drafts) == draft_rows
    for row in drafts:
        run = runs[row.call.rollout.partition(":")[0]]
        assert row.reward == (row.call.reward if credit == "own" else run.reward)


async def test_a_distiller_that_asks_the_model_is_a_role_of_its_own():
    """With the run's reward; its rows are counted among the K."""
    plan = ProblemPlan("rounds", 8, 2, num_distills=1)
    rounds = {"operator_plan": "rounds", "rows_per_problem": 8, "num_drafts": 2}
    settings = TrainSettings(
        model="none",
        strategy=STRATEGY | {"distiller": "summary"},
        objective={"distill_credit": "outcome"},
        rollouts=rounds,
    )
    assert settings.operator_plan == plan
    client = policy_client(ScriptedPolicy(answer, LETTERS), LETTERS)
    collector = Collector(client, Judge.of_kind("math", None), settings)
    rollouts = await collector.collect(PROBLEMS[:1], [plan], seed=1, policy_version=2)
    assert roles_of(rollouts.rows[0]) == {"draft": 4, "distill": 2, "refine": 2}
    runs = {each.thread_id: each for each in rollouts.trajectories}
    for row in rollouts.rows[0]:
        if row.call.role == "distill":
            assert row.reward == runs[row.call.rollout.partition(":")[0]].reward


async def test_names_and_seeds_tell_all_calls_apart():
    """Also of problems that are one; the same seed names and draws the same."""
    plans = [DIRECT, WORKSPACE, ROUNDS, DIRECT]
    collector = collector_of(ScriptedPolicy(answer, LETTERS))
    problems = [PROBLEMS[1]] * 4
    first = await collector.collect(problems, plans, seed=1, policy_version=0)
    names = [call.rollout for each in first.trajectories for call in each.calls]
    seeds = [call.seed for each in first.trajectories for call in each.calls]
    assert len(set(names)) == len(set(seeds)) == len(names) == 24
    assert await collector.collect(problems, plans, seed=1, policy_version=0) == first
    other = await collector.collect(problems, plans, seed=2, policy_version=0)
    assert {call.seed for each in other.trajectories for call in each.calls}.isdisjoint(seeds)


async def test_rollouts_of_a_server_are_collected_like_those_of_this_process(mock, connect):
    """The model is ChatVLLM there; as many calls and tokens as the server served."""
    mock.configure(answers=["42"])
    client = connect(model_fields={"return_token_ids": True, "logprobs": True})
    collector = Collector(client, Judge.of_kind("math", None), settings_of())
    found = await collector.collect(PROBLEMS[:2], [DIRECT, WORKSPACE], seed=1, policy_version=0)
    assert [roles_of(rows) for rows in found.rows] == [DIRECT.rows, WORKSPACE.rows]
    calls = [call for each in found.trajectories for call in each.calls]
    assert sum(len(call.token_ids) for call in calls) == mock.stats()["completion_tokens"]


# ------------------------------------------------------------------------------ losses


async def test_a_failed_call_is_counted_and_its_row_is_missing():
    """It is not made up, and the other rows stay what they are."""
    whole = await collected([DIRECT])
    bad = whole.rows[0][2].call.seed
    policy = FailingPolicy(lambda seed: seed == bad)
    rollouts = await collected([DIRECT], policy)
    assert sum(each.failed_calls for each in rollouts.trajectories) == 1
    assert rollouts.rows[0] == whole.rows[0][:2] + whole.rows[0][3:]
    (stopped,) = [each for each in rollouts.trajectories if each.stopped]
    assert "the engine is out of memory" in stopped.stopped
    assert (stopped.answer, stopped.reason, stopped.reward) == (None, "failed", -1.0)


async def test_what_a_run_drew_before_it_stopped_is_learnt_from():
    """Drafts that say nothing leave no quorum; that they said nothing earns -1."""
    rollouts = await collected([WORKSPACE], ScriptedPolicy([""], LETTERS))
    (rows,), (run,) = rollouts.rows, rollouts.trajectories
    assert [(row.call.role, row.reward) for row in rows] == [("draft", -1.0)] * 2
    assert [row.call.token_ids for row in rows] == [(0,)] * 2
    assert (bool(run.stopped), run.failed_calls) == (True, 0)


async def test_a_step_in_which_no_call_succeeds_is_an_error():
    """Rather than a step of nothing; the sentence is the first call's."""
    with pytest.raises(CallError, match=r"all calls of the step failed: .* out of memory"):
        await collected([DIRECT, WORKSPACE], FailingPolicy(lambda seed: True))


async def test_an_error_that_no_run_survives_ends_the_others():
    """A window that is too small is found before any call."""
    policy = ScriptedPolicy(answer, LETTERS, window=300)
    with pytest.raises(ContextWindowError):
        await collected([DIRECT, WORKSPACE], policy)
    assert len(policy.asked) <= 6


plans_of_6 = st.sampled_from([DIRECT, ROUNDS, WORKSPACE])


@settings(max_examples=25)
@given(
    plans=st.lists(plans_of_6, min_size=1, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    every=st.integers(2, 9),
    credit=st.sampled_from(["own", "none"]),
)
async def test_whatever_fails_rows_are_calls_and_calls_are_counted(plans, seed, every, credit):
    """At most K of a problem, in no role more than the plan has, each with the tokens drawn."""
    policy = FailingPolicy(lambda number: number % every == 0)
    try:
        rollouts = await collected(plans, policy, seed=seed, credit={"draft_credit": credit})
    except CallError:
        assert not policy.asked
        return
    calls = {call.rollout: call for each in rollouts.trajectories for call in each.calls}
    assert len(calls) == sum(len(each.calls) for each in rollouts.trajectories)
    assert len(calls) == len(policy.asked)
    assert sum(each.failed_calls for each in rollouts.trajectories) == policy.num_failed
    drawn = Counter((prompt, sampling.seed) for prompt, sampling in policy.asked)
    assert Counter((call.prompt_ids, call.seed) for call in calls.values()) == drawn
    assert len(rollouts.rows) == len(plans)
    for problem, plan, rows in zip(PROBLEMS, plans, rollouts.rows, strict=False):
        assert len(rows) <= plan.num_rows
        assert all(count <= plan.rows[role] for role, count in roles_of(rows).items())
        for row in rows:
            assert row.problem_id == problem.id
            assert row.call is calls[row.call.rollout]
            assert len(row.call.token_ids) == len(row.call.logprobs)


# ------------------------------------------------------------------------------ the file


def drawn(version: int, index: int = 0, *, failed: bool = False):
    """Return a run that the weights after some updates drew; with all of its calls, or none."""
    calls = () if failed else (make_call(policy_version=version),)
    return make_trajectory(thread_id=run_name(version, 7, 0, index), calls=calls)


def kept_after(folder, update: int) -> list[str]:
    """Return the names of the runs that are left for a run going on after an update."""
    forget_after(folder, update)
    return [each.thread_id for each in read_trajectories(folder / TRAJECTORIES)]


def test_what_is_drawn_again_is_forgotten(tmp_path):
    """A step whose weights the checkpoint has not gone beyond; runs of earlier ones stay."""
    keep(tmp_path, [drawn(0), drawn(2), drawn(4)])
    assert kept_after(tmp_path, 3) == ["v0-s7-p0-r0", "v2-s7-p0-r0"]
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]
    assert kept_after(tmp_path, 0) == []


def test_a_run_without_calls_is_forgotten_as_well(tmp_path):
    """All of them failed, so that only its name tells which weights drew it."""
    keep(tmp_path, [drawn(0, failed=True), drawn(2, 0), drawn(2, 1, failed=True)])
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]


def test_a_torn_line_is_dropped_and_a_damaged_one_named(tmp_path):
    """The writer of the first was killed; the second is not of a training run."""
    keep(tmp_path, [drawn(0)])
    with (tmp_path / TRAJECTORIES).open("a") as file:
        file.write('{"thread_id": "v0-s7-p0')
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]
    keep(tmp_path, [make_trajectory(thread_id="mine")])
    with pytest.raises(ConfigError, match=r"trajectories\.jsonl line 2 is no trajectory; remove"):
        forget_after(tmp_path, 2)


def test_a_name_tells_the_version():
    """And nothing else does."""
    assert version_of(run_name(12, 81923, 0, 3)) == 12
    for name in ("12", "v12", "xv1-s2-p3-r4", "v1-s2-p3-r4x"):
        with pytest.raises(ValueError, match="is no name of a run"):
            version_of(name)

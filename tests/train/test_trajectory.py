"""Trajectories: what a run of the graph leaves for training, and what is refused."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph import ModelClient, preset
from pdr_graph.errors import ConfigError, EndpointError
from pdr_graph.eval.judge import Judge, Judgement
from pdr_graph.eval.problems import Problem, load_problems
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.train.recorder import Recorder, reward_of, telling_tokens
from pdr_graph.train.trajectory import Call, Trajectory, append_trajectories, read_trajectories
from tests.fakes import ScriptedChat
from tests.mock_endpoint import token_ids

PROBLEM = Problem("q7", "What is 6 x 7?", "42")
TELLING = {"return_token_ids": True, "logprobs": True}
PDR = preset("pdr", widths=(3,), distiller="summary", seed=5, max_tokens=256)


def math_judge() -> Judge:
    return Judge.of_kind("math", None)


async def recorded(client, config, **fields) -> Trajectory:
    """Run the graph on the problem once, and return what is kept."""
    return await Recorder(client, math_judge()).record(PROBLEM, config, **fields)


def make_call(**fields) -> Call:
    given = {
        "role": "draft",
        "round": 1,
        "rollout": "t:0",
        "prompt_ids": (1, 2),
        "token_ids": (3, 4),
        "logprobs": (-0.5, -0.25),
        "text": "yes",
        "finish_reason": "stop",
        "seed": 7,
        "policy_version": 0,
        "reward": None,
    }
    return Call(**{**given, **fields})


def make_trajectory(**fields) -> Trajectory:
    given = {
        "thread_id": "t",
        "problem_id": "q7",
        "problem": "What is 6 x 7?",
        "gold": "42",
        "preset": "pdr",
        "temperature": 1.0,
        "calls": (make_call(),),
        "failed_calls": 0,
        "answer": "42",
        "reason": "correct",
        "reward": 1.0,
        "correct": True,
    }
    return Trajectory(**{**given, **fields})


# ------------------------------------------------------------------------------ recording


async def test_every_call_of_a_run_is_kept_with_its_tokens(mock, connect):
    """As many calls and completion tokens as the endpoint served, role by role."""
    mock.configure(answers=["42"])
    client = connect(model_fields=TELLING)
    found = await recorded(client, PDR, policy_version=3)
    served = mock.stats()
    assert [call.role for call in found.calls] == ["draft"] * 3 + ["distill", "refine"]
    assert sum(len(call.token_ids) for call in found.calls) == served["completion_tokens"]
    assert sum(len(call.prompt_ids) for call in found.calls) == served["prompt_tokens"]
    assert {call.policy_version for call in found.calls} == {3}
    assert {row["body"]["seed"] for row in mock.requests()} == {c.seed for c in found.calls}
    assert (found.answer, found.reward, found.correct) == ("42", 1.0, True)
    assert [call.reward for call in found.calls] == [1.0, 1.0, 1.0, None, 1.0]


async def test_tokens_and_log_probabilities_are_those_that_the_server_drew(mock, connect):
    """Of one reply, id by id, its reasoning included; the text is the solution alone."""
    mock.configure(reasoning="reasoning", reasoning_tokens=8)
    client = connect(model_fields=TELLING)
    found = await recorded(client, preset("long_cot", seed=1))
    (call,) = found.calls
    body = mock.requests()[-1]["body"]
    message = await client.model.ainvoke(body["messages"], seed=body["seed"], max_tokens=10240)
    rows = message.response_metadata["logprobs"]["content"]
    assert call.token_ids == tuple(token_ids([row["token"] for row in rows]))
    assert call.logprobs == tuple(row["logprob"] for row in rows)
    assert (call.role, call.text) == ("direct", message.text)


async def test_a_run_is_the_same_run_whether_it_is_recorded_or_not(mock, connect):
    """The graph that serves inference: the same prompts and seeds reach the server."""
    from pdr_graph import solve

    def sent() -> list:
        rows = [row["body"] for row in mock.requests()]
        return sorted((row["seed"], row["messages"][0]["content"]) for row in rows)

    await solve(PROBLEM.text, PDR, model=connect())
    plain = sent()
    mock.reset()
    client = connect(model_fields=TELLING)
    await recorded(client, PDR)
    assert sent() == plain


async def test_a_failed_draft_is_counted_and_draws_nothing(mock, connect):
    """The group has one row less; the row is not made up."""
    mock.configure(status=[{"match": {"call": 2}, "status": 400, "times": 1}])
    client = connect(model_fields=TELLING)
    found = await recorded(client, PDR)
    assert found.failed_calls == 1
    assert [call.role for call in found.calls] == ["draft"] * 2 + ["distill", "refine"]


async def test_a_wrong_answer_earns_less_than_nothing(mock, connect):
    """Drafts are judged on their own answers, the run on its last."""
    mock.configure(replies=[{"contains": "<notes>", "answers": ["41"]}], answers=["42"])
    client = connect(model_fields=TELLING)
    found = await recorded(client, PDR)
    assert (found.reward, found.reason) == (-1.0, "wrong")
    assert [call.reward for call in found.calls] == [1.0, 1.0, 1.0, None, -1.0]


async def test_a_run_that_stops_leaves_what_it_drew(mock, connect):
    """The refinement failed, the drafts did not: no answer, and why is said."""
    mock.configure(status=[{"match": {"contains": "<notes>"}, "status": 400, "times": 1}])
    client = connect(model_fields=TELLING)
    found = await recorded(client, PDR)
    assert [call.role for call in found.calls] == ["draft"] * 3 + ["distill"]
    assert (found.answer, found.reason, found.reward) == (None, "failed", -1.0)
    assert found.failed_calls == 1
    assert "HTTP 400" in found.stopped


async def test_runs_that_go_on_at_once_keep_their_calls_apart(mock, connect):
    """Each has its own name; one that another run has is refused."""
    client = connect(model_fields=TELLING)
    recorder = Recorder(client, math_judge())
    runs = [recorder.record(PROBLEM, PDR, thread_id=name) for name in ("a", "b", "a")]
    first, second, refused = await asyncio.gather(*runs, return_exceptions=True)
    assert {call.rollout.partition(":")[0] for call in first.calls} == {"a"}
    assert {call.rollout.partition(":")[0] for call in second.calls} == {"b"}
    assert len(first.calls) == len(second.calls) == 5
    assert isinstance(refused, ConfigError)
    assert "a run named 'a' is going on" in str(refused)


async def test_a_model_that_is_asked_for_tokens_keeps_its_connections(mock, connect):
    """`telling_tokens` makes any ChatVLLM fit for recording."""
    client = connect()
    telling = ModelClient(telling_tokens(client.model))
    long_cot = preset("long_cot", seed=1)
    found = await recorded(telling, long_cot)
    assert len(found.calls[0].token_ids) == mock.stats()["completion_tokens"]
    assert telling.model.http_async_client is client.model.http_async_client


# ------------------------------------------------------------------------------ refusals


async def test_a_server_that_sends_no_token_ids_is_refused(mock):
    """In one sentence that says how to start one that does."""
    plain = ScriptedVLLM(base_url=mock.url, model="mock-model", **TELLING)
    with pytest.raises(EndpointError, match=r"sent no token ids .* start it as `vllm serve MODEL"):
        await recorded(ModelClient(plain), preset("long_cot"))
    await plain.aclose()


class ScriptedVLLM(ChatVLLM):
    """A client whose server knows nothing of token ids: they are not asked for on the wire."""

    def _get_request_payload(self, *args, **kwargs):
        payload = super()._get_request_payload(*args, **kwargs)
        del payload["extra_body"]
        return payload


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (ScriptedChat(replies=["x"]), "ScriptedChat has none; pass ChatVLLM"),
        (ChatVLLM(base_url="http://e/v1", model="m"), "return_token_ids=True"),
    ],
)
async def test_a_model_without_tokens_is_refused_before_any_call(model, sentence):
    """A run costs tokens; nothing is spent on one that cannot be learnt from."""
    with pytest.raises(ConfigError, match=sentence):
        await recorded(ModelClient(model), PDR)


@pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"temperature": 0.0}])
async def test_sampling_that_is_cut_is_refused(connect, fields):
    """Log-probabilities would be of another distribution than the trainer's."""
    name = next(iter(fields))
    with pytest.raises(ConfigError, match=f"{name} .*; set"):
        await recorded(connect(model_fields=TELLING), PDR.model_copy(update=fields))


# ------------------------------------------------------------------------------ the file

ids = st.integers(0, 200_000)
draws = st.lists(st.tuples(ids, st.floats(-100, 0)), max_size=5)


@given(drawn=draws, text=st.text(), answer=st.none() | st.text())
def test_a_trajectory_reads_back_as_it_was(tmp_path_factory, drawn, text, answer):
    """Whatever the model writes, and to the last bit of a log-probability."""
    file = tmp_path_factory.mktemp("t") / "deep" / "trajectories.jsonl"
    call = make_call(
        text=text, token_ids=[t for t, _ in drawn], logprobs=[logprob for _, logprob in drawn]
    )
    kept = [make_trajectory(calls=(call,), answer=answer), make_trajectory(thread_id="u")]
    append_trajectories(file, kept[:1])
    append_trajectories(file, kept[1:])
    assert list(read_trajectories(file)) == kept


def test_a_line_whose_writer_died_is_left_out_and_then_overwritten(tmp_path):
    """It is owed again; those before and after it are whole."""
    file = tmp_path / "trajectories.jsonl"
    append_trajectories(file, [make_trajectory()])
    with file.open("a") as out:
        out.write('{"schema_version": 1, "thr')
    assert [each.thread_id for each in read_trajectories(file)] == ["t"]
    append_trajectories(file, [make_trajectory(thread_id="u")])
    assert [each.thread_id for each in read_trajectories(file)] == ["t", "u"]


def changed(**fields) -> dict:
    return {**json.loads(make_trajectory().model_dump_json()), **fields}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "line 1 is no trajectory: the line: Invalid JSON"),
        (json.dumps(changed(schema_version=9)), "line 1 is of schema version 9"),
        (json.dumps(changed(calls=[{}])), r"line 1 is no trajectory: calls\.0\.role"),
        (
            json.dumps(
                changed(calls=[{**json.loads(make_call().model_dump_json()), "logprobs": [-1]}])
            ),
            r"calls\.0: 2 token ids and 1 log-probabilities",
        ),
    ],
)
def test_a_damaged_line_stops_the_reader(tmp_path, line, sentence):
    """One sentence names file, line and field."""
    file = tmp_path / "trajectories.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=sentence):
        list(read_trajectories(file))


def test_a_file_that_is_not_there_is_named(tmp_path):
    """Not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(read_trajectories(tmp_path / "none.jsonl"))


# ------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize(
    ("reason", "reward"),
    [("correct", 1.0), ("wrong", -1.0), ("no_answer", -1.0), ("truncated", -1.0), ("timeout", -1)],
)
def test_only_a_right_answer_is_rewarded(reason, reward):
    """An answer that nobody can read is not a way out."""
    assert reward_of(Judgement("42", reason)) == reward


async def test_a_task_of_reasoning_gym_is_judged_by_its_own_scorer():
    """Its gold answer earns 1, another -1."""
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym, of the extra eval")
    problems = load_problems("reasoning-gym:chain_sum?size=2&seed=3")
    judge = Judge.of_kind("math", problems.score)
    first = problems.problems[0]
    right, wrong = f"\\boxed{{{first.gold}}}", f"\\boxed{{{int(first.gold) + 1}}}"
    assert reward_of(await judge.solution(first, right, truncated=False)) == 1.0
    assert reward_of(await judge.solution(first, wrong, truncated=False)) == -1.0

"""Judges of drafts in runs: what they look at, what that costs, and what stands in their way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph import build_graph, preset
from pdr_graph.budget import Ledger
from pdr_graph.connect import open_judge
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.judge import JudgePlaces, UnweighedError, load_judge, read_judge
from pdr_graph.judge.hidden import (
    EndpointStates,
    HiddenJudge,
    LinearProbe,
    NetworkProbe,
    judged_turns,
    unit_length,
)
from pdr_graph.llm.usage import Spent
from pdr_graph.settings import load_settings
from tests.fakes import NO_WAIT, make_draft
from tests.mock_endpoint import count_messages

SIZE = 8


def hidden_judge(size: int = SIZE, **fields: object) -> HiddenJudge:
    """Return a judge of states of the mock endpoint."""
    inputs = size + len(fields.get("features", ()))
    given = {
        "model": "mock-model",
        "layer": None,
        "size": size,
        "means": (0.0,) * inputs,
        "scales": (1.0,) * inputs,
        "probe": LinearProbe(weights=(1.0,) * inputs, bias=0.0),
    }
    return HiddenJudge(**{**given, **fields})


def at(mock, **options: object) -> EndpointStates:
    return EndpointStates(mock.url, **{"api_key": "none", "retry": NO_WAIT, **options})


async def run_with(connect, judge: HiddenJudge, **fields: object):
    """Return the last state of a run that weighs its drafts."""
    graph = build_graph(connect(), extensions=Extensions(judge=judge))
    given = {"widths": (3,), "seed": 1, "max_tokens": 64, **fields}
    return await graph.ainvoke({"problem": "2 + 2?"}, context=preset("vote_first", **given))


# ------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize("form", ["vllm", "llama_cpp"])
@pytest.mark.parametrize("finish", ["weighted_vote", "guarded"])
async def test_what_is_read_is_in_the_ledger_to_the_token(connect, mock, form, finish):
    """Whatever form the server takes; the voice of a refinement is read as the drafts are."""
    mock.configure(embeddings=form, answers=["7", "8", "9"])
    judge = hidden_judge().opened(JudgePlaces(states=at(mock)))
    state = await run_with(connect, judge, finish=finish, distiller="evidence", widths=(4,))
    ledger, served = Ledger(tuple(state["ledger"])), mock.stats()
    assert all(0 < draft["weight"] < 1 for draft in state["drafts"])
    assert served["embeddings"] >= 4
    spent = served["prompt_tokens"] + served["completion_tokens"] + served["embedded_tokens"]
    assert ledger.b_total == spent
    assert not any(row["estimated"] for row in state["ledger"] if row["node"] == "drafter")


async def test_reading_comes_after_the_draft_in_b_seq(connect, mock):
    """The critical path holds the longest draft and its reading, one after the other."""
    mock.configure(embeddings="vllm")
    judge = hidden_judge().opened(JudgePlaces(states=at(mock)))
    plain = await run_with(connect, hidden_judge(), widths=(1,))
    read = await run_with(connect, judge, widths=(1,))
    more = Ledger(tuple(read["ledger"])).b_seq - Ledger(tuple(plain["ledger"])).b_seq
    assert more == mock.stats()["embedded_tokens"] > 0


async def test_a_round_is_not_begun_if_its_readings_cannot_be_paid_for(connect, mock):
    """The bound on all tokens holds with a judge that reads."""
    mock.configure(embeddings="vllm", answers=["7", "8", "9"])
    judge = hidden_judge().opened(JudgePlaces(states=at(mock)))
    bound = {"widths": (2, 2, 2), "max_total_tokens": 6000, "kappa": 64, "solution_tokens": 64}
    state = await run_with(connect, judge, stop_on_consensus=None, **bound)
    served = mock.stats()
    spent = served["prompt_tokens"] + served["completion_tokens"] + served["embedded_tokens"]
    assert Ledger(tuple(state["ledger"])).b_total == spent <= 6000


async def test_readings_that_nobody_asks_for_take_no_budget(connect, mock):
    """A judge that is there for other runs ends no round of one that weighs nothing."""
    mock.configure(answers=["7", "8", "9"])
    bound = {"widths": (2, 2, 2), "max_total_tokens": 6000, "finish": "vote"}
    judge = hidden_judge().opened(JudgePlaces(states=at(mock)))
    with_judge = await run_with(connect, judge, stop_on_consensus=None, **bound)
    without = await build_graph(connect()).ainvoke(
        {"problem": "2 + 2?"},
        context=preset("vote_first", seed=1, max_tokens=64, stop_on_consensus=None, **bound),
    )
    assert with_judge["round"] == without["round"] == 3
    assert mock.stats()["embeddings"] == 0


async def test_a_reading_without_usage_is_an_estimate(connect, mock):
    """And marked as one."""
    mock.configure(embeddings="vllm", no_usage=True)
    spent = Spent()
    await at(mock).read([("user", "2 + 2?")], (None,), spent)
    (usage,) = spent.usage
    assert usage.estimated
    assert usage.prompt > 0


# ------------------------------------------------------------------------------ what is read


async def test_the_draft_is_read_with_its_problem_and_a_question(mock):
    """As a conversation of three turns, at whose end the reply would begin."""
    mock.configure(embeddings="vllm")
    spent, turns = Spent(), judged_turns("2 + 2?", "It is 4.", "Right?")
    (state,) = await at(mock).read(turns, (None,), spent)
    assert len(state) == SIZE
    messages = [{"content": text} for _, text in turns]
    assert spent.usage[0].prompt == count_messages(messages)
    assert spent.requests == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1).filter(lambda s: any(abs(x) > 1e-3 for x in s)))
def test_states_of_any_length_weigh_alike(state):
    """Some servers bring them to unit length, and others do not."""
    judge = hidden_judge(size=len(state))
    draft = make_draft(0, "7")
    assert judge.weight_of(draft, unit_length(state)) == pytest.approx(
        judge.weight_of(draft, state), abs=1e-9
    )


def test_a_network_of_two_layers_is_a_sum_of_rectified_units():
    """One unit that sees the first number, one that is off."""
    probe = NetworkProbe(
        units=((2.0, 0.0), (0.0, -1.0)), unit_biases=(0.5, 0.0), weights=(3.0, 9.0), bias=-1.0
    )
    assert probe.logit((1.0, 1.0)) == pytest.approx(3.0 * 2.5 - 1.0)


# ------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({}, "serves no embedding"),
        ({"embeddings": "vllm", "embedding_size": 5}, "has 5 numbers, and the judge takes 8"),
    ],
    ids=["no embeddings", "another model"],
)
async def test_a_server_that_cannot_read_is_noted_once(connect, mock, rules, why):
    """The run goes on with the plain vote, and nothing is guessed."""
    mock.configure(**rules)
    judge = hidden_judge().opened(JudgePlaces(states=at(mock)))
    state = await run_with(connect, judge, widths=(2, 2), distiller="evidence")
    assert all("weight" not in draft for draft in state["drafts"])
    (note,) = [each for each in state["notes"] if why in each]
    assert note.startswith("not every draft could be weighed, so all count alike: ")
    assert state["solution"]["answer"] is not None


async def test_signals_that_are_missing_cost_no_reading(mock):
    """A judge that joins both looks at what is free first."""
    mock.configure(embeddings="vllm")
    judge = hidden_judge(features=("logprob",)).opened(JudgePlaces(states=at(mock)))
    with pytest.raises(UnweighedError, match="no log-probabilities"):
        await judge.weigh(make_draft(0, "7"), None)
    assert mock.stats()["embeddings"] == 0


def test_a_judge_without_a_place_is_refused_at_the_door(tmp_path):
    """With the options that name one."""
    file = tmp_path / "judge.json"
    hidden_judge(layer=12).save(file)
    with pytest.raises(ConfigError, match="its first 12 layers") as raised:
        load_judge(file)
    assert "--judge-url" in str(raised.value)
    assert "--judge-weights" in str(raised.value)
    with pytest.raises(ConfigError, match="holds no model"):
        open_judge(load_settings(judge=file, judge_weights=tmp_path))


def test_a_judge_is_opened_by_the_settings(tmp_path):
    """And is the same judge."""
    file = tmp_path / "judge.json"
    hidden_judge().save(file)
    opened = open_judge(load_settings(judge=file, judge_url="http://127.0.0.1:9/v1"))
    assert opened.digest == read_judge(file).digest
    with pytest.raises(ConfigError, match="fitted on drafts of 'mock-model'"):
        opened.check("other")


# ------------------------------------------------------------------------------ the file


def test_a_probe_is_read_as_it_was_written(tmp_path):
    """Of both forms."""
    network = NetworkProbe(
        units=((0.1,) * SIZE,), unit_biases=(0.0,), weights=(0.1 + 0.2,), bias=1.0
    )
    for judge in (hidden_judge(), hidden_judge(probe=network)):
        judge.save(tmp_path / "judge.json")
        assert read_judge(tmp_path / "judge.json") == judge


def changed(**fields: object) -> str:
    return json.dumps({**hidden_judge().model_dump(mode="json"), **fields})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (changed(kind="oracle"), "unknown kind 'oracle'"),
        (changed(kind=["hidden"]), "unknown kind"),
        (changed(size=7), "do not all take 7 numbers"),
        (changed(layer=0), "layer"),
        (changed(scales=[0.0] * SIZE), "scale is 0"),
        (changed(features=["mood"]), "do not all take"),
        (changed(probe={"form": "oracle"}), "probe"),
        (changed(probe={"form": "linear", "weights": ["a"], "bias": 0}), "probe"),
        (changed(weight=1), "weight"),
        ("[" * 100_000, "holds no JSON"),
        ("\xff", "is no judge"),
    ],
)
def test_what_is_no_judge_is_refused_in_one_sentence(tmp_path, text, why):
    """Which names the file and the remedy, and has no second line."""
    file = tmp_path / "judge.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=why) as raised:
        read_judge(file)
    sentence = str(raised.value)
    assert str(file) in sentence
    assert "pdr-graph judge fit" in sentence
    assert "\n" not in sentence


def test_a_file_of_earlier_versions_is_of_signals(tmp_path):
    """It names no kind."""
    file = tmp_path / "judge.json"
    plain = {"model": "m", "features": ["logprob"], "means": [0], "scales": [1], "weights": [1]}
    file.write_text(json.dumps({**plain, "bias": 0}))
    assert read_judge(file).kind == "signals"

"""The study of selection: its policies answer as the package does, and its rule is applied."""

import asyncio
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from benchmarks.studies.selection.__main__ import TRIALS, is_better, main
from benchmarks.studies.selection.policies import RoundsPolicy
from benchmarks.studies.selection.pool import PooledDraft, PooledProblem, load, save
from benchmarks.studies.selection.report import WIDTH, draw, findings, measure, tables
from benchmarks.studies.selection.sources import FITTING, PARTS, sources
from pdr_graph import preset, solve
from pdr_graph.answers import answer_kind
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import load_problems
from pdr_graph.eval.records import read_run
from pdr_graph.judge import logprob_signals
from tests.fakes import ScriptedChat

MATH = answer_kind("math")
WIDTHS = (3, 2, 3)

drafts = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", None]), st.floats(-3.0, -0.1)),
    min_size=sum(WIDTHS),
    max_size=sum(WIDTHS),
)


def reply(answer: str | None, logprob: float) -> AIMessage:
    """Return what a server sends for a draft."""
    text = "I do not know." if answer is None else f"It is \\boxed{{{answer}}}."
    return AIMessage(
        text,
        usage_metadata={"input_tokens": 50, "output_tokens": 7, "total_tokens": 57},
        response_metadata={"logprobs": {"content": [{"token": "a", "logprob": logprob}]}},
    )


def pooled_problem(rows, *, right: str = "1") -> PooledProblem:
    """Return a problem with these drafts, each an answer and a log-probability."""
    made = tuple(
        PooledDraft(answer, answer == right, 7, logprob_signals([logprob]))
        for answer, logprob in rows
    )
    return PooledProblem("p", 50, 0, made, made[0])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drafts)
def test_rounds_of_the_study_answer_and_spend_as_the_graph_does(rows):
    """On the same drafts the graph makes as many calls, spends as much and answers alike."""
    model = ScriptedChat(replies=[reply(*row) for row in rows])
    config = preset("vote_first", widths=WIDTHS, seed=1)
    result = asyncio.run(solve("What is it?", config, model=model))
    outcome = asyncio.run(RoundsPolicy(WIDTHS, 0.75).at(pooled_problem(rows), MATH))
    assert outcome.num_drafts == len(model.prompts)
    assert outcome.b_total == result.ledger.b_total
    assert outcome.b_seq == result.ledger.b_seq
    assert outcome.correct == (result.answer == "1")


def test_a_judge_that_reads_each_draft_is_paid_for():
    """What it reads is on the longest path too, and counts only where the weights do."""
    plain = pooled_problem([("1", -1.0)] * 8)
    weighed = tuple(replace(each, weight=0.5) for each in plain.drafts)
    problem = replace(plain, read_tokens=67, drafts=weighed)
    outcome = asyncio.run(RoundsPolicy((8,), judged=True).at(problem, MATH))
    assert outcome.b_seq == 57 + 67
    assert outcome.b_total == 8 * (57 + 67)
    assert asyncio.run(RoundsPolicy((8,)).at(problem, MATH)).b_total == 8 * 57


def test_a_judge_may_overrule_the_vote():
    """Its weights decide, and the preset is the judged one then."""
    rows = [("2", -1.0)] * 5 + [("1", -1.0)] * 3
    plain = pooled_problem(rows)
    weights = [0.1 if answer == "2" else 0.9 for answer, _ in rows]
    drafts = tuple(replace(d, weight=w) for d, w in zip(plain.drafts, weights, strict=True))
    result = asyncio.run(measure("one", [replace(plain, drafts=drafts)], MATH))
    assert result.policies["vote"].correct_P == [0.0]
    assert result.policies["judged vote"].correct_P == [1.0]
    assert result.preset.name == "vote_first, judged"


def test_it_goes_from_problems_to_the_rule(mock, monkeypatch, tmp_path, capfd):
    """Both parts are sampled, a judge is fitted, and the report keeps and reads its drafts."""
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_DATA_DIR", str(tmp_path / "data"))
    mock.configure(answers=["1", "2"])
    rows = [{"question": f"Is it {n}?", "answer": "#### 1"} for n in range(340)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, kept = tmp_path / "out", tmp_path / "kept"
    given = ["--gsm8k", str(tmp_path / "train.jsonl"), "--only", "gsm8k", "--out", str(out)]
    words = [*given, "--base-url", mock.url]
    assert main(["report", *words]) == 2
    assert "holds no drafts to report on" in capfd.readouterr().err
    assert main(["fit", "--problems", "24", *words]) == 0
    assert not is_better(out / "judge-gsm8k.json")  # answers come at random
    assert main(["--problems", "24", "--keep", str(kept), *words]) == 0  # it goes on to the end
    table = capfd.readouterr().out
    assert "## gsm8k, 24 problems" in table
    assert "## The preset as it is" in table
    assert main(["report", "--kept", str(kept), *words]) == 0
    assert table.endswith(capfd.readouterr().out)
    (problem, *_), folder = load(kept / "gsm8k.jsonl.gz"), out / "judging" / "gsm8k"
    cost = [each["ledger"] for each in read_run(folder).samples
            if (each["arm"], each["problem_id"]) == ("drafts", problem.id)]  # fmt: skip
    outcome = asyncio.run(RoundsPolicy((WIDTH,)).at(problem, MATH))
    assert (outcome.b_total, problem.read_tokens) == (cost[0]["b_total"], 0)
    unsure = {"Yes": math.log(0.5), "No": math.log(0.5)}
    mock.configure(replies=[{"contains": "correct?", "content": "Yes", "top": unsure}])
    assert main(["judges", "--problems", "24", *words]) == 0
    assert "48 problems" in capfd.readouterr().out
    assert not is_better(out / "judges" / "gsm8k" / "self-check.json")


@pytest.mark.parametrize("step", TRIALS)
def test_arms_are_compared_on_the_same_drafts(mock, monkeypatch, tmp_path, capfd, step):
    """Those of one first round, which each arm is charged for."""
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_DATA_DIR", str(tmp_path / "data"))
    mock.configure(answers=["1", "2", "3"])
    words = ["--problems", "2", "--out", str(tmp_path), "--base-url", mock.url]
    assert main([step, *words]) == 0
    run, arms = read_run(tmp_path / step), TRIALS[step].arms
    assert {each["arm"] for each in run.samples} == set(arms)
    firsts = {
        (each["problem_id"], tuple(d["answer"] for d in each["drafts"] if d["round"] == 1))
        for each in run.samples
    }
    assert len(firsts) == 2
    shown = capfd.readouterr().out
    assert all(name in shown for name in arms)


def test_what_is_kept_is_what_was_sampled(tmp_path):
    """The file has the same bytes for the same drafts, and holds no text."""
    problems = [pooled_problem([("1", -0.5), (None, -2.0)])]
    files = [tmp_path / name for name in ("a.gz", "b.gz")]
    for file in files:
        save(problems, file)
    assert load(files[0]) == problems
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_parts_share_no_problem(tmp_path):
    """None is in a part twice either, although procedural tasks repeat themselves."""
    file = tmp_path / "train.jsonl"
    rows = [{"question": f"Is it {n}?", "answer": f"Yes.\n#### {n}"} for n in range(700)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = []
    for part in PARTS:
        named = sources(part, None, file, tmp_path)
        loaded = [load_problems(str(each)).problems for each in named.values()]
        assert [len(each) for each in loaded] == [part.gsm8k, *[part.task] * 3]
        texts.append([problem.text for each in loaded for problem in each])
    assert len(set().union(*texts)) == sum(map(len, texts))


def test_too_few_problems_are_refused(tmp_path):
    """The sentence says how many are needed."""
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "q", "answer": "#### 1"}\n')
    with pytest.raises(ConfigError, match="has 1 different problems, and the study needs 300"):
        sources(FITTING, None, file, tmp_path)


def test_the_rule_is_applied_to_every_source_and_to_all(tmp_path):
    """A preset that answers as the vote does, for fewer tokens, meets (d) and closes no gap."""
    agreeing = [pooled_problem([("1", -1.0)] * WIDTH) for _ in range(150)]
    wrong = [pooled_problem([("2", -1.0)] * 7 + [("1", -2.0)]) for _ in range(50)]
    results = [asyncio.run(measure(name, [*agreeing, *wrong], MATH)) for name in ("one", "two")]
    found = {(each.rule, each.where): each for each in findings(results)}
    assert found["d", "one"].met
    assert found["d", "one"].figure.startswith("2.67 × fewer")
    assert not found["c", "all"].met
    assert not found["b", "one"].met  # the single attempt is the first draft
    assert [rule for rule, _ in found] == sorted(rule for rule, _ in found)
    assert all(a <= b for a, b in pairwise(rule for rule, _ in found))
    page = tables(results)
    assert page.count("| vote, matched |") == 2
    assert "| a | all |" in page
    draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000

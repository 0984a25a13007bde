"""The study of strategies: what it asks of `pdr-graph eval`, and what it writes."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.studies.evaluation import eval_words, main, sources
from benchmarks.studies.figures import draw_sweeps
from benchmarks.studies.settings import PAIRS, SWEEPS, comparisons
from pdr_graph.eval.arms import make_arms, parse_arm
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.problems import load_problems
from pdr_graph.eval.stats import Estimate

ASKED = argparse.Namespace(
    problems=3, samples=2, seed=5, kappa=300, call_tokens=200, max_in_flight=9, data=[], gsm8k=None,
    base_url="http://127.0.0.1:1/v1", model=None, vllm=False,
)  # fmt: skip


MATCHED = comparisons(200, quick=False)[:2]


@pytest.mark.parametrize("matching", MATCHED, ids=lambda each: each.name)
def test_no_arm_is_allotted_more_than_the_others(matching):
    """Each arm comes within one call of the budget, or one step of the number it can grow by."""
    budget = matching.budget(200)
    arms = make_arms(
        [parse_arm(text) for text in matching.arms],
        {"kappa": 300},
        Budgets(**{matching.name: budget}),
    )
    spent = [arm.budget[f"{matching.name}_nominal"] for arm in arms]
    assert max(spent) <= budget
    assert min(spent) > 0.9 * budget
    by_name = {arm.name: arm.config for arm in arms}
    assert by_name["pdr_summary"].max_tokens == 200
    assert by_name["long_cot"].max_tokens == budget


def test_its_sources_can_be_loaded():
    """The tasks know their settings, and there are as many problems as asked for."""
    for source in sources(ASKED).values():
        assert len(load_problems(source).problems) == 3


def test_named_sources_take_the_place_of_the_tasks():
    """GSM8K is added to either."""
    named = argparse.Namespace(
        **{**vars(ASKED), "data": ["mine=a.jsonl"], "gsm8k": Path("g.jsonl")}
    )
    assert sources(named) == {"mine": "a.jsonl", "gsm8k": "g.jsonl"}


def test_words_of_eval_hold_the_matching():
    """They have the budget, one --arm for each arm, and --share-first-round."""
    comparison = comparisons(200, quick=True)[1]
    words = eval_words(ASKED, "a.jsonl", comparison, Path("out"))
    assert words[:4] == ["eval", "a.jsonl", "--out", "out"]
    assert words[words.index("--b-total") + 1] == "1200"
    assert words.count("--arm") == len(comparison.arms)
    assert "--share-first-round" in words


def test_the_sweeps_hold_the_length_of_a_call():
    """No two arms are the same; they differ in kappa, rounds or width."""
    sweeps = comparisons(200, quick=False)[2]
    words = eval_words(ASKED, "a.jsonl", sweeps, Path("out"))
    assert words[words.index("--max-tokens") + 1] == "200"
    settings = [parse_arm(text).fields for text in sweeps.arms]
    assert [sum(a != b for b in settings) for a in settings] == [len(settings) - 1] * len(settings)
    assert {key for each in settings for key in each} == {"widths", "kappa"}


def test_pairs_are_of_arms_that_are_measured():
    """A quick study compares the planned pairs whose arms it has."""
    whole, quick = (comparisons(200, quick=each)[0] for each in (False, True))
    assert whole.pairs == PAIRS["b_seq"]
    assert quick.pairs == ("long_cot:pdr_summary", "majority:pdr_adaptive", "long_cot:pdr_adaptive")


def test_it_measures_compares_and_joins_the_tables(mock, monkeypatch, tmp_path):
    """One page has the tables and plots of every run, of earlier commands too."""
    for name in ("PDR_BASE_URL", "PDR_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    file = tmp_path / "sums.jsonl"
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for only in ("b_total", "b_seq"):
        words = ["--quick", "--only", only, "--data", f"sums={file}", "--base-url", mock.url]
        assert main([*words, "--out", str(tmp_path / "study")]) == 0
    page = (tmp_path / "study" / "study.md").read_text()
    assert "Model `mock-model`" in page
    assert "![sums-b_seq: outcomes](sums-b_seq/plots/outcomes.png)" in page
    assert "Where it is won and lost" in page
    assert "![sums-b_seq: accuracy-b-total](sums-b_seq/plots/accuracy-b-total.png)" in page
    assert page.index("## sums-b_seq") < page.index("## sums-b_total")
    assert "| pdr_adaptive | majority | 3 |" in page
    assert "| pdr_summary | 3 | 3 |" in page
    assert (tmp_path / "study" / "sums-b_seq" / "plots" / "accuracy-b-total.svg").exists()


def test_every_number_of_a_sweep_has_an_arm_that_is_measured(tmp_path):
    """The plot of the sweeps finds its arms by name."""
    measured = {parse_arm(text).name for text in comparisons(200, quick=False)[2].arms}
    assert {name for names in SWEEPS.values() for name in names.values()} == measured
    accuracy = Estimate(0.5, 0.4, 0.6, 10)
    draw_sweeps(dict.fromkeys(measured, accuracy), tmp_path / "sweeps.png")
    assert (tmp_path / "sweeps.png").stat().st_size > 1000

"""A judge of drafts: fitted on evaluations, measured, kept in a file, and used in runs."""

import json
import random
from pathlib import Path

import pytest

from pdr_graph import build_graph, preset
from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge_fit import fit_judge, score_judge
from pdr_graph.eval.records import EvalRun
from pdr_graph.extensions import Extensions
from pdr_graph.judge import SignalsJudge, UnweighedError, load_judge
from tests.fakes import make_draft

PLAIN = {"model": "m", "features": ("logprob",), "bias": 0.0}


def judge_of(weight: float = 1.0, **fields: object) -> SignalsJudge:
    return SignalsJudge(
        **{**PLAIN, "means": (-1.0,), "scales": (0.5,), "weights": (weight,), **fields}
    )


def run_of(
    num_problems: int, *, told: float, rate: float = 0.4, model: str = "m", seed: int = 0
) -> EvalRun:
    """Return records of 8 drafts a problem, the right ones likelier than the wrong by `told`."""
    rng = random.Random(seed)
    samples = []
    for number in range(num_problems):
        drafts = []
        for index in range(8):
            correct = rng.random() < rate
            mean = -1.0 + told * correct + rng.gauss(0, 0.3)
            drafts.append(
                {
                    "round": 1,
                    "index": index,
                    "answer": "7" if correct else str(rng.randint(8, 10)),
                    "correct": correct,
                    "reason": "correct",
                    "truncated": False,
                    "error": None,
                    "tokens": rng.randint(40, 200),
                    "signals": {
                        "logprob": min(0.0, mean),
                        "logprob_tail": min(0.0, mean + rng.gauss(0, 0.3)),
                        "logprob_window": min(0.0, 2 * mean),
                    },
                }
            )
        samples.append({"arm": "a", "problem_id": str(number), "sample": 0, "drafts": drafts})
    header = {
        "model": model,
        "arms": {"a": {"config": preset("vote_first").model_dump(mode="json")}},
        "data": {"sha256": f"data-{seed}"},
        "prompts_sha256": {"draft": "0123456789abcdef"},
    }
    return EvalRun(Path("run"), header, samples)


# ------------------------------------------------------------------------------ fitting


async def test_a_judge_of_true_signals_beats_the_vote():
    """On problems that it has not seen, and on another run."""
    fit = await fit_judge([run_of(60, told=0.8)])
    assert fit.report.gain.low > 0
    assert fit.report.verdict.startswith("Better than the vote")
    assert fit.report.discrimination["signals"].within.value > 0.8
    assert fit.report.vote.value < fit.report.judged.value <= fit.report.best.value
    again = await score_judge(fit.judge, [run_of(60, told=0.8, seed=1)])
    assert again.gain.low > 0
    assert not again.learning


async def test_a_judge_of_noise_is_called_no_better():
    """In a plain sentence; no draft is told from another."""
    report = (await fit_judge([run_of(60, told=0.0)])).report
    assert not report.verdict.startswith("Better")
    assert report.discrimination["signals"].within.value == pytest.approx(0.5, abs=0.12)


async def test_a_weight_is_a_probability():
    """Of the drafts in a bin, about as many are right as the weight says."""
    report = (await fit_judge([run_of(200, told=0.5)])).report
    for each in report.reliability:
        assert each.right == pytest.approx(each.weight, abs=0.15)


async def test_shared_drafts_count_once():
    """Arms that share the drafts of their first round tell the same twice."""
    once = await fit_judge([run_of(30, told=0.5)])
    twice = await fit_judge([run_of(30, told=0.5), run_of(30, told=0.5)])
    assert once.report.num_drafts == twice.report.num_drafts


async def test_records_without_signals_are_refused():
    """The sentence says which arm has them."""
    run = run_of(30, told=0.5)
    for sample in run.samples:
        for draft in sample["drafts"]:
            del draft["signals"]
    with pytest.raises(ConfigError, match="vote_first"):
        await fit_judge([run])


async def test_too_few_problems_are_refused():
    """And problems that are all solved, or none."""
    with pytest.raises(ConfigError, match="20 are needed"):
        await fit_judge([run_of(19, told=0.5)])
    with pytest.raises(ConfigError, match="0 of 30 problems"):
        await fit_judge([run_of(30, told=0.5, rate=1.1)])


async def test_two_models_are_refused():
    """A judge knows the drafts of one; also when it is measured."""
    with pytest.raises(ConfigError, match="of 2 models"):
        await fit_judge([run_of(30, told=0.5), run_of(30, told=0.5, model="n")])
    with pytest.raises(ConfigError, match="fitted on drafts of 'm'"):
        await score_judge(judge_of(), [run_of(30, told=0.5, model="n")])


# ------------------------------------------------------------------------------ the file


def test_a_judge_is_read_as_it_was_written(tmp_path):
    """Its digest leaves out when it was made and what it is worth."""
    judge = judge_of(0.1 + 0.2, created="2026-01-01", report={"verdict": "x"})
    judge.save(tmp_path / "new" / "judge.json")
    read = load_judge(tmp_path / "new" / "judge.json")
    assert read == judge
    assert read.digest == judge_of(0.1 + 0.2).digest != judge_of(0.3).digest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is no judge"),
        ("[]", "is no judge"),
        ('{"model": "m"}', "is no judge"),
        (json.dumps({**judge_of().model_dump(), "version": 2}), "version"),
        (json.dumps({**judge_of().model_dump(), "scales": [0.0]}), "scale is 0"),
        (json.dumps({**judge_of().model_dump(), "means": [0.0, 1.0]}), "differ in length"),
        (json.dumps({**judge_of().model_dump(), "features": ["mood"]}), "unknown feature 'mood'"),
        (json.dumps({**judge_of().model_dump(), "bias": float("nan")}), "is no judge"),
    ],
)
def test_what_is_no_judge_is_refused(tmp_path, text, why):
    """In one sentence that names the file."""
    file = tmp_path / "judge.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as raised:
        load_judge(file)
    assert str(file) in str(raised.value)


def test_weights_are_probabilities_or_unknown():
    """However extreme a draft is; without its signals nothing is guessed."""
    draft = make_draft(0, "7")
    with pytest.raises(UnweighedError, match="no log-probabilities"):
        judge_of().weight_of(draft)
    for logprob, weight in (
        (-1.0, 0.5),
        (-1e308, pytest.approx(0.0)),
        (0.0, pytest.approx(0.881, abs=1e-3)),
    ):
        draft["signals"] = {"logprob": logprob}
        assert judge_of().weight_of(draft) == weight


# ------------------------------------------------------------------------------ runs


async def test_a_run_weighs_its_drafts(connect):
    """The drafts keep their weights, and the run records the judge."""
    judge = judge_of(model="mock-model")
    graph = build_graph(connect(), extensions=Extensions(judge=judge))
    config = preset("vote_first", widths=(2,), seed=1, max_tokens=64)
    state = await graph.ainvoke({"problem": "2 + 2?"}, context=config)
    assert all(0 < draft["weight"] < 1 for draft in state["drafts"])
    assert state["record"]["judge"] == judge.digest
    assert state["tally"]["votes"][0]["weight"] > 0


@pytest.mark.parametrize(
    ("judge", "fields", "why"),
    [
        (judge_of(), {}, "fitted on drafts of 'm'"),
        (judge_of(model="mock-model"), {"finish": "vote"}, "asks for weights"),
    ],
    ids=["another model", "no use"],
)
async def test_a_judge_that_does_not_fit_is_refused(connect, mock, judge, fields, why):
    """Before any call."""
    graph = build_graph(connect(), extensions=Extensions(judge=judge))
    config = preset("vote_first", **{"widths": (2,), **fields})
    with pytest.raises(ConfigError, match=why):
        await graph.ainvoke({"problem": "2 + 2?"}, context=config)
    assert mock.requests() == []


# ------------------------------------------------------------------------------ the command


def test_from_an_evaluation_to_a_run(forgetful, mock, tmp_path):
    """Evaluate, fit, look at it, measure it again, and solve with it."""
    mock.configure(answers=["7", "7", "8", "9"])
    lines = [json.dumps({"id": str(n), "problem": f"{n}?", "answer": 7}) for n in range(24)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    run, judge = str(tmp_path / "run"), str(tmp_path / "judge.json")
    arm = "vote_first@widths=4;max_tokens=64"
    forgetful("eval", str(tmp_path / "data.jsonl"), "--arm", arm, "--out", run, "--no-trace")
    plots = str(tmp_path / "plots")
    fitted = forgetful("judge", "fit", run, "--out", judge, "--plots", plots)
    assert fitted.code == 0
    assert "the vote" in fitted.out
    assert len(list((tmp_path / "plots").iterdir())) == 4
    scored = forgetful("judge", "score", run, "--judge", judge, "--json")
    assert json.loads(scored.out)["num_problems"] == 24
    assert "flatters" in scored.err
    solved = forgetful("solve", "1?", "--preset", "vote_first", "--widths", "2", "--judge", judge)
    assert solved.code == 0
    other = forgetful("solve", "1?", "--judge", judge)
    assert other.code != 0
    assert "asks for weights" in other.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("fit", "x"), "needs --out FILE"),
        (("score", "x"), "needs --judge FILE"),
        (("fit", "x", "--out", "y", "--judge", "z"), "takes no --judge"),
        (("fit", "x", "--out", "y"), "holds no run.json"),
    ],
)
def test_what_the_command_lacks_is_said(forgetful, words, why):
    """In one sentence."""
    done = forgetful("judge", *words)
    assert done.code != 0
    assert why in done.err

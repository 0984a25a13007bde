"""A judge of drafts: fitted on evaluations, measured, kept in a file, and used in runs."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from pdr_graph import Parts, as_tool, build_graph, pdr_node, preset, solve
from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge_fit import LearningPoint, StateSource, fit_judge, score_judge
from pdr_graph.eval.records import EvalRun
from pdr_graph.extensions import Extensions
from pdr_graph.judge import (
    Layers,
    SignalsJudge,
    Turns,
    UnweighedError,
    load_judge,
    read_judge,
)
from pdr_graph.judge.hidden import HiddenJudge
from pdr_graph.llm.usage import Spent
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


async def test_it_is_said_whether_more_problems_may_help():
    """By what the last doubling has brought."""
    report = (await fit_judge([run_of(40, told=0.5)])).report
    assert len(report.learning) > 1
    before, now = LearningPoint(18, 0.70, 0.0), LearningPoint(36, 0.74, 0.0)
    rising, flat = (
        replace(report, learning=(before, each)) for each in (now, replace(now, within=0.70))
    )
    assert rising.outlook == (
        "More problems may help: with 36 instead of 18 a right draft scored above a wrong one in "
        "74 instead of 70 of 100 pairs."
    )
    assert flat.outlook.startswith("More problems would hardly help: ")
    assert flat.to_json()["outlook"] == flat.outlook
    assert replace(report, learning=()).outlook == ""


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


# ------------------------------------------------------------------------------ hidden states


class TellingStates:
    """Reads states that tell right drafts from wrong ones, up to noise; and counts the readings."""

    place = "a fake"

    def __init__(self, told: float, *, squared: bool = False) -> None:
        self.told, self.squared = told, squared
        self.num_read = 0
        self.fails: set[int] = set()

    async def read(self, turns: Turns, layers: Layers, spent: Spent) -> list[list[float]]:
        """Return four numbers a layer; only the first layer's tell."""
        self.num_read += 1
        if self.num_read in self.fails:
            raise UnweighedError("the server was busy")
        rng = random.Random(repr(turns))
        sign = 1.0 if "right" in turns[1][1] else -1.0
        if self.squared:  # far out on either side: no plane tells it
            size = 1.0 + self.told * sign
            first = [size * rng.choice((-1.0, 1.0)), 1.0, rng.gauss(0, 0.1), 3.0]
        else:
            first = [self.told * sign + rng.gauss(0, 1), rng.gauss(0, 1), 1.0, 3.0]
        return [
            first if not index else [rng.gauss(0, 1) for _ in range(4)]
            for index in range(len(layers))
        ]


def traced(run: EvalRun, folder: Path) -> EvalRun:
    """Return the run with texts of its drafts in a trace."""
    (folder / "trace").mkdir(parents=True)
    lines = []
    for sample in run.samples:
        thread = sample["thread_id"] = f"t{sample['problem_id']}"
        for draft in sample["drafts"]:
            told = "right" if draft["correct"] else "wrong"
            call = {
                "thread_id": thread,
                "round": 1,
                "node": "drafter",
                "index": draft["index"],
                "template": "draft",
                "prompt": f"problem {thread}",
                "solution": f"{told}, draft {draft['index']}: {draft['answer']}",
                "error": "",
            }
            lines.append(json.dumps(call))
    (folder / "trace" / "a.jsonl").write_text("\n".join(lines) + '\n{"torn')
    return EvalRun(folder, run.header, run.samples)


async def test_a_probe_of_telling_states_beats_the_vote(tmp_path):
    """It looks at the layer that tells, and is the same when it is read from its file."""
    run = traced(run_of(60, told=0.0), tmp_path / "run")
    source = StateSource(TellingStates(1.0), (12, 16), folder=tmp_path)
    fit = await fit_judge([run], kind="hidden", source=source, folds=4)
    assert fit.report.verdict.startswith("Better than the vote")
    assert fit.report.main == "hidden state, signals"
    alone = {"signals", "hidden state", "hidden state, layer 12", "hidden state, layer 16"}
    assert alone <= set(fit.report.judges)
    judge = fit.judge
    assert isinstance(judge, HiddenJudge)
    assert (judge.layer, judge.size, judge.source) == (12, 4, "a fake, layer 12")
    judge.save(tmp_path / "judge.json")
    again = traced(run_of(60, told=0.0, seed=1), tmp_path / "again")
    reader = StateSource(TellingStates(1.0), (12,))
    report = await score_judge(read_judge(tmp_path / "judge.json"), [again], source=reader)
    assert report.gain.low > 0


async def test_a_probe_of_noise_is_called_no_better(tmp_path):
    """And `best` then keeps the judge that costs nothing."""
    source = StateSource(TellingStates(0.0), (None,))
    deaf = traced(run_of(40, told=0.0, seed=1), tmp_path / "deaf")
    noise = await fit_judge([deaf], kind="hidden", source=source, folds=4)
    assert not noise.report.verdict.startswith("Better")
    run = traced(run_of(40, told=0.8, seed=1), tmp_path / "run")
    best = await fit_judge([run], kind="best", source=source, folds=4)
    assert best.report.judges["hidden state"].gain.low < 0
    assert best.judge.kind == "signals" or "signals" in best.report.notes[-1]
    assert any("of 2 judges" in note for note in best.report.notes)


async def test_two_layers_are_taken_where_one_is_not_enough(tmp_path):
    """Only if they are better on problems that they have not seen."""
    run = traced(run_of(40, told=0.0), tmp_path)
    source = StateSource(TellingStates(0.5, squared=True), (None,))
    fit = await fit_judge([run], kind="hidden", source=source, folds=4)
    assert fit.judge.probe.form == "network"
    assert fit.report.discrimination["hidden state"].within.value > 0.9


async def test_what_was_read_is_not_read_again(tmp_path):
    """A fit that was stopped, or that met a busy server, goes on where it was."""
    run = traced(run_of(30, told=0.0), tmp_path / "run")
    reader = TellingStates(1.0)
    reader.fails = {3}
    source = StateSource(reader, (12,), folder=tmp_path)
    first = await fit_judge([run], kind="hidden", source=source, folds=3)
    assert "1 of 30 samples are left out: the server was busy" in first.report.notes
    assert reader.num_read == 240
    again = await fit_judge([run], kind="hidden", source=source, folds=3)
    assert reader.num_read == 241
    assert again.report.num_problems == 30


async def test_runs_without_a_trace_have_no_texts():
    """The sentence says how they are kept."""
    run = run_of(30, told=0.0)
    for sample in run.samples:
        sample["thread_id"] = "t"
    with pytest.raises(ConfigError, match="without --no-trace"):
        await fit_judge([run], kind="hidden", source=StateSource(TellingStates(1.0), (12,)))


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
    parts = Parts(extensions=Extensions(judge=judge))
    config = preset("vote_first", **{"widths": (2,), **fields})
    with pytest.raises(ConfigError, match=why):
        await solve("2 + 2?", config, model=connect(), parts=parts)
    assert mock.requests() == []


async def test_a_graph_with_a_judge_runs_without_it_too(connect):
    """A form offers every strategy: the judge is there for those that ask for weights."""
    graph = build_graph(connect(), extensions=Extensions(judge=judge_of(model="mock-model")))
    config = preset("majority", widths=(2,), max_tokens=64)
    state = await graph.ainvoke({"problem": "2 + 2?"}, context=config)
    assert "judge" not in state["record"]
    assert not any("weight" in draft for draft in state["drafts"])


async def test_a_judge_is_handed_to_a_node_or_a_tool(connect):
    """Beside their steps; two of them are refused."""
    mine, other = judge_of(model="mock-model"), judge_of(model="another")
    steps = Extensions(judge=other)
    for make in (pdr_node, as_tool):
        assert make(model=connect(), judge=mine)
        with pytest.raises(ConfigError, match="name two judges"):
            make(model=connect(), judge=mine, extensions=steps)
        with pytest.raises(ConfigError, match="asks for weights"):
            make(preset("majority"), model=connect(), judge=mine)


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
    other = forgetful("solve", "1?", "--preset", "pdr", "--judge", judge)
    assert other.code == 2
    assert "asks for weights" in other.err


def test_an_evaluation_weighs_by_a_judge(forgetful, mock, tmp_path, monkeypatch):
    """In the arms that ask for weights; the header has its digest, and another is refused."""
    mock.configure(answers=["7", "8"])
    (tmp_path / "data.jsonl").write_text('{"id": "1", "problem": "1?", "answer": 7}\n')
    judges = {name: tmp_path / f"{name}.json" for name in ("mine", "other")}
    judge_of(model="mock-model").save(judges["mine"])
    judge_of(2.0, model="mock-model").save(judges["other"])
    run = tmp_path / "run"
    words = ["eval", str(tmp_path / "data.jsonl"), "--out", str(run), "--max-tokens", "64"]
    arms = ["--arm", "vote_first@widths=2,2;distiller=trusted", "--arm", "majority@widths=2"]
    done = forgetful(*words, *arms, "--judge", str(judges["mine"]))
    assert done.code == 0, done.err
    header = json.loads((run / "run.json").read_text())
    assert header["judge"] == judge_of(model="mock-model").digest
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    weighed = {each["arm"]: ["weight" in draft for draft in each["drafts"]] for each in samples}
    assert all(weighed["vote_first@widths=2,2;distiller=trusted"])
    assert not any(weighed["majority@widths=2"])
    other = forgetful(*words, *arms, "--judge", str(judges["other"]))
    assert other.code == 2
    assert "holds a run with another --judge" in other.err
    useless = forgetful(*words, "--arm", "majority", "--judge", str(judges["mine"]))
    assert useless.code == 2
    assert "no arm asks for weights" in useless.err
    monkeypatch.setenv("PDR_JUDGE", str(judges["mine"]))
    assert forgetful(*words, *arms).code == 0


def test_drafts_are_sampled_read_and_judged(forgetful, mock, tmp_path):
    """By one command; repeated, it samples and reads nothing anew."""
    mock.configure(answers=["7", "7", "8", "9"], embeddings="vllm")
    lines = [json.dumps({"id": str(n), "problem": f"{n}?", "answer": 7}) for n in range(24)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    judge = str(tmp_path / "judge.json")
    words = (
        "judge",
        "fit",
        "--data",
        str(tmp_path / "data.jsonl"),
        "--drafts",
        "4",
        "--out",
        judge,
    )
    words += ("--kind", "hidden", "--judge-url", mock.url, "--folds", "3", "--max-tokens", "64")
    fitted = forgetful(*words)
    assert fitted.code == 0
    assert "hidden state" in fitted.out
    served = mock.stats()
    assert (served["calls"], served["embeddings"]) == (96, 96)
    assert forgetful(*words).out == fitted.out
    assert mock.stats()["embeddings"] == served["embeddings"]
    vote = ("--preset", "vote_first", "--widths", "2", "--judge", judge)
    solved = forgetful("solve", "1?", *vote, "--judge-url", mock.url)
    assert solved.code == 0
    homeless = forgetful("solve", "1?", *vote)
    assert homeless.code == 2
    assert "--judge-weights" in homeless.err
    scored = forgetful("judge", "score", str(tmp_path / "judge-drafts"), "--judge", judge)
    assert scored.code == 2
    assert "--judge-url" in scored.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("fit", "x"), "needs --out FILE"),
        (("score", "x"), "needs --judge FILE"),
        (("fit", "x", "--out", "y", "--judge", "z"), "takes no --judge"),
        (("fit", "x", "--out", "y"), "holds no run.json"),
        (("fit", "--out", "y"), "needs a RUN"),
        (("fit", "x", "--data", "d", "--out", "y"), "not both"),
        (("score", "--data", "d", "--judge", "y"), "takes no --data"),
        (("fit", "x", "--out", "y", "--kind", "oracle"), "kind"),
        (("fit", "x", "--out", "y", "--layer", "0"), "layer"),
    ],
)
def test_what_the_command_lacks_is_said(forgetful, words, why):
    """In one sentence."""
    done = forgetful("judge", *words)
    assert done.code != 0
    assert why in done.err

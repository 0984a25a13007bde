"""A judge that asks the model about each draft: fitted with the question, and used with it."""

import json
import math

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge_fit import DraftAsker, SelfChecker, fit_judge
from pdr_graph.eval.records import read_run
from pdr_graph.judge import SELF_CHECK, Evidence, SignalsJudge, UnweighedError, read_judge
from pdr_graph.judge.adapter import AdapterJudge
from tests.fakes import PROMPTS, make_draft

QUESTION = PROMPTS.templates["self_check"]
ASKED = "Is this solution correct?"


def likely(chance: float) -> dict[str, float]:
    return {"Yes": math.log(chance), "No": math.log(1 - chance)}


def knowing(**more: object) -> dict[str, object]:
    """Return the rules of a model that is mostly wrong, and knows which drafts are right."""
    right = {"contains": f"boxed{{7}}.\n\n{ASKED}", "content": "Yes", "top": likely(0.8)}
    wrong = {"contains": ASKED, "content": "No", "top": likely(0.3)}
    return {"answers": ["7", "8", "8"], "replies": [right, wrong], **more}


@pytest.fixture
def run(forgetful, mock, tmp_path):
    """An evaluation of that model, with its texts."""
    mock.configure(**knowing())
    rows = [json.dumps({"id": str(n), "problem": f"{n}?", "answer": 7}) for n in range(30)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    arm = "vote_first@widths=6;max_tokens=64"
    folder = tmp_path / "run"
    forgetful("eval", str(tmp_path / "data.jsonl"), "--arm", arm, "--out", str(folder))
    mock.reset()
    mock.configure(**knowing())
    return folder


def test_from_records_to_a_judge_that_asks(forgetful, mock, run, tmp_path):
    """It beats the vote where the model knows; in a run its question is in the ledger."""
    judge = tmp_path / "judge.json"
    fitted = forgetful(
        "judge", "fit", str(run), "--with", "self_check", "--out", str(judge), "--json"
    )
    assert fitted.code == 0, fitted.err
    report = json.loads(fitted.out)
    assert report["main"] == "signals and self-check"
    assert report["verdict"].startswith("Better than the vote")
    assert report["discrimination"][SELF_CHECK]["within"]["value"] == 1
    stats = mock.stats()
    cost = f"{stats['calls']:,} calls, {stats['prompt_tokens'] + stats['completion_tokens']:,} tok"
    assert any(cost in note for note in report["notes"])
    made = read_judge(judge)
    assert isinstance(made, SignalsJudge)
    assert made.question == QUESTION
    mock.reset()
    mock.configure(**knowing())
    words = ("--preset", "vote_first", "--widths", "4", "--max-tokens", "64", "--seed", "1")
    solved = forgetful("solve", "1?", *words, "--judge", str(judge), "--json")
    assert solved.code == 0, solved.err
    ledger, stats = json.loads(solved.out)["ledger"], mock.stats()
    assert (ledger["calls"], stats["calls"]) == (8, 8)
    assert ledger["b_total"] == stats["prompt_tokens"] + stats["completion_tokens"]


def test_a_judge_that_asks_is_measured_on_other_runs(forgetful, mock, run, tmp_path):
    """The model at the endpoint is asked about each draft, as in a run."""
    judge = tmp_path / "judge.json"
    judge_of(scales=(0.5,)).save(judge)
    scored = forgetful("judge", "score", str(run), "--judge", str(judge), "--json")
    assert scored.code == 0, scored.err
    report = json.loads(scored.out)
    assert report["verdict"].startswith("Better than the vote")
    assert report["discrimination"]["judge"]["within"]["value"] == 1
    assert report["notes"][0].startswith(f"asking about the drafts took {mock.stats()['calls']} ")


def test_an_adapter_is_measured_on_other_runs(forgetful, mock, run, tmp_path):
    """The server is asked for it by its name, and one that lacks it is told how to serve it."""
    judge = tmp_path / "judge.json"
    made = AdapterJudge(
        model="mock-model", adapter="judge", question=QUESTION, scale=2.0, shift=0.0
    )
    made.save(judge)
    words = ("judge", "score", str(run), "--judge", str(judge), "--json")
    refused = forgetful(*words)
    assert refused.code == 2
    assert "--lora-modules judge=FOLDER/adapter" in refused.err
    assert mock.requests() == []
    mock.configure(**knowing(model=["mock-model", "judge"]))
    scored = forgetful(*words, "--model", "mock-model")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["discrimination"]["judge"]["within"]["value"] == 1
    assert {each["body"]["model"] for each in mock.requests()} == {"judge"}


async def test_what_the_records_hold_is_not_asked_again(mock, connect, run):
    """A run that was weighed by such a judge has the signal of each draft."""
    found = read_run(run)
    for sample in found.samples:
        for draft in sample["drafts"]:
            draft["signals"][SELF_CHECK] = 0.8 if draft["correct"] else 0.3
    fit = await fit_judge([found], checker=SelfChecker(DraftAsker(connect()), QUESTION))
    assert mock.requests() == []
    assert fit.report.discrimination[SELF_CHECK].within.value == 1


async def test_a_server_that_tells_too_little_is_named(mock, connect, run):
    """One call finds it out, and no figure is made up."""
    mock.configure(tells_alternatives=False)
    with pytest.raises(ConfigError, match="asked about any draft: its server does not tell"):
        await fit_judge([read_run(run)], checker=SelfChecker(DraftAsker(connect()), QUESTION))
    assert len(mock.requests()) <= 6


async def test_another_model_is_not_asked(mock, connect, run):
    """It would say something else."""
    found = read_run(run)
    found.header["model"] = "other"
    with pytest.raises(ConfigError, match="would be asked about them"):
        await fit_judge([found], checker=SelfChecker(DraftAsker(connect()), QUESTION))


def judge_of(**fields: object) -> SignalsJudge:
    plain = {"model": "mock-model", "features": (SELF_CHECK,), "question": QUESTION, "bias": 0.0}
    numbers = {"means": (0.0,), "scales": (1.0,), "weights": (1.0,)}
    return SignalsJudge(**{**plain, **numbers, **fields})


async def test_the_draft_keeps_what_the_model_said(mock, connect):
    """And a draft that nobody can be asked about has no weight."""
    mock.configure(**knowing())
    draft = make_draft(0, "8")
    draft["signals"] = {"logprob": -1.0}
    weight = await judge_of().weigh(draft, Evidence("1?", "1?", connect()))
    assert weight == pytest.approx(0.3)
    assert draft["signals"] == {"logprob": -1.0, SELF_CHECK: pytest.approx(0.3)}
    mock.configure(tells_alternatives=False)
    # What it keeps is not asked again.
    assert await judge_of().weigh(draft, Evidence("1?", "1?", connect())) == weight
    del draft["signals"][SELF_CHECK]
    with pytest.raises(UnweighedError, match="likeliest tokens"):
        await judge_of().weigh(draft, Evidence("1?", "1?", connect()))


@pytest.mark.parametrize("fields", [{"question": None}, {"features": ("logprob",)}])
def test_a_question_goes_with_its_feature(fields):
    """One without the other is a file that was tampered with."""
    with pytest.raises(ValueError, match="a question goes with the feature"):
        judge_of(**fields)


@pytest.mark.parametrize("words", [("fit", "--kind", "best"), ("score",)])
def test_the_option_goes_with_signals(forgetful, words):
    """Elsewhere it would do nothing."""
    place = "--judge" if words[0] == "score" else "--out"
    ran = forgetful("judge", words[0], "x", *words[1:], place, "y", "--with", "self_check")
    assert ran.code == 2
    assert "--with goes with judge fit --kind signals" in ran.err


def test_a_limit_that_nothing_obeys_is_refused(cli):
    """Recorded runs are read whole, but by an adapter."""
    ran = cli("judge", "fit", "RUN", "--out", "JUDGE", "--limit", "3")
    assert ran.code == 2
    assert "--limit goes with --data, or with judge fit --kind adapter" in ran.err


def test_an_adapter_needs_a_folder_of_weights(forgetful, tmp_path):
    """The sentence names the option, before anything is loaded."""
    words = ("judge", "fit", str(tmp_path), "--kind", "adapter", "--out", str(tmp_path / "o"))
    ran = forgetful(*words)
    assert ran.code == 2
    assert "name the model's folder by --judge-weights" in ran.err
    ran = forgetful(*words, "--judge-weights", str(tmp_path / "none"))
    assert "none' is none" in ran.err


def test_an_evaluation_goes_on_after_a_prompt_was_added(forgetful, run, tmp_path):
    """One that the record does not know is of a later version; one that changed is refused."""
    header = json.loads((run / "run.json").read_text())
    del header["prompts_sha256"]["prefer"]
    (run / "run.json").write_text(json.dumps(header))
    words = ("--arm", "vote_first@widths=6;max_tokens=64", "--out", str(run))
    again = forgetful("eval", str(tmp_path / "data.jsonl"), *words)
    assert again.code == 0, again.err
    header["prompts_sha256"]["draft"] = "0123456789abcdef"
    (run / "run.json").write_text(json.dumps(header))
    again = forgetful("eval", str(tmp_path / "data.jsonl"), *words)
    assert again.code == 2
    assert "other prompts (draft" in again.err

"""`pdr-graph eval` against an endpoint of known accuracy."""

import json
import signal
from pathlib import Path

import pytest

from pdr_graph.config import PRESETS
from pdr_graph.eval.records import read_run
from tests.cli.conftest import wait_for
from tests.mock_endpoint import MockEndpoint

ARMS = ["--arm", "long_cot", "--arm", "narrow=pdr@widths=3,2", "--arm", "majority@widths=3"]
SHORT = ["--max-tokens", "256", "--kappa", "256", "--solution-tokens", "128"]
CALLS = 1 + (3 + 1 + 2 + 1 + 1) + 3
"""Of one sample of each arm."""


def timeless(sample: dict) -> dict:
    """Return a record without what differs between runs."""
    rows = [{**row, "seconds": 0} for row in sample["ledger"]["rows"]]
    return {
        **sample,
        "seconds": 0,
        "thread_id": "",
        "ledger": {**sample["ledger"], "rows": rows},
    }


def records(out: Path) -> list[dict]:
    """Return the records of a run in a fixed order, without times."""
    return sorted(
        map(timeless, read_run(out).samples),
        key=lambda each: (each["arm"], each["problem_id"], each["sample"]),
    )


def test_accuracy_and_ledger_are_the_endpoints(forgetful, quiz, mock, tmp_path):
    """Accuracy is what the endpoint was told to answer, and tokens are what it counted."""
    out = tmp_path / "runs" / "first"
    done = forgetful(
        "eval", str(quiz.file), *ARMS, *SHORT, "--samples", "2", "--out", str(out), "--json"
    )
    assert done.code == 0, done.err
    arms = done.json()["arms"]
    assert list(arms) == ["long_cot", "narrow", "majority@widths=3"]
    for arm in arms.values():
        assert arm["samples"] == 10
        assert arm["accuracy"] == pytest.approx(quiz.accuracy)
    served, samples = mock.stats(), read_run(out).samples
    assert served["calls"] == 10 * CALLS
    ledgers = [sample["ledger"] for sample in samples]
    for name in ("prompt_tokens", "completion_tokens", "calls"):
        assert sum(ledger[name] for ledger in ledgers) == served[name]
    assert sum(ledger["b_total"] for ledger in ledgers) == (
        served["prompt_tokens"] + served["completion_tokens"]
    )
    for sample in samples:
        assert sample["correct"] == (sample["problem_id"] in quiz.right)
        assert sample["reason"] == ("correct" if sample["correct"] else "wrong")


def test_records_tell_drafts_and_workspaces(forgetful, quiz, tmp_path):
    """Every draft of every round is judged, and so is every workspace."""
    out = tmp_path / "run"
    assert forgetful("eval", str(quiz.file), *ARMS, *SHORT, "--out", str(out), "--quiet").code == 0
    for sample in read_run(out).samples:
        rounds = [(draft["round"], draft["index"]) for draft in sample["drafts"]]
        if sample["arm"] == "narrow":
            assert rounds == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
            assert [each["round"] for each in sample["workspaces"]] == [1, 2]
            assert {each["holds_correct"] for each in sample["workspaces"]} == {sample["correct"]}
            assert sample["workspaces"][0]["sources"] == [0, 1, 2]
            assert sample["finish"] == "refine"
            assert sample["rounds_run"] == 2
        elif sample["arm"] == "long_cot":
            assert (rounds, sample["rounds_run"]) == ([], 0)
        else:
            assert rounds == [(1, 0), (1, 1), (1, 2)]
            assert (sample["workspaces"], sample["finish"]) == ([], "vote")
        assert {draft["correct"] for draft in sample["drafts"]} <= {sample["correct"]}


def test_samples_draw_seeds_of_their_own(forgetful, quiz, tmp_path, mock):
    """No two samples of a run have the same seed; a repeated run has the same seeds."""
    for name in ("one", "two"):
        words = ["eval", str(quiz.file), *ARMS, *SHORT, "--samples", "2", "--seed", "5"]
        assert forgetful(*words, "--out", str(tmp_path / name), "--quiet").code == 0
    assert records(tmp_path / "one") == records(tmp_path / "two")
    seeds = [sample["seed"] for sample in read_run(tmp_path / "one").samples]
    assert len(set(seeds)) == len(seeds)


def test_what_is_finished_is_not_asked_again(forgetful, quiz, mock, tmp_path):
    """On a finished run, the same command makes no call and shows the same figures."""
    words = ["eval", str(quiz.file), *ARMS, *SHORT, "--out", str(tmp_path / "run"), "--json"]
    first = forgetful(*words)
    calls = mock.stats()["calls"]
    again = forgetful(*words)
    assert (again.code, again.json()) == (0, first.json())
    assert mock.stats()["calls"] == calls


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--samples", "2"], "--samples (1, now 2)"),
        (["--seed", "9"], "--seed (0, now 9)"),
        (["--arm", "sr@widths=1"], "other arms"),
        (["--kappa", "300"], "kappa (256, now 300) in arm"),
        (["--limit", "3"], "other data"),
    ],
)
def test_a_changed_command_is_refused(forgetful, quiz, mock, tmp_path, change, named):
    """The sentence names the difference, and no call is made."""
    words = ["eval", str(quiz.file), *ARMS, *SHORT, "--out", str(tmp_path / "run")]
    assert forgetful(*words, "--quiet").code == 0
    calls = mock.stats()["calls"]
    changed = forgetful(*words, *change)
    assert changed.code == 2
    assert named in changed.err
    assert mock.stats()["calls"] == calls


def test_another_model_is_refused(forgetful, quiz, mock, tmp_path):
    """A run that began with one model does not go on with another."""
    words = ["eval", str(quiz.file), "--arm", "long_cot", *SHORT, "--out", str(tmp_path / "run")]
    assert forgetful(*words, "--quiet").code == 0
    mock.configure(model="other")
    changed = forgetful(*words)
    assert changed.code == 2
    assert "another model ('mock-model', now 'other')" in changed.err


def test_a_sample_that_fails_is_recorded_and_asked_again_on_request(
    forgetful, quiz, mock, tmp_path
):
    """A refused problem costs one sample; --retry-failed runs it again."""
    refused = {"match": {"contains": "Question q3:"}, "status": 400}
    mock.configure(status=[refused])
    words = ["eval", str(quiz.file), "--arm", "long_cot", *SHORT, "--out", str(tmp_path / "run")]
    first = forgetful(*words, "--json")
    assert first.code == 0, first.err
    assert "failed: long_cot, problem q3, sample 0: HTTP 400" in first.err
    arm = first.json()["arms"]["long_cot"]
    assert (arm["samples"], arm["failed"], arm["correct"]) == (5, 1, 1)
    mock.configure(status=[])
    calls = mock.stats()["calls"]
    again = forgetful(*words, "--json")
    assert (mock.stats()["calls"], again.json()) == (calls, first.json())
    retried = forgetful(*words, "--retry-failed", "--json").json()["arms"]["long_cot"]
    assert mock.stats()["calls"] == calls + 1
    assert (retried["samples"], retried["failed"], retried["correct"]) == (5, 0, 2)


def test_an_endpoint_that_refuses_everything_stops_the_run(forgetful, mock, tmp_path, quiz):
    """If no sample succeeds, the endpoint is to blame and no failure is recorded."""
    mock.configure(status=[{"status": 400}])
    out = tmp_path / "run"
    words = ["eval", str(quiz.file), "--arm", "long_cot", *SHORT, "--samples", "2"]
    stopped = forgetful(*words, "--out", str(out))
    assert stopped.code == 1
    assert "10 samples failed one after another" in stopped.err
    assert "0 of 10 samples are recorded; the same command continues" in stopped.err
    assert read_run(out).samples == []


@pytest.mark.redis
def test_a_signal_drains_and_the_same_command_goes_on(spawn, stored, quiz, mock, tmp_path):
    """Ctrl-C waits for calls in flight and says how to go on; no call is made twice."""
    out = tmp_path / "run"
    words = ["eval", str(quiz.file), *ARMS, *SHORT, "--out", str(out)]
    mock.configure(delay_s=0.6)
    process = spawn(*words)
    wait_for(mock, in_flight=3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: waiting for calls in flight" in err
    assert "of 15 samples are recorded; the same command continues with the rest" in err
    assert mock.stats()["aborted"] == 0
    mock.configure(delay_s=0.0)
    done = stored(*words, "--json")
    assert done.code == 0, done.err
    assert len(read_run(out).samples) == 15
    assert mock.stats()["calls"] == 5 * CALLS


@pytest.mark.redis
def test_processes_share_a_run(spawn, quiz, mock, tmp_path):
    """Two processes on one folder run every sample once."""
    out = tmp_path / "run"
    mock.configure(delay_s=0.1)
    words = ["eval", str(quiz.file), *ARMS, *SHORT, "--samples", "2", "--out", str(out), "--json"]
    processes = [spawn(*words) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = (out / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 30
    assert len(read_run(out).samples) == 30
    assert mock.stats()["calls"] == 10 * CALLS
    assert list((out / "trace").glob("*.jsonl"))
    shown = [json.loads(out) for out, _ in outputs]
    assert shown[0] == shown[1]


SMALL = {
    "long_cot": "long_cot",
    "sr": "sr@widths=1,1",
    "sr_error_analysis": "sr_error_analysis@widths=1,1",
    "pdr": "pdr@widths=4,3",
    "pdr_adaptive": "pdr_adaptive@widths=3,3;stop_on_consensus=none",
    "majority": "majority@widths=4",
    "vote_first": "vote_first@widths=3,2;stop_on_consensus=none",
    "rsa": "rsa@widths=3,3,3;k=2",
    "pacore": "pacore@widths=4,2",
    "genselect": "genselect@widths=4",
    "tournament": "tournament@widths=5,3;k=2",
}
DISTILLERS = (
    *("top_k", "top_k_per_sample", "random_k", "answers", "consensus", "critique"),
    *("evidence", "contested", "tail"),
)
ORACLES = ("oracle_correct", "oracle_wrong")


def arms_of(*specs: str) -> list[str]:
    """Return the arguments that name arms."""
    return [word for spec in specs for word in ("--arm", spec)]


def write_one(tmp_path, mock: MockEndpoint, *answers: str) -> str:
    """Write one problem with the answer 7; a call's seed decides which of the answers it gets."""
    mock.configure(replies=[{"contains": "Which number?", "answers": list(answers)}])
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"id": "p", "problem": "Which number?", "answer": 7}) + "\n")
    return str(file)


@pytest.mark.parametrize("budget", [["--b-seq", "1600"], ["--b-total", "4000"]])
def test_what_is_derived_is_what_every_preset_is_allotted(forgetful, mock, tmp_path, budget):
    """The ledger has the calls and nominal budgets that the header promised."""
    assert set(SMALL) == set(PRESETS)
    specs = [f"{name}={spec}" for name, spec in SMALL.items()]
    specs += [f"{name}=pdr@widths=4,3;distiller={name}" for name in (*DISTILLERS, *ORACLES)]
    file = write_one(tmp_path, mock, "7", "8", "9")
    words = ["eval", file, *arms_of(*specs), *budget, "--kappa", "256", "--solution-tokens", "64"]
    done = forgetful(*words, "--out", str(tmp_path / "run"), "--json")
    assert done.code == 0, done.err
    run = read_run(tmp_path / "run")
    most = int(budget[1])
    for sample in run.samples:
        derived, ledger = run.header["arms"][sample["arm"]]["budget"], sample["ledger"]
        assert (sample["arm"], ledger["b_seq_nominal"], ledger["b_total_nominal"]) == (
            sample["arm"],
            derived["b_seq_nominal"],
            derived["b_total_nominal"],
        )
        assert ledger["calls"] == derived["total_calls"]
        spent = ledger["b_seq_nominal" if budget[0] == "--b-seq" else "b_total_nominal"]
        assert 0.9 * most < spent <= most
        assert f"{sample['arm']}: " in done.err
        assert derived["derived"] in done.err


def test_oracles_show_how_far_the_drafts_anchor(forgetful, mock, tmp_path):
    """A workspace admits only correct drafts, or only wrong ones, and its sources are recorded."""
    file = write_one(tmp_path, mock, "7", "8", "9")
    specs = [f"{name}=pdr@widths=8;k=2;distiller={name}" for name in ORACLES]
    out = tmp_path / "run"
    words = ["eval", file, *arms_of(*specs), "--max-tokens", "200", "--kappa", "256"]
    assert forgetful(*words, "--samples", "3", "--out", str(out), "--quiet").code == 0
    for sample in read_run(out).samples:
        right = {draft["index"] for draft in sample["drafts"] if draft["correct"]}
        [workspace] = sample["workspaces"]
        wanted = right if sample["arm"] == "oracle_correct" else set(range(8)) - right
        assert set(workspace["sources"]) <= wanted
        assert len(workspace["sources"]) == min(2, len(wanted))
        assert workspace["holds_correct"] == (sample["arm"] == "oracle_correct" and bool(wanted))


def test_arms_may_share_their_first_drafts(forgetful, mock, tmp_path):
    """Each call is made once and charged to every arm; their samples are marked as dependent."""
    file = write_one(tmp_path, mock, "7", "8", "9")
    specs = ["wide=majority@widths=5", "narrow=majority@widths=3", "long_cot"]
    out = tmp_path / "run"
    words = ["eval", file, *arms_of(*specs), "--max-tokens", "200", "--share-first-round"]
    assert forgetful(*words, "--out", str(out), "--quiet").code == 0
    by_arm = {sample["arm"]: sample for sample in read_run(out).samples}
    drafts = {
        name: [draft["answer"] for draft in sample["drafts"]] for name, sample in by_arm.items()
    }
    assert drafts["narrow"] == drafts["wide"][:3]
    assert {name: each["dependent"] for name, each in by_arm.items()} == {
        "wide": True,
        "narrow": True,
        "long_cot": False,
    }
    assert [by_arm[name]["ledger"]["calls"] for name in ("wide", "narrow")] == [5, 3]
    assert mock.stats()["calls"] == 5 + 1


def test_procedural_problems_are_scored_by_their_task(forgetful, mock, tmp_path):
    """The header names the rule and the version of the package."""
    mock.configure(replies=[{"contains": "", "answers": ["1", "2", "3"]}])
    out = tmp_path / "run"
    words = ["eval", "reasoning-gym:chain_sum?size=1&seed=5", "--arm", "long_cot"]
    assert forgetful(*words, "--max-tokens", "99", "--out", str(out), "--quiet").code == 0
    run = read_run(out)
    assert run.header["data"]["num_problems"] == 1
    assert "scorer of chain_sum" in run.header["data"]["scored_by"]
    assert "reasoning-gym" in run.header["versions"]
    for sample in run.samples:
        assert sample["correct"] == (sample["answer"] == sample["gold"])


def test_a_narrow_terminal_sees_arms_and_their_figures(forgetful, mock, tmp_path, monkeypatch):
    """It has fewer columns, and whole names."""
    monkeypatch.setenv("COLUMNS", "40")
    file = write_one(tmp_path, mock, "7")
    words = ["eval", file, *arms_of("long_cot", "vote=majority@widths=2"), "--max-tokens", "99"]
    done = forgetful(*words, "--out", str(tmp_path / "run"), "--quiet")
    assert [line.split()[0] for line in done.out.splitlines()[2:4]] == ["long_cot", "vote"]
    assert "100.0%" in done.out
    assert max(map(len, done.out.splitlines())) <= 40


REFUSED = {
    "sharing without two alike": (["--share-first-round"], "no two arms with drafts are alike"),
    "mixed kinds of answer": (["--arm", "sr@answer=choice"], "arms differ in their kind of answer"),
    "too little for the calls": (["--b-seq", "9"], "leaves arm 'long_cot' 9 tokens for each of"),
    "a folder that is a file": (["--out", "one.jsonl"], "--out 'one.jsonl' cannot be written;"),
    "an arm's malformed sweep": (["--sweep", "kappa"], "sweep 'kappa' is not FIELD=VALUE,VALUE…"),
    "sharing on a cluster": (
        ["--arm", "a=majority@widths=2", "--arm", "b=majority@widths=3", "--share-first-round",
         "--ray", "local"],
        "shares drafts within one process, and --ray has several",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_any_call(forgetful, mock, tmp_path, case):
    """There is one sentence, and the exit code is 2."""
    words, said = REFUSED[case]
    file = write_one(tmp_path, mock, "7")
    asked = ["eval", file, "--arm", "long_cot", "--out", str(tmp_path / "run"), "--quiet", *words]
    done = forgetful(*asked)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert mock.stats()["calls"] == 0


def test_a_window_that_is_too_small_is_refused_before_any_call(forgetful, mock, tmp_path):
    """The workspace counts only for arms that have one."""
    file = write_one(tmp_path, mock, "7")
    mock.configure(max_model_len=500)
    words = ["eval", file, "--max-tokens", "200", "--kappa", "256", "--solution-tokens", "64"]
    out = ["--out", str(tmp_path / "run"), "--quiet"]
    refused = forgetful(*words, *out, *arms_of("pdr@widths=2"))
    assert refused.code == 2
    assert "arm 'pdr@widths=2', problem 'p': a call needs up to" in refused.err
    assert mock.stats()["calls"] == 0
    assert forgetful(*words, *out, *arms_of("majority@widths=2")).code == 0

"""`pdr-graph eval` on every preset: what was derived is what is allotted; and more options."""

import json

import pytest

from pdr_graph.eval.records import read_run
from pdr_graph.strategies import PRESETS
from tests.mock_endpoint import MockEndpoint

SMALL = {
    "long_cot": "long_cot",
    "sr": "sr@widths=1,1",
    "sr_error_analysis": "sr_error_analysis@widths=1,1",
    "pdr": "pdr@widths=4,3",
    "pdr_adaptive": "pdr_adaptive@widths=3,3;stop_on_consensus=none",
    "majority": "majority@widths=4",
    "rsa": "rsa@widths=3,3,3;k=2",
    "pacore": "pacore@widths=4,2",
    "genselect": "genselect@widths=4",
    "tournament": "tournament@widths=5,3;k=2",
}
DISTILLERS = ("top_k", "top_k_per_sample", "random_k", "answers", "consensus", "critique")
ORACLES = ("oracle_correct", "oracle_wrong")


def arms_of(*specs: str) -> list[str]:
    """Return the words that name arms."""
    return [word for spec in specs for word in ("--arm", spec)]


def write_one(tmp_path, mock: MockEndpoint, *answers: str) -> str:
    """Write one problem whose right answer is 7; calls answer one of these, by their seed."""
    mock.configure(replies=[{"contains": "Which number?", "answers": list(answers)}])
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"id": "p", "problem": "Which number?", "answer": 7}) + "\n")
    return str(file)


@pytest.mark.parametrize("budget", [["--b-seq", "1600"], ["--b-total", "4000"]])
def test_what_is_derived_is_what_every_preset_is_allotted(forgetful, mock, tmp_path, budget):
    """Calls and nominal budgets of the ledger are those that the header foretold."""
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
    """Each workspace holds right answers only, or wrong ones only, and its sources are told."""
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
    """Asked for once, in every arm's ledger, and marked; who shares nothing is not marked."""
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
    """The header says by which rule, and which version made them."""
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
    """Columns are left out before names are."""
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
    "a folder that is a file": (["--out", "one.jsonl"], "--out 'one.jsonl' cannot be made: Not a"),
    "an arm's malformed sweep": (["--sweep", "kappa"], "sweep 'kappa' is not FIELD=VALUE,VALUE…"),
    "sharing on a cluster": (
        ["--arm", "a=majority@widths=2", "--arm", "b=majority@widths=3", "--share-first-round",
         "--ray", "local"],
        "shares drafts within one process, and --ray has several",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_before_any_call(forgetful, mock, tmp_path, case):
    """In one sentence, with exit code 2."""
    words, said = REFUSED[case]
    file = write_one(tmp_path, mock, "7")
    asked = ["eval", file, "--arm", "long_cot", "--out", str(tmp_path / "run"), "--quiet", *words]
    done = forgetful(*asked)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert mock.stats()["calls"] == 0

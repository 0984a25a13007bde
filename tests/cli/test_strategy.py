"""Which strategy a command runs: what is typed, the environment, `.env`, our defaults."""

import json

import pytest

from tests.cli.conftest import SMALL

QUICK = ("--max-tokens", "64", "--json")


def test_plain_solve_is_the_recommended_preset(forgetful):
    """Widths, distiller, finish and kappa alone mean the paper's, as they always did."""
    assert forgetful("solve", "1?", *QUICK).json()["preset"] == "vote_first"
    paper = forgetful("solve", "1?", *SMALL, *QUICK)
    assert paper.json()["preset"] == "pdr@widths=3,2"


def test_answers_without_a_vote_are_the_papers(forgetful):
    """It is said in one line."""
    done = forgetful("solve", "Write.", "--answer", "text", "--widths", "2", *QUICK)
    assert "cannot be voted on" not in done.err  # the widths mean the paper's anyway
    done = forgetful("solve", "Write.", "--answer", "text", *QUICK)
    assert done.json()["preset"] == "pdr"
    assert done.err.count("answers of kind text cannot be voted on: the preset is pdr") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--preset", "long_cot", "--widths", "4"), "has no rounds of drafts, and widths 4"),
        (("--preset", "majority", "--distiller", "trusted", "--finish", "refine"), "judge trusts"),
        (("--judge", "absent.json"), "judge 'absent.json' cannot be read"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(forgetful, mock, words, why):
    """With exit code 2, in one sentence, before anything is started."""
    done = forgetful("solve", "1?", *words)
    assert done.code == 2
    assert why in done.err
    assert mock.requests() == []


def test_a_changed_preset_is_not_shown_by_its_bare_name(stored):
    """Neither in the list, nor in the run."""
    stored("solve", "1?", "--preset", "majority", "--widths", "2", "--thread", "changed", *QUICK)
    listed = {run["thread_id"]: run["preset"] for run in stored("threads", "--json").json()}
    assert listed["changed"] == "majority*"
    shown = stored("inspect", "changed")
    assert "preset  majority@widths=2" in shown.out


# ------------------------------------------------------------------------------ the environment


def test_the_environment_sets_the_strategy(forgetful, monkeypatch):
    """What is typed wins; a line says what was taken."""
    monkeypatch.setenv("PDR_PRESET", "majority")
    monkeypatch.setenv("PDR_WIDTHS", "3")
    monkeypatch.setenv("PDR_MAX_TOKENS", "32")
    done = forgetful("solve", "1?", "--max-tokens", "64", "--json")
    assert done.json()["preset"] == "majority@widths=3"
    assert "taken from the environment: PDR_PRESET=majority, PDR_WIDTHS=3\n" in done.err


def test_a_preset_that_is_typed_is_what_it_says(forgetful, monkeypatch):
    """What would make another strategy of it is left out, and named."""
    monkeypatch.setenv("PDR_WIDTHS", "3")
    done = forgetful("solve", "1?", "--preset", "long_cot", *QUICK)
    assert done.json()["preset"] == "long_cot"
    assert "not used by this command: PDR_WIDTHS" in done.err


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (
            "PDR_PRESET",
            "majorty",
            "PDR_PRESET: unknown preset 'majorty'; perhaps 'majority'; known: long_cot",
        ),
        ("PDR_WIDTHS", "8,x", "PDR_WIDTHS: widths"),
        ("PDR_TEMPERATURE", "7", "PDR_TEMPERATURE: temperature"),
    ],
)
def test_a_variable_that_does_not_fit_is_named(forgetful, monkeypatch, name, value, why):
    """By the name under which the user set it."""
    monkeypatch.setenv(name, value)
    done = forgetful("solve", "1?")
    assert done.code == 2
    assert why in done.err


def test_the_file_sets_it_too_but_no_code(forgetful, clean):
    """A file that nobody trusts may choose a preset, not what is imported."""
    (clean / ".env").write_text("PDR_PRESET=majority\nPDR_WIDTHS=2\nPDR_VERIFIER=os:system\n")
    done = forgetful("solve", "1?", *QUICK)
    assert done.json()["preset"] == "majority@widths=2"
    assert "PDR_VERIFIER is ignored" in done.err


def test_unknown_variables_are_told_with_the_nearest(forgetful, monkeypatch):
    """Of the environment and of the file, whatever the command."""
    monkeypatch.setenv("PDR_BASEURL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("PDR_SERVE_PROT", "1")
    monkeypatch.setenv("PDR_QQQ", "1")
    done = forgetful("solve", "1?", *QUICK)
    assert "PDR_BASEURL is no setting; did you mean PDR_BASE_URL?" in done.err
    assert "PDR_SERVE_PROT is no setting; did you mean PDR_SERVE_PORT?" in done.err
    assert "PDR_QQQ is no setting\n" in done.err


def test_a_resumed_run_keeps_what_it_recorded(stored, monkeypatch):
    """The environment is for new runs."""
    stored("solve", "1?", "--thread", "kept-by-strategy", *QUICK)
    monkeypatch.setenv("PDR_PRESET", "majority")
    done = stored("resume", "kept-by-strategy", "--json")
    assert done.json()["preset"] == "vote_first"


# ------------------------------------------------------------------------------ the window


@pytest.mark.parametrize("words", [(), ("--preset", "pdr"), ("--preset", "genselect")])
def test_plain_solve_follows_a_small_window(forgetful, mock, words):
    """Announced in one line; what is typed stays, and is refused with the arithmetic."""
    mock.configure(max_model_len=2560)
    done = forgetful("solve", "1?", *words, "--json")
    assert done.code == 0
    said = "note: budgets follow the model's context window of 2560 tokens: max_tokens "
    assert sum(line.startswith(said) for line in set(done.err.splitlines())) == 1
    done = forgetful("solve", "1?", *words, "--max-tokens", "4000")
    assert done.code != 0
    assert "max_tokens 4000) and the model's context window is 2560; lower max_tokens" in done.err


def test_a_problem_beyond_the_window_says_so(forgetful, mock):
    """Lower budgets would not help."""
    mock.configure(max_model_len=2560)
    done = forgetful("solve", "word " * 3000)
    assert done.code != 0
    assert "shorten the problem, or serve a larger window" in done.err
    assert "max_tokens" not in done.err


def test_an_evaluation_gives_all_arms_the_same_budgets(forgetful, mock, tmp_path):
    """They are recorded, and the same command goes on with them."""
    mock.configure(max_model_len=2560)
    (tmp_path / "data.jsonl").write_text('{"id": "1", "problem": "1?", "answer": 7}\n')
    words = ["eval", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "run")]
    words += ["--arm", "vote_first", "--arm", "pdr@widths=2", "--arm", "long_cot@max_tokens=99"]
    done = forgetful(*words)
    assert done.code == 0
    assert "budgets follow the model's context window of 2560 tokens" in done.err
    arms = json.loads((tmp_path / "run/run.json").read_text())["arms"]
    budgets = {name: arm["config"]["max_tokens"] for name, arm in arms.items()}
    assert budgets["vote_first"] == budgets["pdr@widths=2"] < 2560 / 2
    assert budgets["long_cot@max_tokens=99"] == 99
    assert arms["pdr@widths=2"]["budget"]["max_tokens"] == budgets["vote_first"]
    assert arms["pdr@widths=2"]["preset"] == "pdr@widths=2"
    assert forgetful(*words).code == 0

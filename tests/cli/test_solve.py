"""`solve` and `resume`, from the words typed to what is printed."""

import json

import pytest

from pdr_graph.cli.solve import command_line
from pdr_graph.servers import default_data_dir, find_weights
from tests.cli.conftest import CALLS, SMALL

FIELDS = {"thread_id", "preset", "answer", "solution", "verdict", "ledger", "seconds"}
ROW_FIELDS = {
    "round",
    "node",
    "calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "failed",
    "aborted",
    "seconds",
    "estimated",
}


def test_json_is_the_result_and_nothing_else(forgetful, mock):
    """With --json standard output is one object, whose counts are those of the server."""
    outcome = forgetful("solve", "What is 6 x 7?", *SMALL, "--thread", "t", "--json")
    result, served = outcome.json(), mock.stats()
    assert outcome.code == 0
    assert set(result) == FIELDS
    assert (result["thread_id"], result["preset"]) == ("t", "pdr@widths=3,2")
    ledger = result["ledger"]
    assert ledger["calls"] == served["calls"] == CALLS
    assert ledger["prompt_tokens"] == served["prompt_tokens"]
    assert ledger["completion_tokens"] == served["completion_tokens"]
    assert [set(row) for row in ledger["rows"]] == [ROW_FIELDS] * 5


@pytest.mark.security
def test_json_is_ascii(forgetful, mock):
    """Whatever a model writes, the JSON acts on no terminal and fits any locale."""
    mock.configure(replies=[{"contains": "x", "content": "né \x1b[2J \u009b \\boxed{∞}"}])
    outcome = forgetful("solve", "x", "--preset", "long_cot", "--json")
    assert outcome.out.isascii()
    assert "\x1b" not in outcome.out
    assert outcome.json()["solution"].startswith("né \x1b[2J \u009b")


def test_people_read_answer_solution_verdict_ledger(forgetful, mock):
    """The result for people names the answer first and the thread last."""
    mock.configure(answers=["42"])
    outcome = forgetful("solve", "x", *SMALL, "--verifier", "consensus", "--thread", "mine")
    lines = outcome.out.splitlines()
    assert lines[0] == "answer  42"
    assert "The answer is \\boxed{42}." in lines
    assert any(line.startswith("verdict  accepted by consensus: ") for line in lines)
    assert any(line.startswith("agreement  2 of 2 drafts") for line in lines)
    assert any(line.startswith("b_total ") and "of all calls" in line for line in lines)
    assert any(line.startswith(f"calls    {CALLS} in ") for line in lines)
    assert lines[-1] == "thread  mine"


def test_an_undecided_verdict_says_why(forgetful):
    """A judge whose reply holds no verdict has decided nothing; that is not `not judged`."""
    out = forgetful("solve", "x", *SMALL, "--verifier", "judge").out
    assert "verdict  undecided by judge: " in out


@pytest.mark.security
def test_model_text_acts_on_nothing(forgetful, mock):
    """Escape sequences of a reply are removed, and rich markup in it is text like any other."""
    content = "[bold]no[/bold] \x1b]0;title\x07\x1b[31mred \\boxed{[red]7[/red]}"
    mock.configure(replies=[{"contains": "x", "content": content}])
    outcome = forgetful("solve", "x", "--preset", "long_cot")
    assert "answer  [red]7[/red]\n" in outcome.out
    assert "[bold]no[/bold] red" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err


def test_progress_in_lines(forgetful, mock):
    """Where standard error is no terminal, each milestone is a line."""
    mock.configure(answers=["42"])
    err = forgetful("solve", "x", *SMALL).err
    assert "round 1: 3 drafts · answers 42 ×3 · " in err
    assert "round 2: 2 drafts · answers 42 ×2 · " in err
    assert "round 2: workspace of " in err


def test_quiet_says_errors_only(forgetful):
    """With --quiet standard error stays empty."""
    assert forgetful("solve", "x", *SMALL, "--quiet").err == ""


@pytest.mark.parametrize(
    ("words", "stdin"),
    [(["x\n y"], None), (["--file", "p.md"], None), ([], "x\n y"), (["-"], "x\n y")],
)
def test_where_the_problem_comes_from(forgetful, mock, clean, words, stdin):
    """The argument, a file and standard input are equal; a byte order mark is dropped."""
    (clean / "p.md").write_bytes(b"\xef\xbb\xbfx\n y")
    assert forgetful("solve", *words, "--preset", "long_cot", stdin=stdin).code == 0
    assert "x\n y" in mock.requests()[0]["body"]["messages"][0]["content"]


def test_options_override_the_preset(forgetful, mock):
    """Only what was given replaces the preset's value; sampling reaches the server."""
    words = ["--preset", "majority", "--widths", "2", "--temperature", "0.3", "--max-tokens", "99"]
    assert forgetful("solve", "x", *words, "--json").json()["preset"] == "majority@widths=2"
    bodies = [each["body"] for each in mock.requests()]
    assert [(each["temperature"], each["max_tokens"]) for each in bodies] == [(0.3, 99)] * 2


def test_own_prompts_and_trace(forgetful, mock, clean):
    """A folder of prompts replaces the built-in ones; the trace holds every call."""
    (clean / "own").mkdir()
    (clean / "own" / "draft.md").write_text("Please: $problem $answer_format")
    words = ["--prompts", "own", "--trace", "calls.jsonl", *SMALL]
    assert forgetful("solve", "x", *words).code == 0
    calls = [json.loads(line) for line in (clean / "calls.jsonl").read_text().splitlines()]
    assert len(calls) == CALLS
    assert calls[0]["prompt"].startswith("Please: x")


@pytest.mark.redis
def test_a_thread_is_used_once(stored, mock):
    """A second `solve` of a thread is refused; `resume` shows the finished run without a call."""
    solved = stored("solve", "x", *SMALL, "--thread", "once", "--json").json()
    again = stored("solve", "y", "--thread", "once")
    assert (again.code, again.out) == (1, "")
    assert (
        "error: thread 'once' already holds a run; `pdr-graph resume once` continues" in again.err
    )
    resumed = stored("resume", "once", "--json").json()
    assert {**resumed, "seconds": 0} == {**solved, "seconds": 0}
    assert mock.stats()["calls"] == CALLS


@pytest.mark.redis
def test_a_refused_run_leaves_its_thread_free(stored):
    """After a request that did not fit the window, the corrected one runs under the same name."""
    assert stored("solve", "x", *SMALL, "--thread", "free", "--max-tokens", "999999").code == 1
    assert stored("solve", "x", *SMALL, "--thread", "free").code == 0


@pytest.mark.redis
def test_resume_refuses_another_config(stored, monkeypatch, mock):
    """A changed option, preset or model is named; an equal one is no change."""
    stored("solve", "x", *SMALL, "--thread", "kept")
    for words in (["--kappa", "300"], ["--widths", "4"], ["--preset", "sr"]):
        outcome = stored("resume", "kept", *words)
        assert outcome.code == 2
        assert f"was started with another {words[0][2:]}" in outcome.err
    assert "unknown preset 'srr'" in stored("resume", "kept", "--preset", "srr").err
    assert stored("resume", "kept", *SMALL, "--preset", "pdr").code == 0
    mock.configure(model="other")
    assert "model ('mock-model', now 'other')" in stored("resume", "kept").err


@pytest.mark.redis
def test_a_failed_run_says_how_to_go_on(stored, mock):
    """A round below its quorum stops the run; the command that is printed asks for the rest."""
    mock.configure(status=[{"match": {"call": call}, "status": 400} for call in (2, 3)])
    failed = stored("solve", "x", *SMALL, "--thread", "half", "--model", "mock-model")
    assert failed.code == 1
    error, way_on = failed.err.splitlines()[-2:]
    assert error.startswith("error: round 1: 1 of 3 drafts succeeded, 2 are needed (2 x HTTP 400")
    assert way_on == "resume with: pdr-graph resume half --model mock-model"
    mock.configure(status=[])
    resumed = stored(*way_on.split()[3:], "--json")
    assert resumed.code == 0
    assert resumed.json()["ledger"]["calls"] == CALLS + 2
    assert "round 1: 3 drafts" in resumed.err


@pytest.mark.security
def test_secrets_are_not_repeated():
    """The command that resumes holds neither the API key nor the password of a URL."""
    given = {"api_key": "hush", "redis_url": "redis://me:hush@host/1", "base_url": "http://h/v1"}
    assert command_line("resume", "a b", given) == (
        "pdr-graph resume 'a b' --checkpoint 'redis://me:***@host/1' --base-url http://h/v1"
    )
    assert command_line("resume", "-x", {}) == "pdr-graph resume -- -x"


@pytest.mark.local
@pytest.mark.redis
def test_solve_with_nothing_configured(cli, data_dir, monkeypatch):
    """A real model answers, a real store keeps the run, and each is announced in a line."""
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    (data_dir / "weights").mkdir(exist_ok=True)
    link = data_dir / "weights" / weights.name
    if not link.exists():
        link.symlink_to(weights)
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    words = ["--widths", "2", "--max-tokens", "16", "--thread", "embedded"]
    outcome = cli("solve", "What is 6 x 7?", *words, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["ledger"]["calls"] == 4
    # A slow machine also says that the model is loading still.
    said = [line for line in outcome.err.splitlines() if " is loading" not in line]
    assert said[0].startswith("no endpoint is configured (--base-url / PDR_BASE_URL): ")
    assert said[0].endswith("widths 2, kappa 384, max_tokens 16, solution_tokens 192")
    assert said[1].startswith("store: embedded Valkey, kept in ")
    assert said[2].startswith("model: SmolLM2-135M-Instruct in llama.cpp at http://127.0.0.1:")
    assert cli("resume", "embedded", "--json").json()["thread_id"] == "embedded"


@pytest.mark.redis
def test_a_run_that_asks_a_person_goes_on_with_the_answer(stored, mock):
    """It stops with the question; the answer makes no call again."""
    words = [*SMALL, "--verifier", "tests.cli.asking:person", "--thread", "asks"]
    waits = stored("solve", "x", *words)
    assert waits.code == 1
    assert "the run waits (it asks: Is the solution good?)" in waits.err
    calls = mock.stats()["calls"]
    own = ["--verifier", "tests.cli.asking:person"]
    again = stored("resume", "asks", *own)
    assert "`pdr-graph resume asks --answer TEXT` continues it" in again.err
    resumed = stored("resume", "asks", "--answer", "yes", *own, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json()["verdict"]["reason"] == "a person said yes"
    assert mock.stats()["calls"] == calls

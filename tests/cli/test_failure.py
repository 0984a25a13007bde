"""Whatever ends a command is one sentence that names the thing and the remedy, and an exit code."""

import pytest
from redis.exceptions import RedisError

from pdr_graph.cli.failure import RankEndedError, RunEndedError, end_of
from pdr_graph.cli.output import Output
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.train.preparation import RankError

CASES = {
    "unknown preset": (
        ["--preset", "pdrr"],
        2,
        "unknown preset 'pdrr'; perhaps 'pdr'; known: long_cot,",
    ),
    "width of 0": (["--widths", "0"], 2, "widths 0: each round needs at least 1 draft"),
    "width that is no number": (["--widths", "8,x"], 2, "widths 'x': input should be a valid"),
    "kappa below one line": (["--kappa", "3"], 2, "kappa '3': a workspace must hold at least one"),
    "unknown distiller": (["--distiller", "zip"], 2, "unknown distiller 'zip'; known: "),
    "wrong model": (["--model", "gpt-0"], 1, "model 'gpt-0' is not served at "),
    "window too small": (["--max-tokens", "999999"], 1, "context window is 131072; lower max_to"),
    "unreachable Redis": (
        ["--checkpoint", "redis://:hush@127.0.0.1:1/0"],
        1,
        "Redis at redis://127.0.0.1:1/0 did not answer",
    ),
    "no such scheme": (["--checkpoint", "http://x"], 2, "'http://x' begins with 'http', it can"),
    "no prompts folder": (["--prompts", "nowhere"], 2, "prompt folder 'nowhere' does not exist"),
    "no tokenizer file": (["--tokenizer", "t.json"], 2, "tokenizer file 't.json' does not exist"),
    "trace in no folder": (["--trace", "a/b"], 2, "--trace 'a/b' cannot be written: No such file"),
    "both problem and file": (["--file", "p.txt"], 2, "the problem is given twice"),
    "unknown option": (["--kapa", "3"], 2, "no such option: --kapa"),
    "option without its value": (["--kappa"], 2, "option '--kappa' requires an argument"),
    "malformed number": (["--max-in-flight", "many"], 2, "max_in_flight 'many': input should be"),
    "key that is no header": (["--api-key", "ключ"], 2, "api_key: an API key holds printable"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence(forgetful, case):
    """Each of them ends with its exit code and one line that says what to do."""
    words, code, sentence = CASES[case]
    outcome = forgetful("solve", "What is 6 x 7?", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert "hush" not in outcome.err
    assert "ключ" not in outcome.err


def test_dead_endpoint(forgetful):
    """A dead endpoint is named, with the option that sets it."""
    outcome = forgetful("solve", "x", "--base-url", "http://127.0.0.1:1/v1")
    assert outcome.code == 1
    assert "no model endpoint answers at http://127.0.0.1:1/v1" in outcome.err
    assert "--base-url" in outcome.err


def test_wrong_api_key(forgetful, mock):
    """A refused key is not shown; the option that sets it is."""
    mock.configure(api_key="right")
    outcome = forgetful("solve", "x", "--api-key", "wrong-key")
    assert outcome.code == 1
    assert "refuses the API key (HTTP 401); set --api-key / PDR_API_KEY" in outcome.err
    assert "wrong-key" not in outcome.err


def test_several_models(forgetful, mock):
    """An endpoint that serves several models has them listed."""
    mock.configure(model=["small", "large"])
    outcome = forgetful("solve", "x")
    assert outcome.code == 2
    assert "serves 2 models (small, large); choose one by --model" in outcome.err


def test_model_without_an_endpoint(forgetful, monkeypatch):
    """A model that nobody serves is not silently replaced by the embedded one."""
    monkeypatch.delenv("PDR_BASE_URL")
    outcome = forgetful("solve", "x", "--model", "big-one")
    assert outcome.code == 2
    assert "no endpoint is named that serves model 'big-one'; set --base-url" in outcome.err


WRONG_ADDRESS = "this is no http address; write it like http://127.0.0.1:8000/v1"
NOWHERE = ["--tokenizer", "t.json"]
EVAL = ["eval", "p.jsonl", "--arm", "long_cot", "--out"]
BEFORE_ANYTHING = {
    "address": (["solve", "x", "--base-url", "localhost:8000"], WRONG_ADDRESS),
    "address of a judge": (["solve", "x", "--judge-url", "nowhere"], WRONG_ADDRESS),
    "address of a resumed run": (["resume", "x", "--base-url", "ftp://x/v1"], WRONG_ADDRESS),
    "address to serve": (["serve", "--base-url", "localhost:8000"], WRONG_ADDRESS),
    "address of an evaluation": ([*EVAL, "o", "--base-url", "localhost:8000"], WRONG_ADDRESS),
    "address to look at": (["doctor", "--base-url", "localhost:8000"], WRONG_ADDRESS),
    "tokenizer": (["solve", "x", *NOWHERE], "tokenizer file 't.json' does not exist"),
    "tokenizer to serve": (["serve", *NOWHERE], "tokenizer file 't.json' does not exist"),
    "tokenizer of a demo": (["demo", *NOWHERE], "tokenizer file 't.json' does not exist"),
    "tokenizer to evaluate": ([*EVAL, "o", *NOWHERE], "tokenizer file 't.json' does not exist"),
    "model": (["demo", "--model", "big-one"], "no endpoint is named that serves model 'big-one'"),
    "log": (["solve", "x", "--log-file", "p.jsonl/log"], "p.jsonl/log' cannot be written"),
    "folder": ([*EVAL, "p.jsonl/o"], "--out 'p.jsonl/o' cannot be written; name another place"),
    "page": (["inspect", "x", "--html", "p.jsonl/x"], "--html 'p.jsonl/x' cannot be written"),
    "export": (["threads", "x", "--export", "no/x"], "--export 'no/x' cannot be written"),
    "thread": (["solve", "x", "--thread", ""], "--thread '': string should have at least 1"),
    "problem": (["demo", " "], "the problem is empty"),
}


@pytest.mark.parametrize("case", BEFORE_ANYTHING)
def test_wrong_values_are_refused_before_a_store_or_a_model_starts(cli, clean, monkeypatch, case):
    """Even where both are the embedded ones: nothing is made in the data directory."""
    words, sentence = BEFORE_ANYTHING[case]
    (clean / "p.jsonl").write_text('{"problem": "1?", "answer": "1"}\n')
    monkeypatch.setenv("PDR_DATA_DIR", str(clean / "data"))
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert "store:" not in outcome.err
    assert not (clean / "data").exists()


def test_a_wrong_address_shows_no_password(cli, clean, monkeypatch):
    """Not even in the sentence that refuses it."""
    monkeypatch.setenv("PDR_BASE_URL", "htp://user:hushhush@host/v1")
    outcome = cli("solve", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("error: PDR_BASE_URL 'htp://user:***@host/v1': this is no http")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_problem(forgetful, text):
    """An empty problem is refused before anything is started, from wherever it comes."""
    assert "the problem is empty" in forgetful("solve", text).err
    assert "the problem is empty" in forgetful("solve", stdin=text).err


def test_unreadable_file(forgetful, clean):
    """A file that is missing, a folder or no text is named."""
    (clean / "bytes").write_bytes(b"ab\xff")
    for file, sentence in {
        "nowhere": "--file 'nowhere' cannot be read: No such file or directory",
        ".": "--file '.' cannot be read: Is a directory",
        "bytes": "--file 'bytes' is not UTF-8 text (byte 2)",
    }.items():
        outcome = forgetful("solve", "--file", file)
        assert (outcome.code, outcome.err) == (2, outcome.err)
        assert sentence in outcome.err


@pytest.mark.redis
@pytest.mark.parametrize("command", ["resume", "inspect"])
def test_unknown_thread(stored, mock, command):
    """An unknown thread is named, before any model is asked."""
    outcome = stored(command, "nobody")
    assert outcome.code == 1
    assert "no run is recorded under thread 'nobody'; `pdr-graph threads` lists" in outcome.err
    assert mock.stats()["models_calls"] == 0


def test_every_call_fails(forgetful, mock):
    """An endpoint that answers 500 for ever ends the run within its retries, with a sentence."""
    mock.configure(status=[{"status": 500}])
    outcome = forgetful("solve", "x", "--widths", "2", "--retries", "0")
    assert outcome.code == 1
    assert "error: round 1: 0 of 2 drafts succeeded, 1 is needed" in outcome.err
    assert outcome.err.endswith("the run was kept in memory and cannot be resumed; --checkpoint "
                                "URL keeps one\n")  # fmt: skip
    assert mock.stats()["calls"] == 2


def test_an_unknown_exception_is_a_sentence(forgetful, monkeypatch):
    """What nobody foresaw is one sentence, and a traceback only on request."""
    monkeypatch.setattr("pdr_graph.cli.solve.new_thread_id", lambda: 1 / 0)
    outcome = forgetful("solve", "x")
    assert outcome.code == 1
    assert (
        outcome.err
        == "error: unexpected ZeroDivisionError: division by zero; --debug shows where\n"
    )  # the sentence, whole
    assert "Traceback" in forgetful("--debug", "solve", "x").err
    monkeypatch.setenv("PDR_DEBUG", "1")
    assert "Traceback" in forgetful("solve", "x").err


LADDER = {
    "a bad request": (ConfigError("kappa 3: too small"), 2, "error: kappa 3: too small\n"),
    "a failed call": (CallError("no answer"), 1, "error: no answer\n"),
    "a refusal of Redis": (
        RedisError("READONLY"),
        1,
        "error: Redis refused a command: READONLY; `pdr-graph doctor` checks it\n",
    ),
    "a missing file": (
        FileNotFoundError(2, "No such file or directory", "a.txt"),
        1,
        "error: No such file or directory: 'a.txt'\n",
    ),
    "Ctrl-C": (KeyboardInterrupt(), 130, ""),
    "a signal": (RunEndedError("resume with: x", 143), 143, "resume with: x\n"),
    "a failure after the beginning": (
        RunEndedError("resume with: x", 1, ConfigError("model: other")),
        2,
        "error: model: other\nresume with: x\n",
    ),
    "a rank's own failure": (
        RankEndedError(1, RunEndedError("the same command continues", 1, CallError("no answer"))),
        1,
        "error: rank 1: no answer\nthe same command continues\n",
    ),
    "a rank's own bad request": (
        RankEndedError(1, ConfigError("model folder 'm' does not exist")),
        2,
        "error: rank 1: model folder 'm' does not exist\n",
    ),
}


@pytest.mark.parametrize("case", LADDER)
def test_the_ladder(capsys, case):
    """Each kind of error has its exit code and its lines."""
    error, code, said = LADDER[case]
    assert end_of(error, Output(), patience_s=0.0) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RankError("rank 1: the server is gone"), 1),
        (RunEndedError("stopped", 1, RankError("rank 0: the server is gone")), 1),
        (RunEndedError("stopped", 143), 143),
    ],
    ids=["before it began", "since", "by a signal"],
)
def test_a_rank_is_silent_where_the_main_process_knows(capsys, error, code):
    """It ends by the exit code alone, and at once."""
    assert end_of(RankEndedError(1, error), Output(), patience_s=600.0) == code
    assert capsys.readouterr().err == ""

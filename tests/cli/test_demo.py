"""`demo`: eight problems on four strategies, what is shown meanwhile, what is said at the end."""

import io
import os
import signal
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdr_graph import Result
from pdr_graph.budget import Ledger, empty_row
from pdr_graph.cli.demo import (
    B_SEQ,
    PROBLEMS,
    STRATEGIES,
    DemoBoard,
    DemoProblem,
    demo_config,
    next_line,
    seen,
    stopped_sentence,
)
from pdr_graph.eval.budgets import most_calls
from pdr_graph.extensions import Extensions
from pdr_graph.servers import default_data_dir, find_weights
from pdr_graph.servers.weights import QWEN
from pdr_graph.settings import load_settings
from tests.cli.conftest import wait_for

NAMES = ["long_cot", "sr", "pdr", "vote_first"]
ONE_AT_A_TIME = {"long_cot": 1, "sr": 3, "pdr": 3}
"""Calls on the longest path."""


def result(name: str, answer: str | None, tokens: int) -> Result:
    """A finished run that cost so many tokens."""
    row = {**empty_row(1, "drafter", 1), "calls": 1, "completion_tokens": tokens}
    return Result(
        thread_id="t",
        config=demo_config(name),
        answer=answer,
        solution="",
        verdict={"verifier": "none", "accepted": None, "reason": ""},
        ledger=Ledger(({**row, "critical_tokens": tokens},)),
        notes=(),
        seconds=1.0,
        state={},
    )


def board_of(right: dict[str, list[bool]], tokens: int = 10) -> DemoBoard:
    """A board whose runs have all ended, right or wrong as given by strategy and problem."""
    num = len(next(iter(right.values())))
    board = DemoBoard.of([DemoProblem(f"problem {index}", "7") for index in range(num)])
    board.strategies = [each for each in board.strategies if each.name in right]
    for each in board.strategies:
        for run, is_right in zip(each.runs, right[each.name], strict=True):
            run.result = result(each.name, "7" if is_right else "8", tokens)
    return board


def drawn(board: DemoBoard, width: int, encoding: str = "utf-8") -> str:
    """What a terminal of this width shows of a board, without styles."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, color_system=None, force_terminal=True)
    console.print(board)
    out.seek(0)
    return out.read()


# ---------------------------------------------------------------------------- eight problems


def test_eight_problems_on_four_strategies(forgetful, mock):
    """A line for each problem, one for each strategy, and a sentence; progress goes elsewhere."""
    mock.configure(answers=["50"])
    outcome = forgetful("demo")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    for problem in PROBLEMS:
        assert any(line.startswith(problem.text[:20]) for line in lines)
    for name in NAMES:
        (row,) = [line for line in lines if line.startswith(name)]
        assert "1 of 8" in row  # the one whose answer is 50
    assert lines[-1].startswith("All were right on 1 of 8, and long_cot spent the fewest tokens")
    said = outcome.err.splitlines()
    assert sum("problem" in line for line in said) == 32
    assert any(line.startswith("pdr, problem 1: 50 is right · ") for line in said)
    assert any(line.startswith("sr, problem 2: 50 is wrong, it is ") for line in said)


def test_json_has_runs_table_and_sentence(forgetful, mock, monkeypatch):
    """The runs as `solve` prints them, each with its problem; the counts are the server's."""
    monkeypatch.setattr("pdr_graph.cli.demo.PROBLEMS", PROBLEMS[:3])
    mock.configure(answers=["50"])
    found = forgetful("demo", "--json", "--quiet").json()
    assert set(found) == {"runs", "table", "seen"}
    assert len(found["runs"]) == 12
    assert {"problem", "gold", "right", "preset", "answer", "ledger"} <= set(found["runs"][0])
    assert [row["strategy"] for row in found["table"]] == NAMES
    assert [row["right"] for row in found["table"]] == [1, 1, 1, 1]
    served = mock.stats()
    assert sum(row["calls"] for row in found["table"]) == served["calls"]
    written = sum(row["completion_tokens"] for row in found["table"])
    assert written == served["completion_tokens"]
    assert {row["b_seq_allotted"] for row in found["table"]} == {B_SEQ}


def test_every_strategy_has_the_same_budget():
    """Few long calls or many short ones: none may write more on its longest path."""
    for name, fields in STRATEGIES.items():
        config = demo_config(name, fields)
        calls = most_calls(config, Extensions()).sequential
        assert calls == ONE_AT_A_TIME.get(name, calls)
        assert B_SEQ - calls < calls * config.max_tokens <= B_SEQ


@pytest.mark.parametrize("problem", [[], ["What is 6 x 7?"]])
def test_a_store_that_does_not_answer_is_told_before_a_model_is_fetched(cli, clean, problem):
    """Half a gigabyte would come for nothing."""
    words = ["--checkpoint", "redis://127.0.0.1:1", "--data-dir", str(clean / "data")]
    outcome = cli("demo", *problem, *words)
    assert outcome.code == 1
    assert "Redis at redis://127.0.0.1:1 did not answer" in outcome.err
    assert "fetching" not in outcome.err
    assert not (clean / "data").exists()


def test_the_problems_of_a_strategy_run_side_by_side(forgetful, mock, monkeypatch):
    """So that a server of few streams has something to do all the time."""
    monkeypatch.setattr("pdr_graph.cli.demo.STRATEGIES", {"long_cot": {}})
    mock.configure(answers=["50"], delay_s=2)
    assert forgetful("demo", "--quiet").code == 0
    assert mock.stats()["peak_in_flight"] == 8


def test_failed_calls_are_said_and_counted_wrong(forgetful, mock, monkeypatch):
    """The demonstration goes on: what came is shown, what failed is named."""
    monkeypatch.setattr("pdr_graph.cli.demo.PROBLEMS", PROBLEMS[:2])
    body = {"error": {"message": "no"}}
    fail = {"match": {"contains": PROBLEMS[1].text}, "status": 400, "body": body}
    mock.configure(answers=["50"], status=[fail])
    outcome = forgetful("demo")
    assert outcome.code == 0, outcome.err
    assert "long_cot, problem 2: failed, " in outcome.err
    assert "long_cot: 1 run failed" in outcome.err
    assert "failed" in next(
        line for line in outcome.out.splitlines() if line.startswith(PROBLEMS[1].text[:20])
    )


def test_a_wrong_name_of_the_model_is_refused(cli, monkeypatch):
    """Before anything is started or fetched."""
    monkeypatch.setenv("PDR_DEMO", "huge")
    outcome = cli("demo")
    assert outcome.code == 2
    assert outcome.err == "error: PDR_DEMO is 'huge'; it may be usual or tiny, or left out\n"


@pytest.mark.local
def test_the_tiny_model_runs_it(cli, data_dir, monkeypatch):
    """The real one: whatever it answers, every run ends, and the table is whole."""
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    (data_dir / "weights").mkdir(exist_ok=True)
    link = data_dir / "weights" / weights.name
    if not link.exists():
        link.symlink_to(weights)
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_DEMO", "tiny")
    monkeypatch.setattr("pdr_graph.cli.demo.PROBLEMS", PROBLEMS[:1])
    outcome = cli("demo", "--json")
    assert outcome.code == 0, outcome.err
    assert [row["of"] for row in outcome.json()["table"]] == [1, 1, 1, 1]
    assert "model: SmolLM2-135M-Instruct in llama.cpp" in outcome.err


def test_the_command_that_comes_next_names_the_model_that_ran(tmp_path, monkeypatch):
    """Plain `solve` would fetch another one."""
    monkeypatch.delenv("PDR_DEMO", raising=False)
    settings = load_settings(data_dir=tmp_path / "my data")
    file = QWEN.path(tmp_path / "my data")
    assert next_line(settings) == f"pdr-graph solve --model '{file}' 'What is 17 + 25?'"
    monkeypatch.setenv("HOME", str(tmp_path))
    place = f"--model ~/'my data/weights/{file.name}' "
    assert place in str(next_line(settings))
    assert next_line(load_settings(base_url="http://127.0.0.1:1/v1")) is None
    monkeypatch.setenv("PDR_DEMO", "tiny")
    assert next_line(settings) is None


# ------------------------------------------------------------------------------- one problem


def test_a_problem_of_ones_own(forgetful, mock):
    """For people a table and a run in full; for programs all four results, and nothing else."""
    mock.configure(answers=["12"])
    outcome = forgetful("demo", "What is 6 x 2?")
    assert outcome.code == 0, outcome.err
    for name in NAMES:
        assert any(line.startswith(name) and " 12 " in line for line in outcome.out.splitlines())
    assert "pdr, in full" in outcome.out
    results = forgetful("demo", "What is 6 x 2?", "--json", "--quiet").json()
    assert [each["preset"].partition("@")[0] for each in results] == NAMES
    assert [each["ledger"]["calls"] for each in results] == [1, 3, 5, 3]


# ------------------------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_shows_what_is_done(spawn, mock):
    """Whole strategies and parts of one; no traceback, no comparison, the code of a signal."""
    mock.configure(answers=["50"])
    process = spawn("demo", "--checkpoint", "memory")
    for line in process.stderr:
        if line.startswith("sr, problem"):
            mock.configure(delay_s=30)
            break
    wait_for(mock, in_flight=1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the demonstration was stopped; run it again" in err
    assert any(line.startswith("long_cot") and "1 of 8" in line for line in out.splitlines())
    assert "of 32 runs: no comparison." in out.splitlines()[-1]


# ---------------------------------------------------------------------------------- screens


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_board_fits_the_terminal(width):
    """No line is longer or broken in two; a problem gives way to answers."""
    board = board_of({name: [True, False] * 4 for name in NAMES})
    board.strategies[2].runs[1].result = None
    board.strategies[2].runs[1].latest = "123456789"
    board.strategies[2].runs[2].result = None
    board.strategies[2].runs[2].failure = "HTTP 500"
    for each in board.strategies:
        for run, problem in zip(each.runs, PROBLEMS, strict=True):
            run.problem = replace(problem, answer="7")
    lines = drawn(board, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 2 + 8
    assert "7 ✓" in lines[2]
    assert "8 ✗" in lines[3]
    assert "123…" in lines[3]
    assert "failed" in lines[4]


def test_a_terminal_of_ascii_gets_ascii():
    """Marks and cuts included."""
    board = board_of({name: [True, False] for name in NAMES})
    board.strategies[0].runs[0].result = result("long_cot", "123456789", 10)
    text = drawn(board, 60, "ascii")
    assert text.isascii()
    assert "7 +" in text
    assert "123~ -" in text


@pytest.mark.parametrize("columns", [60, 80])
def test_a_real_terminal_shows_the_board_live(columns, clean, mock, monkeypatch):
    """Redrawn in place while runs go on, taken off at the end, and never wider."""
    pty = pytest.importorskip("pty")
    pyte = {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm-256color", "NO_COLOR": "1"}
    for name, value in pyte.items():
        monkeypatch.setenv(name, value)
    mock.configure(answers=["50"], delay_s=0.2)
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pdr_graph.cli", "demo"])
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert "runs · " in text  # the live line of facts
    assert "\x1b[1A" in text  # drawn again in place
    assert "All were right on 1 of 8" in text.rpartition("\x1b[2K")[2]
    plain = [line for line in text.rpartition("\x1b[2K")[2].splitlines() if "\x1b" not in line]
    assert max(map(len, plain)) <= columns


# ------------------------------------------------------------------------------ the sentence


def test_the_best_is_named_whichever_it_is():
    """With what each was right on and cost; eight problems prove little, and it says so."""
    right = {
        "long_cot": [True] * 5 + [False] * 3,
        "pdr": [True] * 3 + [False] * 5,
        "vote_first": [True] * 5 + [False] * 3,
    }
    assert seen(board_of(right).strategies) == (
        "Most right: long_cot (80 tokens) and vote_first (80 tokens), on 5 of 8; then pdr on 3 "
        "(80); with 8 problems even that may be luck."
    )


def test_a_clear_difference_is_said_to_be_one():
    """Eight problems right against none is more than luck."""
    board = board_of({"pdr": [True] * 8, "sr": [False] * 8})
    assert seen(board.strategies).endswith(
        "more than luck between the first and the last (sign test, p = 0.01)."
    )


outcomes = st.lists(st.booleans(), min_size=8, max_size=8)


@given(st.fixed_dictionaries(dict.fromkeys(NAMES, outcomes)))
def test_no_strategy_is_flattered(right):
    """Whatever was seen, every strategy named as best has the most right answers."""
    board = board_of(right)
    sentence = seen(board.strategies)
    most = max(sum(each) for each in right.values())
    assert f" on {most} of 8" in sentence
    lead = sentence.partition(";")[0]
    for name, each in right.items():
        if sum(each) < most:
            assert f"{name} (" not in lead
            assert f"{name} on {sum(each)}" in sentence


def test_a_demonstration_that_was_stopped_compares_nothing():
    """It says how far it came."""
    board = board_of({"long_cot": [True, True], "pdr": [True, False]})
    board.strategies[1].runs[1].result = None
    assert stopped_sentence(board) == "Stopped after 3 of 4 runs: no comparison."

"""`graphs/tasks`: a plan, a summary, and code that has to pass its tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphs.tasks import code, plan, summary
from graphs.tasks.unit_tests import REPORT, run_tests
from pdr_graph import preset

ROOT = Path(__file__).parents[2]
SMALL = {"widths": (2,), "max_tokens": 512, "solution_tokens": 256, "kappa": 256, "seed": 7}
RIGHT = "```python\ndef double(n):\n    return 2 * n\n```"
WRONG = "Here it is:\n```python\ndef double(n):\n    return n\n```"
TASK = {"task": "Write double(n).", "tests": "assert double(4) == 8, 'double(4) must be 8'"}
REJECTED = "A solution that was rejected:"


def config(module):
    return preset("pdr", **{**SMALL, **module.FIELDS})


async def test_a_plan_is_a_message_that_was_judged(mock, connect):
    """A rejected plan is refined with the judge's reasons in sight; the second verdict stands."""
    judged = "Is it wise?"
    own = config(plan).model_copy(update={"judge_prompt": f"{judged} $problem $candidates"})
    mock.configure(
        replies=[{"contains": judged, "content": "No time for sleep. Verdict: incorrect"}]
    )
    state = await plan.build(connect(), own).ainvoke({"messages": [("user", "A day in Rome")]})
    assert state["messages"][-1].type == "ai"
    assert state["messages"][-1].response_metadata["pdr"]["verdict"]["accepted"] is False
    prompts = [str(request["body"]["messages"]) for request in mock.requests()]
    again = [prompt for prompt in prompts if REJECTED in prompt]
    assert len(again) == 2, "the drafts of the extra round, as wide as the last"
    assert all("No time for sleep" in prompt for prompt in again)


async def test_a_summary_reads_and_writes_the_states_own_fields(mock, connect):
    """The document is in every prompt, the cost is the ledger's."""
    graph = summary.build(connect(), config(summary))
    state = await graph.ainvoke({"document": "Rye is grown at 60° N.", "words": 5})
    assert set(state) == {"document", "words", "summary", "tokens"}
    stats = mock.stats()
    assert state["tokens"] == stats["prompt_tokens"] + stats["completion_tokens"]
    assert all("Rye is grown" in str(each["body"]["messages"]) for each in mock.requests())


async def test_code_that_fails_its_tests_is_mended_by_what_they_print(mock, connect):
    """Wrong code is rejected by its tests; what they print leads to the right one."""
    mock.configure(
        replies=[
            {"contains": REJECTED, "content": RIGHT},
            {"contains": "return 2 * n", "content": RIGHT},
            {"contains": "Write double", "content": WRONG},
        ]
    )
    state = await code.build(connect(), config(code)).ainvoke(TASK)
    told = [str(each["body"]["messages"]) for each in mock.requests()]
    assert any("double(4) must be 8" in each for each in told[4:]), "the failure is in the prompt"
    assert state["passed"] is True
    assert state["code"] == "def double(n):\n    return 2 * n"
    assert state["report"] == "all tests passed"


async def test_code_that_never_passes_says_why(mock, connect):
    """After its extra rounds the run ends, with the tests' last words."""
    mock.configure(replies=[{"contains": "Write double", "content": WRONG}])
    state = await code.build(connect(), config(code)).ainvoke(TASK)
    assert state["passed"] is False
    assert "AssertionError: double(4) must be 8" in state["report"]


@pytest.mark.parametrize(
    ("solution", "found"),
    [
        (RIGHT, "def double(n):\n    return 2 * n"),
        ("```\na = 1\n```\nthen\n```py\nb = 2\n```", "b = 2"),
        ("```python\ncut = ", "cut ="),
        ("x = 1", "x = 1"),
        ("", ""),
    ],
)
def test_the_last_block_of_a_reply_is_its_code(solution, found):
    """A block that was cut is taken as far as it goes; a reply without one is code."""
    assert code.code_of(solution) == found


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("x = 1", "NameError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("x = bytearray(1 << 33)", "MemoryError"),
        ("print('ä' * 100_000); boom", "NameError"),
        ("while True: print('x' * 1000)", "printed more than"),
        ("a = '\ud800'", "f"),
    ],
)
async def test_what_fails_is_said(program, reason):
    """Whatever the program does, the report is short and holds what a reader needs."""
    failure = await run_tests(program, "assert f(1) == 1", within_s=30)
    assert failure is not None
    assert reason in failure
    assert len(failure) <= REPORT


async def test_code_that_does_not_end_is_killed_with_what_it_started():
    """The time limit holds for its children too, which keep the pipe open."""
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    assert await run_tests(program, "", within_s=1.5) == "the tests did not end within 1.5 s"


async def test_code_that_leaves_a_child_behind_is_ended_with_it():
    """A program that is right does not keep the verifier waiting for its daemon."""
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass'])"
    assert await run_tests(program, "", within_s=60) is None


def tasks(mock, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command of the tasks, on the mock endpoint."""
    return subprocess.run(
        [sys.executable, "-m", "graphs.tasks", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PDR_BASE_URL": mock.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_prints_code_and_its_exit_code_tells_whether_it_passed(mock, tmp_path):
    """Standard output is the code alone."""
    tests = tmp_path / "tests.py"
    tests.write_text(TASK["tests"], "utf-8")
    for reply, returncode in ((RIGHT, 0), (WRONG, 1)):
        mock.configure(replies=[{"contains": "Write double", "content": reply}])
        done = tasks(mock, "code", "Write double(n)", "--tests", tests)
        assert done.returncode == returncode, done.stderr
        assert done.stdout == code.code_of(reply) + "\n"
        assert "Round 1 of" in done.stderr.splitlines()[0]


def test_a_missing_file_is_a_sentence(mock, tmp_path):
    """No traceback, and nothing is asked."""
    done = tasks(mock, "summary", tmp_path / "none.txt")
    assert done.returncode == 2
    assert "none.txt" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert mock.stats()["calls"] == 0

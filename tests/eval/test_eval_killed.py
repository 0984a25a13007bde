"""An evaluation killed at random instants: the same records, no finished call made again."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pdr_graph.eval.records import read_run
from tests.eval.conftest import write_quiz
from tests.eval.test_evaluating import ARMS, CALLS, SHORT, records
from tests.mock_endpoint import MockEndpoint

pytestmark = pytest.mark.redis

KILLS = 10
STORED_S = 0.6
"""A reply that came so long before a death was stored by then, on a busy machine too."""


def evaluate(words: list[str], environment: dict[str, str]) -> None:
    """Run the command in this process, which may be killed at any instant."""
    os.environ.update(environment)
    from pdr_graph.cli import run

    sys.exit(run(words))


class Processes:
    """Starts commands in processes that have imported what they need, and kills some."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pdr_graph.cli.evaluating", __name__])
        self._environment = environment

    def run(self, words: list[str], kill_after_s: float | None = None) -> tuple[int, float]:
        """Run a command; returns its exit code and when it ended."""
        process = self._context.Process(target=evaluate, args=(words, self._environment))
        process.start()
        process.join(timeout=kill_after_s or 120)
        if process.exitcode is None:
            process.kill()
        ended = time.time()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, ended


def call(row: dict) -> str:
    """Name a call by all that decides its reply."""
    return json.dumps([row["body"]["messages"], row["body"]["seed"]])


def answered(mock: MockEndpoint, before: float = float("inf")) -> Counter[str]:
    """Count the calls that got their reply, those before an instant only."""
    return Counter(
        call(row)
        for row in mock.requests()
        if row["status"] == 200 and not row["disconnected"] and row["ended"] < before
    )


def test_killed_at_ten_instants_it_ends_with_the_same_records(data_dir, clean, mock, tmp_path):
    """SIGKILL at random: what was answered and stored is never asked for again."""
    quiz = write_quiz(tmp_path, mock, 5)
    environment = {"PDR_DATA_DIR": str(data_dir), "PDR_BASE_URL": mock.url}
    processes = Processes(environment)
    words = ["eval", str(quiz.file), *ARMS, *SHORT, "--samples", "2", "--seed", "3", "--quiet"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert processes.run([*words, "--out", str(whole)])[0] == 0
    mock.reset()
    write_quiz(tmp_path, mock, 5)
    # Few calls at once make the run long enough to be killed ten times.
    slow = [*words, "--max-in-flight", "6", "--out", str(killed)]
    mock.configure(delay_s=0.15)
    draw, safe, deaths = random.Random(4), Counter(), 0
    while deaths < KILLS:
        started = mock.stats()["calls"]
        code, died = processes.run(slow, kill_after_s=draw.uniform(0.8, 2.0))
        if code != -signal.SIGKILL:
            break
        deaths += 1
        for each in answered(mock, before=died - STORED_S):
            safe.setdefault(each, 0)
            safe[each] = safe[each] or answered(mock)[each]
        assert mock.stats()["calls"] >= started
    assert deaths == KILLS, "the run ended before it was killed often enough"
    mock.configure(delay_s=0.0)
    assert processes.run(slow)[0] == 0
    at_last = answered(mock)
    assert {each: at_last[each] for each in safe} == dict(safe)
    assert len(at_last) == 10 * CALLS
    assert len(safe) > CALLS, "too little was done between the deaths to show anything"
    assert records(killed) == records(whole)
    assert len({(s["arm"], s["problem_id"], s["sample"]) for s in read_run(killed).samples}) == 30
    lines = (killed / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 30


def test_a_torn_line_is_owed_again(forgetful, quiz, mock, tmp_path):
    """A process that died in the middle of a line costs that sample alone."""
    out = tmp_path / "run"
    words = ["eval", str(quiz.file), "--arm", "long_cot", *SHORT, "--out", str(out), "--quiet"]
    assert forgetful(*words).code == 0
    before = records(out)
    file = Path(out / "samples.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert len(read_run(out).samples) == 4
    assert forgetful(*words).code == 0
    assert records(out) == before
    assert mock.stats()["calls"] == 6
    assert file.read_bytes().count(b"\n") == 5


def test_other_damage_stops_the_run_and_names_the_line(forgetful, quiz, mock, tmp_path):
    """A line that cannot be read is not skipped."""
    out = tmp_path / "run"
    words = ["eval", str(quiz.file), "--arm", "long_cot", *SHORT, "--out", str(out), "--quiet"]
    assert forgetful(*words).code == 0
    file = out / "samples.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], lines[2][:50] + b"\n", *lines[3:]]))
    damaged = forgetful(*words)
    assert damaged.code == 2
    assert "samples.jsonl line 3 is damaged" in damaged.err
    assert mock.stats()["calls"] == 5

"""An evaluation killed at random instants: the same records, no finished call made again."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from pdr_checkpoints import RedisSaver, open_checkpointer

from pdr_graph.eval.records import read_run
from pdr_graph.run_history import history
from pdr_graph.servers import embedded_valkey
from tests.eval.conftest import write_quiz
from tests.eval.test_eval_command import ARMS, CALLS, SHORT, records
from tests.mock_endpoint import MockEndpoint

pytestmark = pytest.mark.redis

KILLS = 6


def evaluate(words: list[str], environment: dict[str, str]) -> None:
    """Run the command in this process, which may be killed at any instant."""
    os.environ.update(environment)
    from pdr_graph.cli import run

    sys.exit(run(words))


class Processes:
    """Starts commands in processes that have their imports loaded already."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pdr_graph.cli.eval", __name__])
        self._environment = environment

    def start(self, words: list[str]) -> BaseProcess:
        """Start a command."""
        process = self._context.Process(target=evaluate, args=(words, self._environment))
        process.start()
        return process

    def run(self, words: list[str]) -> int | None:
        """Run a command to its end and return its exit code."""
        process = self.start(words)
        process.join(timeout=240)
        return process.exitcode


def kill_soon(process: BaseProcess, mock: MockEndpoint, calls: int, seconds: float) -> None:
    """Kill a process some seconds after a number of further calls, whatever the machine's speed."""
    until, give_up = mock.stats()["calls"] + calls, time.monotonic() + 120
    while mock.stats()["calls"] < until and process.is_alive():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed often enough"


async def stored_seeds(saver: RedisSaver) -> set[int]:
    """Return the seeds of all drafts in the store; no two calls share one."""
    pasts = [await history(each.thread_id, checkpointer=saver) for each in await saver.threads()]
    return {
        draft["seed"]
        for past in pasts
        for each in past.rounds
        for draft in each.drafts
        if draft["error"] is None
    }


def call(row: dict) -> str:
    """Identify a call by all that decides its reply."""
    return json.dumps([row["body"]["messages"], row["body"]["seed"]])


def answered(mock: MockEndpoint) -> Counter[str]:
    """Count the calls that got their reply."""
    return Counter(
        call(row) for row in mock.requests() if row["status"] == 200 and not row["disconnected"]
    )


async def test_killed_at_several_instants_it_ends_with_the_same_records(clean, mock, tmp_path):
    """After SIGKILL at random instants, a stored draft is never asked for again."""
    async with embedded_valkey(tmp_path / "store") as url, open_checkpointer(url) as saver:
        quiz = write_quiz(tmp_path, mock, 8)
        processes = Processes({"PDR_REDIS_URL": url, "PDR_BASE_URL": mock.url})
        unkept = Processes({"PDR_REDIS_URL": "memory", "PDR_BASE_URL": mock.url})
        words = ["eval", str(quiz.file), *ARMS, *SHORT, "--samples", "2", "--seed", "3", "--quiet"]
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert unkept.run([*words, "--out", str(whole)]) == 0
        mock.reset()
        write_quiz(tmp_path, mock, 8)
        # Few calls at once make the run long enough to be killed so often.
        slow = [*words, "--max-in-flight", "3", "--out", str(killed)]
        mock.configure(delay_s=0.2)
        draw, safe = random.Random(4), dict[str, int]()
        for _ in range(KILLS):
            kill_soon(processes.start(slow), mock, draw.randint(1, 9), draw.uniform(0.0, 0.3))
            kept, now = await stored_seeds(saver), answered(mock)
            for each, times in now.items():
                if json.loads(each)[1] in kept:
                    safe.setdefault(each, times)
        mock.configure(delay_s=0.0)
        assert processes.run(slow) == 0
    at_last = answered(mock)
    assert {each: at_last[each] for each in safe} == safe
    assert len(at_last) == 16 * CALLS
    assert len(safe) > 5, "too little was done between the deaths to show anything"
    assert records(killed) == records(whole)
    assert len({(s["arm"], s["problem_id"], s["sample"]) for s in read_run(killed).samples}) == 48
    lines = (killed / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 48


def test_a_torn_line_is_owed_again(forgetful, quiz, mock, tmp_path):
    """If a process dies in the middle of a line, only that sample is run again."""
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
    assert "samples.jsonl line 3 is not JSON" in damaged.err
    assert mock.stats()["calls"] == 5

"""The whole product, killed for real: command line, Redis protocol, HTTP endpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.mock_endpoint import MockEndpoint

pytestmark = pytest.mark.redis

PROBLEM = "What is 6 x 7?"
OPTIONS = ["--widths", "8,4", "--max-tokens", "512", "--kappa", "256", "--seed", "7"]
CALLS = 8 + 1 + 4 + 1 + 1


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def pdr_graph(data_dir: Path, mock: MockEndpoint, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if "PDR_" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "pdr_graph.cli", *words, "--json"],
        env={**environment, "PDR_DATA_DIR": str(data_dir), "PDR_BASE_URL": mock.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def answered(mock: MockEndpoint) -> Counter[str]:
    """Count the calls that got their reply, by prompt and seed."""
    return Counter(
        json.dumps([each["body"]["messages"], each["body"]["seed"]])
        for each in mock.requests()
        if each["status"] == 200 and not each["disconnected"]
    )


def without_time(result: dict) -> dict:
    result = {**result, "seconds": 0, "thread_id": ""}
    result["ledger"] = {
        **result["ledger"],
        "rows": [{**row, "seconds": 0} for row in result["ledger"]["rows"]],
    }
    return result


@pytest.fixture(scope="module")
def whole(data_dir) -> dict:
    """The result of a run that nothing stops."""
    with MockEndpoint() as endpoint:
        return finished(pdr_graph(data_dir, endpoint, "solve", PROBLEM, *OPTIONS))


@pytest.mark.parametrize("calls_before_death", [5, 10])
def test_a_killed_run_asks_for_nothing_twice_and_ends_the_same(
    mock, data_dir, whole, calls_before_death
):
    """SIGKILL in mid-round, resume: no finished call is repeated, and the result is the same."""
    late = range(calls_before_death + 1, CALLS + 1)
    mock.configure(status=[{"match": {"call": call}, "status": "hang"} for call in late])
    thread = f"killed-{calls_before_death}"
    process = pdr_graph(data_dir, mock, "solve", PROBLEM, *OPTIONS, "--thread", thread)
    deadline = time.monotonic() + 60
    while answered(mock).total() < calls_before_death or mock.stats()["in_flight"] == 0:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)  # what was answered is stored by now; all other calls hang
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert answered(mock).total() == calls_before_death
    mock.configure(status=[])
    resumed = finished(pdr_graph(data_dir, mock, "resume", thread))
    assert max(answered(mock).values()) == 1
    assert answered(mock).total() == CALLS
    assert without_time(resumed) == without_time(whole)

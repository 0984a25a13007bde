"""A parent agent that is killed goes on in the middle of PDR."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from pdr_checkpoints import open_checkpointer

from pdr_graph.servers import embedded_valkey
from tests.embed.parent import CALLS
from tests.embed.stored import until_drafts_are_stored
from tests.mock_endpoint import MockEndpoint

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]
IN_ROUND_2 = 4 + 1 + 1
"""Calls that are answered before the death: a round, its distillation, a draft of the second."""


def parent(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.embed.parent", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(mock: MockEndpoint) -> Counter[str]:
    """Count the calls that got their reply, by prompt and seed."""
    return Counter(
        json.dumps([each["body"]["messages"], each["body"]["seed"]])
        for each in mock.requests()
        if each["status"] == 200 and not each["disconnected"]
    )


@pytest.mark.parametrize("form", ["node", "tool"])
async def test_a_parent_killed_in_the_second_round_goes_on_there(mock, tmp_path, form):
    """SIGKILL in PDR's second round, run the parent again: no finished call is made again."""
    async with embedded_valkey(tmp_path) as redis_url:
        late = range(IN_ROUND_2 + 1, CALLS + 1)
        mock.configure(status=[{"match": {"call": call}, "status": "hang"} for call in late])
        first = parent(mock.url, redis_url, "t", form, "start")
        deadline = time.monotonic() + 120
        while answered(mock).total() < IN_ROUND_2 or mock.stats()["in_flight"] == 0:
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.02)  # noqa: ASYNC251  # nothing else is to be done meanwhile
        async with open_checkpointer(redis_url) as saver:
            await until_drafts_are_stored(saver, "t", 1, round_number=2)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert answered(mock).total() == IN_ROUND_2
        mock.configure(status=[])
        second = parent(mock.url, redis_url, "t", form, "resume")
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0, err
        ended = json.loads(out)
    assert max(answered(mock).values()) == 1
    assert answered(mock).total() == CALLS
    assert ended["calls"] == CALLS
    assert "boxed" in ended["text"]

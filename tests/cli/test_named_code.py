"""`resume` imports nothing that a store names, and goes on where the name is given again."""

import asyncio
import os
import subprocess
import sys

import pytest
from pdr_checkpoints import open_checkpointer

from pdr_graph import build_graph, preset
from pdr_graph.connect import open_client
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import load_settings

pytestmark = [pytest.mark.redis, pytest.mark.security]

SMALL = {"widths": (2,), "max_tokens": 200, "solution_tokens": 64, "kappa": 64, "seed": 7}
STEP = """
import pathlib

pathlib.Path({proof!r}).touch()

async def verifier(step):
    return {{"verifier": "own", "accepted": True, "reason": "own"}}

async def distiller(step):
    return [[]]

async def finish(step):
    return {{"text": "own", "answer": "1", "truncated": False, "finish": "own"}}
"""


async def plant(data_dir, thread: str, **fields: str) -> None:
    """Leave a stopped run in the real store whose config names code."""
    place = {"configurable": {"thread_id": thread}}
    async with (
        embedded_valkey(data_dir) as url,
        open_checkpointer(url) as saver,
        open_client(load_settings()) as client,
    ):
        graph = build_graph(client, checkpointer=saver)
        config = preset("pdr", **SMALL)
        await graph.ainvoke({"problem": "x"}, place, context=config, interrupt_after=["plan"])
        state = (await graph.aget_state(place)).values
        hostile = {"config": {**state["config"], **fields}}
        await graph.aupdate_state(place, hostile, as_node="plan")


def command(folder, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with the trap on its path."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pdr_graph.cli", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_resume_imports_what_the_user_names(stored, data_dir, tmp_path):
    """One run names a trap at each place; only the option lets it in."""
    proof = tmp_path / "imported"
    (tmp_path / "trap.py").write_text(STEP.format(proof=str(proof)))
    names = {field: f"trap:{field}" for field in ("distiller", "finish", "verifier")}
    asyncio.run(plant(data_dir, "planted", **names))
    asyncio.run(plant(data_dir, "exits", distiller="sys:exit"))

    refused = command(tmp_path, "resume", "planted")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "give it again by --distiller trap:distiller" in " ".join(refused.stderr.split())
    refused = command(tmp_path, "resume", "exits")
    assert "give it again by --distiller sys:exit" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    for words in (["inspect", "planted"], ["threads"]):
        assert stored(*words).code == 0
    assert not proof.exists()

    options = [word for field, name in names.items() for word in (f"--{field}", name)]
    resumed = command(tmp_path, "resume", "planted", *options, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert '"own"' in resumed.stdout
    assert proof.exists()

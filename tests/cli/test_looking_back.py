"""`threads` and `inspect`: what a store keeps, for people and for programs."""

import asyncio

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from pdr_checkpoints import open_checkpointer

from pdr_graph.servers import embedded_valkey
from tests.cli.conftest import SMALL

pytestmark = pytest.mark.redis


@pytest.fixture
def runs(stored, mock):
    """One finished run and one that stopped in its first round."""
    mock.configure(answers=["42"])
    stored("solve", "What is 6 x 7?", *SMALL, "--thread", "done", "--verifier", "consensus")
    mock.configure(status=[{"match": {"contains": "7 x 7"}, "status": 400, "times": 2}])
    stored("solve", "What is 7 x 7?", *SMALL, "--thread", "owed")
    return stored


def test_threads(runs):
    """Each run is listed with its preset, its state, its node and its answer, newest first."""
    listed = runs("threads", "--json").json()
    known = {each["thread_id"]: each for each in listed}
    done, owed = known["done"], known["owed"]
    assert (done["preset"], done["state"], done["node"], done["answer"]) == (
        "pdr",
        "finished",
        None,
        "42",
    )
    assert (owed["state"], owed["node"], owed["answer"]) == ("stopped", "distiller", None)
    assert [each["updated"] for each in listed] == sorted(
        (each["updated"] for each in listed), reverse=True
    )
    assert len(runs("threads", "--limit", "1", "--json").json()) == 1


def test_threads_for_people(runs, monkeypatch):
    """A narrow terminal gets fewer columns and no broken line."""
    wide = runs("threads").out
    assert "stopped at distiller" in wide
    assert "preset" in wide
    monkeypatch.setenv("COLUMNS", "40")
    narrow = runs("threads").out
    assert "preset" not in narrow
    assert max(map(len, narrow.splitlines())) <= 40


def test_threads_of_memory(cli):
    """Memory keeps nothing that could be listed."""
    outcome = cli("threads", "--checkpoint", "memory")
    assert (outcome.code, outcome.err[:26]) == (2, "error: memory keeps no run")


def test_inspect_json(runs):
    """A run is read back whole: rounds, drafts, workspaces, solution, verdict, ledger."""
    past = runs("inspect", "done", "--json").json()
    assert past["problem"] == "What is 6 x 7?"
    assert past["config"]["widths"] == [3, 2]
    assert [(each["round"], len(each["drafts"])) for each in past["rounds"]] == [(1, 3), (2, 2)]
    assert all(each["workspaces"][0]["text"] for each in past["rounds"])
    assert past["solution"]["answer"] == "42"
    assert past["verdict"]["accepted"] is True
    assert past["ledger"]["calls"] == 8
    assert past["next"] == []
    assert runs("inspect", "owed", "--json").json()["next"] == ["distiller"]


def test_inspect_for_people(runs):
    """Drafts are a table, their flaws are named, and texts are clipped unless --full."""
    done = runs("inspect", "done")
    assert done.code == 0
    for part in ("state  finished", "round 2 · 2 wide", "solution by refine", "answer  42"):
        assert part in done.out
    owed = runs("inspect", "owed").out
    assert "state  stopped at distiller" in owed
    assert owed.count("failed: HTTP 400") == 2
    full = runs("inspect", "done", "--full").out
    assert "draft 2" in full
    assert full.count("The answer is \\boxed{42}.") > done.out.count("The answer is \\boxed{42}.")


def test_a_thread_of_another_graph_is_listed(stored, data_dir):
    """A store may be shared: what is not ours is listed as such, and breaks nothing."""

    async def write() -> None:
        async with embedded_valkey(data_dir) as url, open_checkpointer(url) as saver:
            config = {"configurable": {"thread_id": "foreign", "checkpoint_ns": ""}}
            await saver.aput(config, empty_checkpoint(), {"step": 0}, {})

    asyncio.run(write())
    listed = stored("threads", "--json").json()
    foreign = next(each for each in listed if each["thread_id"] == "foreign")
    assert (foreign["state"], foreign["preset"]) == ("other", None)

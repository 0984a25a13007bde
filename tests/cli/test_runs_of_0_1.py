"""Interrupted runs that version 0.1 stored go on."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.redis

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "drafts", "calls"),
    # A round of 3 below its quorum, and one whose process was killed; then 1 + 2 + 1 + 1 calls.
    [("owed", 1, 2 + 5), ("killed", 2, 1 + 5)],
)
def test_an_interrupted_run_of_version_0_1_is_resumed(stored, mock, name, drafts, calls):
    """Its file was exported then. It is listed, shown and resumed, and no draft is made again."""
    mock.configure(answers=["42"])
    file = DATA / f"run_{name}_by_0_1.export"
    name = f"{name}-by-0-1"
    assert stored("threads", name, "--import", str(file)).code == 0
    try:
        (listed,) = [each for each in stored("threads", "--json").json()
                     if each["thread_id"] == name]  # fmt: skip
        assert (listed["preset"], listed["state"], listed["answer"]) == ("pdr*", "stopped", None)
        (first,) = stored("inspect", name, "--json").json()["rounds"]
        assert sum(draft["error"] is None for draft in first["drafts"]) == drafts
        mock.reset()
        mock.configure(answers=["42"])
        outcome = stored("resume", name, "--json")
        assert (outcome.code, outcome.json()["answer"]) == (0, "42")
        assert mock.stats()["calls"] == calls
        assert stored("inspect", name, "--json").json()["next"] == []
    finally:
        stored("threads", name, "--delete")

"""`threads --prune`, `--delete`, `--export` and `--import`."""

import pytest

from tests.cli.conftest import SMALL

pytestmark = pytest.mark.redis


@pytest.fixture
def kept(stored, mock):
    """A store with one finished run, `first`."""
    stored("solve", "What is 6 x 7?", *SMALL, "--thread", "first")
    yield stored
    for thread in ("first", "second"):
        stored("threads", thread, "--delete")


def test_a_run_moves_to_another_name_exactly(kept, clean):
    """Export, import: `inspect` shows the same run but for its name."""
    before = kept("inspect", "first", "--json").json()
    assert kept("threads", "first", "--export", "run.bin").code == 0
    assert kept("threads", "second", "--import", "run.bin").code == 0
    after = kept("inspect", "second", "--json").json()
    assert {**after, "thread_id": ""} == {**before, "thread_id": ""}


def test_pruning_leaves_what_inspect_shows(kept):
    """A pruned run is smaller or as large, and shows the same."""
    before = kept("inspect", "first", "--json").json()
    assert kept("threads", "first", "--prune").code == 0
    assert kept("inspect", "first", "--json").json() == before


def test_pruning_to_the_last_keeps_the_result(kept):
    """With `--keep 1` the rounds go and the solution stays."""
    assert kept("threads", "first", "--prune", "--keep", "1").code == 0
    assert kept("resume", "first", "--json").json()["solution"]


def test_a_deleted_run_is_gone(kept):
    """Its name is free again."""
    assert kept("threads", "first", "--delete").code == 0
    assert kept("inspect", "first").code == 1


def test_size_age_and_lease_are_listed(kept, monkeypatch):
    """The list tells what each run takes and who runs it."""
    (run,) = [each for each in kept("threads", "--json").json() if each["thread_id"] == "first"]
    assert run["bytes"] > 0
    assert run["lease"] is None
    monkeypatch.setenv("COLUMNS", "120")
    assert "size" in kept("threads").out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["x", "--delete"], 1, "no run is recorded under thread 'x'"),
        (["--delete"], 2, "--delete needs the names of threads"),
        (["first"], 2, "threads are named without a chore"),
        (["first", "--delete", "--prune"], 2, "--prune and --delete do different things"),
        (["first", "--delete", "--keep", "2"], 2, "--keep 2 says how much --prune leaves"),
        (["--import", "nowhere"], 2, "--import 'nowhere' is no file"),
        (["--export", "out"], 2, "--export writes one thread, 0 are named"),
    ],
)
def test_a_chore_that_cannot_be_done_is_one_sentence(kept, words, code, sentence):
    """Nothing is done, and the sentence says why."""
    outcome = kept("threads", *words)
    assert outcome.code == code
    assert outcome.err.splitlines()[-1].startswith(f"error: {sentence}")
    assert kept("inspect", "first").code == 0


def test_a_damaged_file_is_refused(kept, clean):
    """A cut export is one sentence, and no half of a run is stored."""
    kept("threads", "first", "--export", "run.bin")
    file = clean / "run.bin"
    file.write_bytes(file.read_bytes()[:-40])
    outcome = kept("threads", "second", "--import", "run.bin")
    assert outcome.code == 1
    assert "error: " in outcome.err
    assert kept("inspect", "second").code == 1

"""`threads` and `inspect`: what a store keeps, for people and for programs."""

import asyncio
import json
import re
import signal

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from pdr_checkpoints import open_checkpointer

from pdr_graph.servers import embedded_valkey
from tests.cli.conftest import SMALL, wait_for

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
        "pdr*",
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
    """A pipe gets all of each run in a line; a narrow terminal two lines, none of them broken."""
    piped = next(line for line in runs("threads").out.splitlines() if line.startswith("owed "))
    for part in ("stopped", "pdr", "distiller", "What is 7 x 7?"):
        assert part in piped
    for name, value in {
        "COLUMNS": "40",
        "LINES": "9",
        "TERM": "dumb",
        "TTY_COMPATIBLE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    narrow = runs("threads").out
    assert re.search(r"^done +finished +pdr\*? +\d+ s *\n  What is 6 x 7\?  →  42$", narrow, re.M)
    assert max(map(len, narrow.splitlines())) <= 40


def test_a_name_may_be_cut_short(runs, clean):
    """The beginning of a name stands for the run, wherever a run is named."""
    assert runs("inspect", "don", "--json").json()["thread_id"] == "done"
    assert runs("resume", "don", "--json").json()["thread_id"] == "done"
    assert runs("threads", "do", "--export", "run.bin").code == 0
    assert runs("threads", "done-too", "--import", "run.bin").code == 0
    ambiguous = runs("inspect", "don")
    assert runs("inspect", "done", "--json").json()["thread_id"] == "done"
    unknown = runs("inspect", "dome")
    assert runs("threads", "done-", "--delete").err.endswith("deleted thread done-too\n")
    assert (ambiguous.code, ambiguous.out) == (2, "")
    assert re.search(r"error: 'don' begins the names of done(-too)?, done(-too)?; ", ambiguous.err)
    assert (unknown.code, "no run is recorded under thread 'dome'" in unknown.err) == (1, True)


def test_the_last_run(runs, clean):
    """`--last` takes the run that was written last, and is not given beside a name."""
    runs("solve", "x", *SMALL, "--thread", "last")
    assert runs("inspect", "--last", "--json").json()["thread_id"] == "last"
    assert runs("resume", "--last", "--json").json()["thread_id"] == "last"
    assert "exported thread last to " in runs("threads", "--last", "--export", "last.bin").err
    for words in (["inspect"], ["resume"], ["inspect", "x", "--last"], ["resume", "x", "--last"]):
        outcome = runs(*words)
        assert (outcome.code, "--last" in outcome.err) == (2, True)
    for words in (["x", "--last", "--delete"], ["--last"], ["--last", "--import", "last.bin"]):
        assert runs("threads", *words).code == 2


def test_the_name_of_a_run_is_shown_when_it_starts(stored):
    """On standard error, where a run that is stopped can be found again; not with -q."""
    said = stored("solve", "x", *SMALL, "--thread", "shown").err.splitlines()
    assert said.index("thread shown") < next(
        index for index, line in enumerate(said) if line.startswith("round 1")
    )
    quiet = stored("solve", "x", *SMALL, "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out.startswith("answer  ")


def test_the_answer_alone(stored, mock):
    """`--answer-only` writes a line for scripts, and fails where there is no answer."""
    mock.configure(answers=["42"])
    outcome = stored("solve", "x", *SMALL, "--answer-only", "--thread", "alone")
    assert (outcome.code, outcome.out, outcome.err) == (0, "42\n", "")
    assert stored("resume", "alone", "--answer-only").out == "42\n"
    mock.configure(replies=[{"contains": "y", "content": "I do not know."}])
    none = stored("solve", "y", "--preset", "long_cot", "--answer-only")
    assert (none.code, none.out) == (1, "")
    assert none.err.startswith("error: the solution states no answer; `pdr-graph inspect ")
    text = stored("solve", "y", "--preset", "long_cot", "--answer", "text", "--answer-only")
    assert (text.code, text.out) == (0, "I do not know.\n")


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
        (["first"], 2, "threads are named, but not what to do with them"),
        (["first", "--delete", "--prune"], 2, "--prune and --delete do different things"),
        (["first", "--delete", "--keep", "2"], 2, "--keep 2 says how much --prune leaves"),
        (["--keep", "2"], 2, "--keep 2 says how much --prune leaves"),
        (["--limit", "0"], 2, "--limit '0': input should be greater than or equal to 1"),
        (["--import", "nowhere"], 2, "--import 'nowhere' is no file"),
        (["--export", "out"], 2, "--export writes one thread, 0 are named"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(kept, words, code, sentence):
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


def test_it_follows_a_live_run_to_its_end(spawn, mock):
    """What the run does is told while it lives, in order, and the watch ends with it."""
    mock.configure(answers=["42"], delay_s=0.7)
    run = spawn("solve", "What is 6 x 7?", *SMALL, "--thread", "live")
    wait_for(mock, in_flight=3)
    watch = spawn("inspect", "live", "--watch", "--quiet")
    out, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "round 1, 3 wide"
    assert sum(line.startswith("draft ") for line in lines) >= 3
    assert any(line.startswith("workspace") for line in lines)
    assert "solution by refine · answer 42" in lines
    assert lines[-1].startswith("finished, B_seq ")
    assert run.wait(timeout=60) == 0


def test_programs_read_json_lines(stored, mock):
    """Each event is one JSON object, the last of which is the end with the ledger."""
    mock.configure(answers=["42"])
    ledger = stored("solve", "x", *SMALL, "--thread", "past", "--json").json()["ledger"]
    outcome = stored("inspect", "past", "--watch", "--json")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert events[-1]["event"] == "end"
    assert events[-1]["ledger"]["b_total"] == ledger["b_total"]


def test_a_run_that_stopped_is_said_to_have(stored, mock):
    """No process holds the run, so the watch ends, says how to go on, and fails."""
    mock.configure(status=[{"match": {"contains": "7 x 7"}, "status": 400, "times": 2}])
    stored("solve", "What is 7 x 7?", *SMALL, "--thread", "halted")
    outcome = stored("inspect", "halted", "--watch", "--quiet")
    assert outcome.code == 1
    assert "stopped at distiller: no process runs thread 'halted'" in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_leaves_quietly_and_the_run_goes_on(spawn, mock):
    """The watcher is only a reader."""
    mock.configure(delay_s=1.5)
    run = spawn("solve", "x", *SMALL, "--thread", "left")
    wait_for(mock, in_flight=3)
    watch = spawn("inspect", "left", "--watch", "--quiet")
    assert watch.stdout is not None
    watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (130, "")
    assert run.wait(timeout=60) == 0

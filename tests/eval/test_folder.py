"""A run folder: several processes write to it, and later versions read it."""

import json
import multiprocessing
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from pdr_graph import preset
from pdr_graph.errors import ConfigError
from pdr_graph.eval.comparison import compare
from pdr_graph.eval.decomposition import Outcome
from pdr_graph.eval.records import read_header, read_run, tallies
from pdr_graph.eval.runner import RunFolder
from tests.eval.recorded import header, sample

HEADER = header()


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run that has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.open(HEADER)
    return folder


def test_of_two_headers_the_first_holds(folder):
    """A later process finds the header that is there."""
    assert RunFolder(folder.path).open({**HEADER, "run_id": "later"})["run_id"] == "r"
    assert {each.name for each in folder.path.iterdir()} == {"trace", "run.json"}


def test_what_others_append_is_seen(folder):
    """Each process reads every line once."""
    other = RunFolder(folder.path)
    other.append(sample("a", "1", answer="8"))
    folder.append(sample("a", "2", answer="8"))
    assert [each["problem_id"] for each in folder.refresh()] == ["1", "2"]
    assert folder.refresh() == []
    other.append(sample("a", "3", answer="8"))
    assert [each["problem_id"] for each in folder.refresh()] == ["3"]
    assert len(folder.finished) == 3


def test_a_line_that_was_torn_is_cut_off_by_the_next(folder):
    """Its sample is run again; until then readers see only whole lines."""
    folder.append(sample("a", "1", answer="8"))
    with folder.samples.open("ab") as file:
        file.write(json.dumps(sample("a", "2", answer="8")).encode()[:-40])
    assert [each["problem_id"] for each in read_run(folder.path).samples] == ["1"]
    assert len(folder.refresh()) == 1
    folder.append(sample("a", "3", answer="8"))
    assert [each["problem_id"] for each in folder.refresh()] == ["3"]
    assert folder.samples.read_bytes().count(b"\n") == 2


def test_of_two_lines_for_one_sample_the_later_holds(folder):
    """The sample had failed and was run again."""
    folder.append(sample("a", "1", answer=None, reason="failed"))
    folder.append(sample("a", "2", answer="8"))
    folder.append(sample("a", "1", answer="8"))
    assert [(each["problem_id"], each["reason"]) for each in read_run(folder.path).samples] == [
        ("2", "wrong"),
        ("1", "wrong"),
    ]


def claim_some(path: Path, wanted: list[int], ready, go) -> None:
    """Claim samples in another process, and hold them until told to let go."""
    folder = RunFolder(path)
    with ExitStack() as held:
        ready.put([number for number in wanted if held.enter_context(folder.claim(number))])
        go.get()


def test_a_claim_holds_between_processes_and_ends_with_its_own(folder):
    """A claim ends with its process, even if that is killed."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Queue(), context.Queue()
    other = context.Process(target=claim_some, args=(folder.path, [3, 5], ready, go))
    other.start()
    assert ready.get(timeout=60) == [3, 5]
    with folder.claim(3) as third, folder.claim(4) as fourth:
        assert (third, fourth) == (False, True)
    other.kill()
    other.join()
    with folder.claim(3) as third, folder.claim(5) as fifth:
        assert (third, fifth) == (True, True)
    folder.close()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "run.json is not JSON (.*); restore it, or name another --out"),
        ("[]", "run.json is not a JSON object; restore it, or name another --out"),
        ('{"schema": 2}', "has schema version 2, and this pdr-graph reads version 1"),
        ('{"schema": 1}', "run.json lacks arms, created, "),
    ],
)
def test_a_damaged_header_is_named(folder, data, said):
    """The sentence says what to do."""
    (folder.path / "run.json").write_text(data)
    with pytest.raises(ConfigError, match=said):
        read_header(folder.path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{\n", r"samples.jsonl line 2 is not JSON"),
        (b"\xff\n", r"samples.jsonl line 2 is not UTF-8 text"),
        (b'{"schema": 1}\n', r"samples.jsonl line 2 lacks answer, arm, "),
        (
            json.dumps(sample("a", "2", reason="x")).encode() + b"\n",
            "line 2 has unknown reason .x.",
        ),
    ],
)
def test_a_damaged_line_is_named(folder, line, said):
    """The reader stops, so that no sample is lost in silence."""
    folder.append(sample("a", "1", answer="8"))
    with folder.samples.open("ab") as file:
        file.write(line)
    for read in (folder.refresh, lambda: read_run(folder.path)):
        with pytest.raises(ConfigError, match=said):
            read()


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path):
    """The sentence shows the command."""
    with pytest.raises(ConfigError, match=r"holds no run\.json: `pdr-graph eval … --out"):
        read_run(tmp_path)


OLD = Path(__file__).parent / "version_0_1"
"""Written by `pdr-graph eval` of version 0.1.0: two problems, `long_cot` and `pdr@widths=2`."""


async def test_a_run_of_version_0_1_is_read_and_compared():
    """Settings, figures, drafts and workspaces are all there."""
    run = read_run(OLD)
    assert [(each.arm, each.correct, each.b_total) for each in tallies(run)] == [
        ("long_cot", 1, 132.0),
        ("pdr@widths=2", 1, 1023.0),
    ]
    assert run.config("pdr@widths=2") == preset(
        "pdr", widths=(2,), max_tokens=200, kappa=256, solution_tokens=64
    )
    right = next(each for each in run.samples if each["drafts"] and each["correct"])
    assert [draft["answer"] for draft in right["drafts"]] == ["42", "42"]
    assert right["workspaces"][0]["sources"] == [0, 1]
    compared = await compare([run])
    assert compared.contrasts[0].accuracy.value == 0.0
    outcomes = {each.arm: each.counts for each in compared.decompositions}
    assert outcomes["pdr@widths=2"][Outcome.CORRECT_WITH_MAJORITY] == 1


def test_a_run_of_version_0_1_is_continued(tmp_path):
    """Its header holds, and its samples count as finished."""
    shutil.copytree(OLD, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    recorded = json.loads((OLD / "run.json").read_text())
    assert folder.open({**recorded, "run_id": "later"}) == recorded
    assert len(folder.refresh()) == 4
    assert ("pdr@widths=2", "a", 0) in folder.finished

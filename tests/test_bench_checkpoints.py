"""The benchmark of the saver: its prose, its table, its ratios, and one saver from end to end."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from benchmarks.checkpoints.__main__ import main
from benchmarks.checkpoints.delta import table as delta_table
from benchmarks.checkpoints.report import table, targets, targets_table
from benchmarks.checkpoints.workload import DRAFT, ROUNDS, WIDTH, Drafter, prose

ROOT = Path(__file__).parent.parent


def figures(factor: float, *, failed: int = 0) -> dict:
    """Return figures of a saver that takes `factor` times as much as another."""
    call = {"p50": 1.0 * factor, "p99": 2.0 * factor}
    cell = {"runs_per_s": 10 / factor, "cpu_ms": 5.0, "failed": failed, "late": 0, "error": None}
    return {
        "sent": 1e6 * factor,
        "resident": 2e6 * factor,
        **dict.fromkeys(("put", "put_writes", "aput", "aput_writes", "get_state", "history"), call),
        "throughput": {"1": cell, "64": cell},
    }


@pytest.fixture(scope="module")
def text() -> str:
    return prose()


async def test_drafts_are_prose_and_no_two_of_a_run_alike(text):
    """Compressible as prose is, and not as repeated text: a saver must not win by the data."""
    drafter = Drafter(text)
    drafts = []
    for number in range(1, ROUNDS + 1):
        for index in range(WIDTH):
            made = await drafter({"seed": 3, "round": number, "index": index})
            drafts.append(made["drafts"][0]["text"])
    assert {len(draft) for draft in drafts} == {DRAFT}
    assert len(set(drafts)) == ROUNDS * WIDTH
    whole = "".join(drafts).encode()
    assert 0.25 < len(zlib.compress(whole)) / len(whole) < 0.5


def test_targets_compare_with_the_best_other():
    """Half of one and a fifth of another is half of the best."""
    found = {
        each.what: each
        for each in targets(
            {
                "ours": figures(1),
                "plainredis": figures(2),
                "official": figures(5),
                "sqlite": figures(1.25),
            }
        )
    }
    assert found["bytes sent, of official's"].ratio == 0.2
    assert found["bytes sent, of plainredis's"].met
    assert found["`put` p50, alone, of the best other on Redis"].ratio == 0.5
    pace = found["runs a second at 64 at once, of the best other"]
    assert (pace.ratio, pace.met) == (1.25, False)
    assert found["failures of ours at any concurrency"].met


def test_a_failure_of_ours_is_a_target_missed():
    """One failed run at one concurrency is said."""
    shown = targets_table(targets({"ours": figures(1, failed=1)}))
    assert "failures of ours at any concurrency | ≤ 0 | 2.00 | **not met**" in shown


def test_a_saver_that_is_missing_says_why_in_its_row():
    """It stops nobody else, and has no part in the ratios."""
    results = {"ours": figures(1), "aws": {"missing": "langgraph-checkpoint-aws is not installed"}}
    assert "| aws | langgraph-checkpoint-aws is not installed |" in table(results, [1, 64])
    assert [each.what for each in targets(results)] == ["failures of ours at any concurrency"]


def test_delta_histories_are_shown_beside_ours():
    """Milliseconds, and how many times as long as ours; what was not measured is said."""
    shown = delta_table({"1": {"ours": 0.5, "walk": 1.0}, "100": {"ours": 4.0, "walk": 50.0}})
    assert "| history of a delta channel, ms | 1 ancestor | 100 ancestors |" in shown
    assert "| LangGraph's walk, on ours | 1.00 (2.0×) | 50.00 (12.5×) |" in shown
    assert "| langgraph-checkpoint-postgres | not installed |  |" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "mine"], "no saver 'mine'; savers: ours, sqlite"),
        (["--concurrency", "1,two"], "'1,two' is not a list of numbers from 1"),
        (["--concurrency", "0"], "'0' is not a list of numbers from 1"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(capsys, words, sentence):
    """Before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.redis
def test_ours_is_measured_from_end_to_end():
    """A real server, real runs, figures for every column."""
    words = ["--quick", "--only", "ours", "--concurrency", "2", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.checkpoints", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = found["results"]["ours"]
    assert ours["throughput"]["2"]["failed"] == 0
    assert (found["registry"]["threads"], found["registry"]["left"]) == (1000, 0)
    assert 0 < ours["put_writes"]["p50"] <= ours["put_writes"]["p99"]
    assert set(found["delta"]) == {"1", "10", "100"}
    assert 0 < found["delta"]["100"]["ours"] < found["delta"]["100"]["walk"]
    assert {each["what"]: each["met"] for each in found["targets"]} == {
        "failures of ours at any concurrency": True
    }

"""The adaptive study: from problems to a table of differences."""

import argparse
import json
from pathlib import Path

from benchmarks.studies.adaptive import main, sources
from pdr_graph.eval.problems import load_problems


def test_its_problems_are_two_tasks_and_gsm8k_where_it_is_given():
    """Each task has as many problems as asked for, of the fixed seed."""
    asked = argparse.Namespace(problems=3, data=None, gsm8k=Path("g.jsonl"))
    named = dict(sources(asked))
    assert named.pop("gsm8k") == "g.jsonl"
    assert all("seed=31" in source for source in named.values())
    assert [len(load_problems(source).problems) for source in named.values()] == [3, 3]


def test_it_measures_compares_and_lays_out_the_sources_of_a_folder(
    mock, monkeypatch, tmp_path, capfd
):
    """Each command makes a table of both contrasts; the last one's holds the first's problems too.

    The adaptive arm stops when its drafts agree.
    """
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_DATA_DIR", str(tmp_path / "data"))
    mock.configure(answers=["42"])
    out = tmp_path / "out"
    for name in ("first", "second"):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"id": f"q{i}", "problem": f"{name} {i}", "answer": "42"} for i in range(2)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--base-url", mock.url, "--data", str(file), "--problems", "2", "--out", str(out)]
        assert main(words) == 0
        table = (out / name / "table.md").read_text()
        assert "| pdr_adaptive | pdr | 2 | +0.0 " in table
        assert "| pdr_adaptive | majority | 2 | +0.0 " in table
        assert (out / name / "plots" / "accuracy-b-total.png").stat().st_size > 1000
    # The vote's 16 drafts are also the first 4 of one arm and the first 8 of the other.
    assert mock.stats()["calls"] == 2 * 2 * (16 + (15 - 8))
    table = (out / "table.md").read_text()
    for name in ("first", "second"):
        assert f"| {name}/pdr_adaptive | {name}/majority | 2 | +0.0 " in table
    assert (out / "plots" / "accuracy-b-total.png").exists()

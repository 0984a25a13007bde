"""The adaptive study: from problems to a table of differences."""

import json

from benchmarks.studies.adaptive import main


def test_it_measures_and_compares(mock, monkeypatch, tmp_path, capfd):
    """Both claims are in the table, and the adaptive arm stopped where its drafts agreed."""
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_DATA_DIR", str(tmp_path / "data"))
    mock.configure(answers=["42"])
    file = tmp_path / "sums.jsonl"
    lines = [
        {"id": f"q{i}", "problem": f"What is {i} + 42 - {i}?", "answer": "42"} for i in range(3)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    assert (
        main(["--base-url", mock.url, "--data", str(file), "--problems", "3", "--out", str(out)])
        == 0
    )
    table = (out / "table.md").read_text()
    assert "| pdr_adaptive | pdr | 3 | +0.0 " in table
    assert "| pdr_adaptive | majority | 3 | +0.0 " in table
    assert mock.stats()["calls"] == 3 * (4 + 15 + 16)
    assert (out / "plots" / "accuracy-b-total.png").stat().st_size > 1000

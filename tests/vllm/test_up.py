"""`pdr-graph up` and real vLLM: its flags are vLLM's, and a run fits what it was sized for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from engine.environment import vllm_environment
from engine.model_folder import smollm2_folder

BUDGETS = ["--widths", "2", "--kappa", "64", "--max-tokens", "16", "--solution-tokens", "32"]


def pdr_graph(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PDR_")}
    return subprocess.run(
        [sys.executable, "-m", "pdr_graph.cli", *words],
        env={**kept, "PDR_DATA_DIR": str(data_dir), "PDR_UP_VLLM_PYTHON": str(vllm_environment())},
        cwd=data_dir,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_up_starts_vllm_for_a_strategy(tmp_path):
    """A run of the strategy that the server was sized for fits it; `down` leaves nothing."""
    model = str(smollm2_folder(vllm_environment()))
    started = pdr_graph(tmp_path, "up", "--model", model, *BUDGETS, "--json")
    try:
        assert started.returncode == 0, started.stderr
        said = started.stdout
        where = ["--base-url", json.loads(said)["model"]["url"], "--model", model]
        where += ["--checkpoint", json.loads(said)["store"]["url"]]
        solved = pdr_graph(tmp_path, "solve", "What is 6 x 7?", *BUDGETS, *where, "--json")
        assert solved.returncode == 0, solved.stderr
        assert json.loads(solved.stdout)["ledger"]["calls"] == 4
        checked = pdr_graph(tmp_path, "doctor", *where, "--json").stdout
        details = {each["name"]: each["detail"] for each in json.loads(checked)["checks"]}
        assert details["priorities"] == "sent; the endpoint takes them"
        record = json.loads((tmp_path / "stack" / "model.json").read_text())
        children = psutil.Process(record["server"]["pid"]).children(recursive=True)
        assert children
    finally:
        ended = pdr_graph(tmp_path, "down")
    assert ended.returncode == 0, ended.stderr
    assert not [each for each in children if each.is_running() and each.status() != "zombie"]

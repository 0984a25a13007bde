"""No endpoint, no store, no setting: the embedded parts stand in, and say so."""

import pytest

from pdr_graph.servers import default_data_dir, find_weights

pytestmark = [pytest.mark.local, pytest.mark.redis]


def test_solve_with_nothing_configured(cli, data_dir, monkeypatch):
    """A real model answers, a real store keeps the run, and each is announced in a line."""
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    (data_dir / "weights").mkdir(exist_ok=True)
    (data_dir / "weights" / weights.name).symlink_to(weights)
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    words = ["--widths", "2", "--max-tokens", "16", "--thread", "embedded"]
    outcome = cli("solve", "What is 6 x 7?", *words, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["ledger"]["calls"] == 4
    said = outcome.err.splitlines()
    assert said[0].startswith("no endpoint is configured (--base-url / PDR_BASE_URL): ")
    assert said[0].endswith("widths 2, kappa 384, max_tokens 16, solution_tokens 192")
    assert said[1].startswith("store: embedded Valkey, kept in ")
    assert said[2].startswith("model: SmolLM2-135M-Instruct in llama.cpp at http://127.0.0.1:")
    assert cli("resume", "embedded", "--json").json()["thread_id"] == "embedded"

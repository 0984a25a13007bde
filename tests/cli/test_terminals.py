"""Terminals that lack characters, and users who change their mind at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli import shown
from tests.cli.conftest import SMALL

COMMANDS = ["solve", "eval"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_any_encoding(clean, encoding, command):
    """What the encoding lacks is spelled, and nothing breaks."""
    done = subprocess.run(
        [sys.executable, "-m", "pdr_graph.cli", command, "--help"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"Usage: pdr-graph {command} [OPTIONS]" in done.stdout.decode(encoding)


SHOW = """
import sys
from pdr_graph.cli import readable_in_any_encoding
from pdr_graph.cli.output import Output
from pdr_graph.cli.run_display import result_parts
from pdr_graph.cli.inspect import run_parts
from pdr_graph.cli.threads import RunTable
from tests.cli import shown
readable_in_any_encoding()
output = Output()
output.show(*result_parts(shown.RESULT, None))
output.show(*run_parts(shown.HISTORY, 6))
output.show(RunTable(shown.RUNS, shown.NOW))
output.say("answers 7 \u00d73 \u00b7 17 \u2026 \u2603")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("terminal", ["0", "1"])
def test_screens_in_any_encoding(encoding, terminal):
    """So it is with results, tables and progress."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={
            **os.environ,
            "PYTHONIOENCODING": encoding,
            "TTY_COMPATIBLE": terminal,
            "TERM": "dumb",
        },
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert shown.RESULT.thread_id.encode() in done.stdout
    if encoding == "ascii":
        assert done.stderr.decode("ascii") == "answers 7 x3 - 17 ... \\u2603\n"


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("words", [["solve", "x", *SMALL], ["threads"]])
def test_an_early_interrupt_is_quiet(clean, tmp_path, words, after_s):
    """Whatever is being imported, Ctrl-C ends the command with 130 and without a word."""
    code = (
        "import signal, sys\nsys.argv[0] = 'pdr-graph'\nprint('begun', flush=True)\n"
        "from pdr_graph.cli import main\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={
            **os.environ,
            "PDR_DATA_DIR": str(tmp_path / "data"),
            "PDR_BASE_URL": "http://127.0.0.1:1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    if process.returncode == 130:
        assert [
            line for line in said.splitlines() if not line.startswith(("store:", "stopped"))
        ] == []

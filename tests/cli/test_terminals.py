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


def test_ctrl_c_is_taken_before_anything_is_loaded(clean):
    """Until then an interrupt shows a traceback: only what Python has loaded by itself is used."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom pdr_graph.cli import main\n"
        "print(*sorted(set(sys.modules) - before - set(sys.builtin_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("pdr_graph pdr_graph.cli\n", "")


INTERRUPTED_IMPORT = """
import signal, sys

class Interrupt:
    left = int(sys.argv.pop(1))

    @classmethod
    def find_spec(cls, *_):
        cls.left -= 1
        if not cls.left:
            signal.raise_signal(signal.SIGINT)

from pdr_graph.cli import main
sys.meta_path.insert(0, Interrupt)
main()
"""


@pytest.mark.parametrize("number", [1, 3, 30, 200, 600])
@pytest.mark.parametrize("words", [["--help"], ["threads"], ["solve", "x", *SMALL]])
def test_an_interrupt_of_an_import_is_quiet(clean, tmp_path, words, number):
    """Whichever of a command's imports it meets, from the first: 130 and not a word."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, str(number), *words],
        env={
            **os.environ,
            "PDR_DATA_DIR": str(tmp_path / "data"),
            "PDR_BASE_URL": "http://127.0.0.1:1",
            "PDR_REDIS_URL": "redis://127.0.0.1:1",
            "PDR_RETRIES": "0",
        },
        capture_output=True,
        text=True,
    )
    if done.returncode == 130:
        assert (done.stdout, done.stderr) == ("", "")
    else:
        assert number > 100, "it was never interrupted"
        assert "Traceback" not in done.stderr

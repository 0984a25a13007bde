"""The first ten minutes: the script that records them, and the page that shows them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pdr_graph.servers import default_data_dir, find_weights

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/walkthrough"
PAGE = (ROOT / "docs/tutorials/walkthrough.md").read_text("utf-8")


def recorder():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("record", FOLDER / "record.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["record"] = module  # as dataclasses want it
    spec.loader.exec_module(module)
    return module


def text_of(svg: str) -> str:
    """The text of a picture, in its order."""
    return " ".join(re.findall(r"<text[^>]*>(.*?)</text>", svg)).replace("&#160;", " ")


def test_the_page_types_what_the_script_does():
    """Each command, with a picture of its screen."""
    for step in recorder().STEPS:
        assert f"$ {step.line}".replace("'", '"') in PAGE
        assert f"../walkthrough/{step.name}.svg" in PAGE


def test_the_pictures_load_nothing_and_name_no_folder_of_ours():
    """They are shown in documents that are read without a network, and by strangers."""
    pictures = sorted(FOLDER.glob("*.svg"))
    assert pictures
    for file in pictures:
        svg = file.read_text("utf-8")
        assert not re.search(r"url\(\W*http|href=|<script|/work|/home|/root", svg), file


def test_a_screen_that_is_drawn_again_shows_what_is_left():
    """Up, erase, write anew: as rich draws; sequences that are cut in two are put together."""
    screen = recorder().Screen()
    screen.write("kept\r\n1 of 2\r\n\x1b[2K\x1b[1A\x1b[2K2 of 2\x1b[0m\r\n\r\x1b[1A\x1b[2Kdone\r\n")
    assert screen.text() == "kept\ndone"


def test_a_terminal_is_recorded(tmp_path):
    """With its colours, half way and at the end; the exit code is the command's."""
    code = (
        "import sys, time\n"
        "sys.stdout.write('\\x1b[32mgo\\x1b[0m\\nhalf'); sys.stdout.flush(); time.sleep(0.3)\n"
        "sys.stdout.write('\\r\\x1b[2Kend\\n'); sys.exit(3)\n"
    )
    done = recorder().recorded((sys.executable, "-c", code), os.environ, tmp_path)
    assert done.code == 3
    assert done.half_way.endswith("half")
    assert done.screen == "\x1b[32mgo\x1b[0m\nend"
    svg = recorder().picture("go", done.screen, "x")
    assert text_of(svg).split() == ["pdr-graph", "$", "go", "go", "end"]


@pytest.mark.local
@pytest.mark.redis
def test_the_walkthrough_runs(tmp_path):
    """On the tiny model and in this environment: a real store, an empty home, no error."""
    weights = find_weights(default_data_dir())
    if weights is None:
        pytest.skip("no weights: `python -m pdr_graph.servers.weights` fetches them")
    done = subprocess.run(
        [
            *(sys.executable, str(FOLDER / "record.py"), "--here", "--short"),
            *("--weights", str(weights.parent), "--out", str(tmp_path)),
        ],
        env={**os.environ, "PDR_DEMO": "tiny"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pictures = {file.stem: text_of(file.read_text("utf-8")) for file in tmp_path.glob("*.svg")}
    assert set(pictures) == {"demo", "demo-live", "solve", "inspect", "threads"}
    assert "vote_first" in pictures["demo"]
    assert "drafts" in pictures["demo-live"]
    assert "first" in pictures["threads"]

"""The README's section on evaluation: its commands run as they stand."""

import json
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
SECTION = README.read_text("utf-8").split("## Evaluate\n")[1].split("\n## ")[0]
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for line in re.findall(r"^\$ (pdr-graph .*)$", SECTION, re.M)
]


def command(name: str, which: int = 0) -> list[str]:
    """Return the words of the README's n-th command of a name."""
    return [words for words in COMMANDS if words[0] == name][which]


def test_a_run_is_measured_and_compared(forgetful, quiz, mock, tmp_path, monkeypatch):
    """The files that the commands name are there afterwards."""
    monkeypatch.chdir(tmp_path)
    quiz.file.rename("problems.jsonl")
    done = forgetful(*command("eval"), "--quiet")
    assert done.code == 0, done.err
    assert mock.stats()["calls"] == 5 * 4 * (1 + 15 + 16)
    done = forgetful(*command("compare"))
    assert done.code == 0, done.err
    assert Path("runs/first/table.md").is_file()
    assert len(list(Path("runs/first/plots").iterdir())) == 4


def test_a_sweep_of_procedural_tasks_is_measured(forgetful, mock, tmp_path, monkeypatch):
    """One arm for each kappa."""
    pytest.importorskip("reasoning_gym", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    words = [word.replace("size=100", "size=1") for word in command("eval", 1)]
    done = forgetful(*words, "--json", "--quiet")
    assert done.code == 0, done.err
    assert len(done.json()["arms"]) == 2


def test_answers_are_checked(forgetful, tmp_path, monkeypatch):
    """A line in is a line out."""
    monkeypatch.chdir(tmp_path)
    Path("answers.jsonl").write_text(json.dumps({"gold": "7", "pred": "So \\boxed{7}."}) + "\n")
    done = forgetful(*command("check"))
    assert done.code == 0, done.err
    assert '"correct": true' in done.out

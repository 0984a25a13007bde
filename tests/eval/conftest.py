"""Problems with known answers from the mock endpoint, and the command line in this process."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import clean, cli, data_dir, forgetful, spawn, stored
from tests.mock_endpoint import MockEndpoint


@dataclass(frozen=True)
class Quiz:
    """A file of problems, and which of them the endpoint answers correctly."""

    file: Path
    golds: dict[str, str]
    right: set[str]

    @property
    def accuracy(self) -> float:
        """Share of problems that are answered correctly, with any strategy."""
        return len(self.right) / len(self.golds)


def write_quiz(folder: Path, mock: MockEndpoint, number: int) -> Quiz:
    """Write problems; every call on the second and fourth of five gets the right answer."""
    golds = {f"q{index}": str(100 + index) for index in range(number)}
    right = {name for index, name in enumerate(golds) if index % 5 in {1, 3}}
    texts = {name: f"Question {name}: what is {int(gold) - 1} + 1?" for name, gold in golds.items()}
    file = folder / "quiz.jsonl"
    lines = [{"id": name, "problem": texts[name], "answer": golds[name]} for name in golds]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = {name: gold if name in right else str(int(gold) + 5) for name, gold in golds.items()}
    mock.configure(
        replies=[{"contains": f"Question {name}:", "answers": [answers[name]]} for name in golds]
    )
    return Quiz(file, golds, right)


@pytest.fixture
def quiz(tmp_path, mock) -> Quiz:
    """Five problems, of which two are answered correctly."""
    return write_quiz(tmp_path, mock, 5)

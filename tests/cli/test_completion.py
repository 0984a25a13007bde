"""What a shell completes, asked as a shell asks."""

import os
import subprocess
import sys

import pytest
from pdr_checkpoints import keys
from pdr_checkpoints.session import SaverOptions

from pdr_graph.cli.completion import REGISTRY
from pdr_graph.config import PRESETS
from tests.cli.conftest import SMALL


@pytest.fixture
def tab(clean):
    """Presses the tabulator after some words; returns what a shell would offer."""

    def press(line: str, **variables: str) -> list[str]:
        words = f"pdr-graph {line}"
        asked = {
            "_PDR_GRAPH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "pdr_graph.cli"],
            env={**os.environ, **asked, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return press


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sol", ["solve"]),
        ("solve --preset vote", ["vote_first"]),
        ("solve --preset ", list(PRESETS)),
        ("solve --verifier con", ["consensus"]),
        ("solve --finish gu", ["guarded"]),
        ("solve --distiller summ", ["summary"]),
        ("up --engine e", ["embedded"]),
        ("down mo", ["model"]),
        ("resume --answer-o", ["--answer-only"]),
        ("inspect ", []),
    ],
)
def test_words_are_completed(tab, line, offered):
    """Commands, options, presets, parts; runs only where their store runs."""
    assert tab(line, PDR_DATA_DIR="nowhere") == offered


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://203.0.113.1", "memory", "x"])
def test_a_store_that_does_not_answer_offers_nothing(tab, url):
    """And nothing is said of it, or started."""
    assert tab("inspect ", PDR_REDIS_URL=url) == []


@pytest.mark.redis
def test_runs_are_completed(tab, stored, data_dir):
    """By the names of a store that runs already."""
    stored("solve", "x", *SMALL, "--thread", "tab-one")
    assert tab("inspect tab-", PDR_DATA_DIR=str(data_dir)) == ["tab-one"]
    assert tab("threads --delete tab-", PDR_DATA_DIR=str(data_dir)) == ["tab-one"]
    assert tab("solve --thread tab-", PDR_DATA_DIR=str(data_dir)) == []


def test_the_registry_is_that_of_the_saver():
    """It is read without the saver, and has the saver's name."""
    assert keys.registry_keys(SaverOptions().prefix).threads == REGISTRY

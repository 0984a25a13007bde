r"""The checker against a file of pairs, one JSON object a line.

`{"id": …, "gold": "25", "pred": "\\boxed{25}", "expected": true, "mode": "answer"}`
"""

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from pdr_graph.answers import Checker

_FILE = os.environ.get("PDR_VERIFY_CASES")


@pytest.fixture
def cases() -> list[dict[str, Any]]:
    """Read the file; without one there is nothing to check."""
    if _FILE is None:
        pytest.skip("PDR_VERIFY_CASES names no file of cases")
    return [json.loads(line) for line in Path(_FILE).read_text().splitlines()]


async def test_verdicts_on_the_cases(checker: Checker, cases: list[dict[str, Any]]) -> None:
    """Few are wrong, fewest of all those that give credit; half of them take no worker."""
    false_positives, false_negatives, seconds = [], [], []
    for case in cases:
        result = await checker.check(case["gold"], case["pred"], mode=case["mode"])
        seconds.append(result.seconds)
        if result.correct and not case["expected"]:
            false_positives.append(case["id"])
        if case["expected"] and not result.correct:
            false_negatives.append(case["id"])
    assert len(false_positives) <= 2, false_positives
    assert len(false_negatives) <= 12, false_negatives
    assert statistics.median(seconds) < 0.002

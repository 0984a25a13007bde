"""The checker against a file of pairs, one JSON object a line.

`{"id": …, "gold": "25", "pred": "\\\\boxed{25}", "expected": true, "mode": "answer"}`
"""

import json
import os
import statistics
from pathlib import Path

import pytest

from pdr_graph.answers import Checker

_FILE = os.environ.get("PDR_VERIFY_CASES")


@pytest.mark.skipif(_FILE is None, reason="PDR_VERIFY_CASES names no file of cases")
async def test_verdicts_on_the_cases(checker: Checker) -> None:
    """Few are wrong, fewest of all those that give credit; half of them take no worker."""
    assert _FILE is not None
    cases = [json.loads(line) for line in Path(_FILE).read_text().splitlines()]
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

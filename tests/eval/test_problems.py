"""Problems from JSON lines, from reasoning-gym, and from the hub."""

import importlib.util
import json
import re

import pytest

from pdr_graph.answers import CheckVerdict
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.problems import ANY_ACCEPTED, load_problems


def write(folder, text: str | bytes) -> str:
    """Write a data file and return its path."""
    file = folder / "data.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def test_json_lines_are_problems(tmp_path):
    """An id is optional; numbers are answers; other fields and blank lines are ignored."""
    rows = [
        {"problem": " What? ", "answer": 3, "source": "x"},
        {"id": "b", "problem": "P", "answer": "4"},
    ]
    text = "\ufeff" + json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1])
    problems = load_problems(write(tmp_path, text))
    assert [(each.id, each.text, each.gold) for each in problems.problems] == [
        ("1", "What?", "3"),
        ("b", "P", "4"),
    ]
    assert problems.first(1).sha256 not in {problems.sha256, ""}
    assert problems.first(2) is problems


BAD = {
    "no JSON": (b"{", "line 1 is not JSON ("),
    "no object": (b"3", "line 1 is not a JSON object; write"),
    "no UTF-8": (b'{"problem": "\xff"}', "line 1 is not UTF-8 text"),
    "no problem": (b'{"answer": 1}', "line 1 has no 'problem'; it has answer"),
    "empty answer": (b'{"problem": "x", "answer": " "}', "line 1: 'answer' is empty"),
    "answer that is a list": (b'{"problem": "x", "answer": []}', "must be text or a number"),
    "nothing": (b"\n\n", "holds no problems"),
    "an id twice": (
        b'{"id":1,"problem":"x","answer":1}\n{"id":"1","problem":"y","answer":1}',
        "two problems with id '1'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_line_is_refused_by_number(case, tmp_path):
    """The sentence names the line and the fault."""
    data, said = BAD[case]
    with pytest.raises(ConfigError) as refused:
        load_problems(write(tmp_path, data))
    assert said in str(refused.value)


def test_a_task_makes_the_same_problems_every_time():
    """Another seed makes others; settings go to the task."""
    source = "reasoning-gym:chain_sum?size=3&seed=7&min_terms=2&max_terms=2"
    one, same = load_problems(source), load_problems(source)
    other = load_problems(source.replace("seed=7", "seed=8"))
    assert (len(one.problems), one.sha256) == (3, same.sha256)
    assert one.sha256 != other.sha256
    assert one.problems[0].text.count("+") + one.problems[0].text.count("-") >= 1
    assert "reasoning-gym's scorer of chain_sum gives 1.0 or more" in one.scored_by


async def test_only_a_full_score_counts():
    """The task's scorer gives part of a point to a reply that only contains the answer."""
    problems = load_problems("reasoning-gym:chain_sum?size=1&seed=7")
    [problem] = problems.problems
    assert problems.score is not None
    assert await problems.score(problem, problem.gold) is CheckVerdict.CORRECT
    assert await problems.score(problem, f"{problem.gold}.0") is CheckVerdict.CORRECT
    assert await problems.score(problem, f"about {problem.gold}") is CheckVerdict.WRONG
    assert await problems.score(problem, "7" * 30) is CheckVerdict.WRONG


async def test_a_task_with_many_answers_is_judged_by_its_scorer():
    """Any expression with the right value is correct."""
    problems = load_problems("reasoning-gym:countdown?size=1&seed=1")
    [problem] = problems.problems
    assert problems.score is not None
    if problem.gold != ANY_ACCEPTED:
        assert await problems.score(problem, problem.gold) is CheckVerdict.CORRECT
    assert await problems.score(problem, "1") is not CheckVerdict.CORRECT


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("reasoning-gym:chain_sums", "no task 'chain_sums' among its .*perhaps one of chain_sum,"),
        ("reasoning-gym:chain_sum?size=0", "size is 0, it must be a whole number of 1 or more"),
        ("reasoning-gym:chain_sum?seed=x", "seed is 'x', it must be a whole number"),
        ("reasoning-gym:chain_sum?size", "is malformed"),
        ("reasoning-gym:chain_sum?foo=1", "refuses chain_sum with size=100, seed=0, foo=1"),
        ("hf:org/name", "names no split"),
        ("nowhere.jsonl", "cannot be read: No such file"),
    ],
)
def test_a_source_that_is_none_is_refused(source, said):
    """One sentence names the source and the fault."""
    with pytest.raises(ConfigError, match=said):
        load_problems(source)


def test_a_data_set_is_read_by_its_columns(tmp_path):
    """Of an answer with an explanation, only the stated result counts."""
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("needs datasets: make test-clients")
    rows = [{"question": "What is 1 + 1?", "answer": "It is two.\n#### 2"}]
    write(tmp_path, json.dumps(rows[0]))
    [problem] = load_problems(f"hf:{tmp_path}:train").problems
    assert (problem.text, problem.gold) == ("What is 1 + 1?", "2")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_problems(f"hf:{tmp_path}:test")


def test_without_the_library_one_sentence_says_how_to_get_it():
    """It names feature, package and command."""
    if importlib.util.find_spec("datasets") is not None:
        pytest.skip("datasets is installed")
    with pytest.raises(ConfigError, match=re.escape(f"need datasets: {install_command('hf')}")):
        load_problems("hf:org/name:test")

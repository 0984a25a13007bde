"""The log of a run: structured, complete, and without the texts that the run is about."""

import json
import logging

import pytest

from pdr_graph import PDRError, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError
from pdr_graph.settings import load_settings
from pdr_graph.telemetry import logged_to
from tests.embed.parent import CONFIG, node_parent

SECRET = "the marmalade question"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_each_step_of_a_run_is_a_json_line(mock, connect, tmp_path):
    """From begin to end, with numbers that are the ledger's and no text of the run."""
    file = tmp_path / "logs" / "runs.jsonl"
    with logged_to(file):
        result = await solve(
            SECRET, preset("pdr", widths=(2,)), model=connect(), thread_id="a thread"
        )
    told = lines(file)
    assert [each["event"].removeprefix("run.") for each in told] == [
        *("begin", "round", "draft", "draft", "workspace", "finish", "solution", "verdict", "end")
    ]
    assert {each["thread"] for each in told} == {"a thread"}
    assert told[-1]["b_total"] == result.ledger.b_total
    assert sum(each["tokens"] for each in told if each["event"] == "run.draft") == sum(
        row["prompt_tokens"] + row["completion_tokens"]
        for row in result.ledger.rows
        if row["node"] == "drafter"
    )
    assert "marmalade" not in file.read_text()


async def test_a_run_that_stops_says_by_what(mock, connect, tmp_path):
    """The error's kind is a field, and its text is not."""
    mock.configure(status=[{"match": {"contains": "marmalade"}, "status": 400, "times": 99}])
    file = tmp_path / "runs.jsonl"
    with logged_to(file), pytest.raises(PDRError):
        await solve(SECRET, preset("pdr", widths=(2,)), model=connect())
    assert (lines(file)[-1]["event"], lines(file)[-1]["error"]) == ("run.stopped", "QuorumError")
    assert "marmalade" not in file.read_text()


def test_blocks_on_one_file_may_overlap(tmp_path):
    """A server's runs do: each record is written once, until the last block ends."""
    file, other = tmp_path / "runs.jsonl", tmp_path / "other.jsonl"
    logger, package = logging.getLogger("pdr_graph.trace"), logging.getLogger("pdr_graph")
    before = package.level
    first, second, third = logged_to(file), logged_to(file), logged_to(other)
    for said, step in [
        ("none", first.__enter__),
        ("one", second.__enter__),
        ("two", third.__enter__),
        ("three", lambda: first.__exit__(None, None, None)),
        ("four", lambda: second.__exit__(None, None, None)),
        ("five", lambda: third.__exit__(None, None, None)),
        ("six", lambda: None),
    ]:
        logger.info(said)
        step()
    assert [each["message"] for each in lines(file)] == ["one", "two", "three", "four"]
    assert [each["message"] for each in lines(other)] == ["three", "four", "five"]
    assert package.level == before


async def test_what_is_logged_without_fields_is_a_message(tmp_path):
    """Warnings of the package keep their words."""
    file = tmp_path / "runs.jsonl"
    with logged_to(file):
        logging.getLogger("pdr_graph.trace").warning("trace.lost file=%s", "x")
        logging.getLogger("elsewhere").warning("not ours")
    (line,) = lines(file)
    assert (line["event"], line["level"]) == ("trace.lost", "warning")
    assert line["message"] == "trace.lost file=x"


async def test_a_file_that_cannot_be_written_is_named(tmp_path):
    """Before any model is started."""
    settings = load_settings(base_url="http://127.0.0.1:9/v1", log_file=tmp_path)
    with pytest.raises(ConfigError, match=r"log file .* cannot be written: Is a directory"):
        async with open_client(settings):
            pass


def test_afterwards_the_package_logs_as_before(tmp_path):
    """Handler and level are put back."""
    package = logging.getLogger("pdr_graph")
    before = (package.level, list(package.handlers))
    with logged_to(tmp_path / "runs.jsonl"):
        assert package.isEnabledFor(logging.INFO)
    assert (package.level, package.handlers) == before


async def test_a_run_inside_a_graph_is_logged_whole(connect, tmp_path):
    """From begin to end, under the thread of the graph around it."""
    file = tmp_path / "runs.jsonl"
    graph = node_parent(connect()).compile()
    with logged_to(file):
        await graph.ainvoke(
            {"messages": [("user", SECRET)]}, {"configurable": {"thread_id": "outer"}}
        )
    told = lines(file)
    assert [told[0]["event"], told[-1]["event"]] == ["run.begin", "run.end"]
    assert sum(each["event"] == "run.draft" for each in told) == sum(CONFIG.widths)
    assert {each["thread"] for each in told} == {"outer"}


@pytest.mark.security
def test_no_secret_reaches_the_file(tmp_path):
    """Neither in the text of a record nor in one of its fields."""
    with logged_to(tmp_path / "log"):
        said = "bad key sk-abc123def456ghi at redis://:hush@h/0"
        logging.getLogger("pdr_graph.x").warning("call.failed %s", said)
        logging.getLogger("pdr_graph.x").warning("draft.failed", extra={"fields": {"error": said}})
    text = (tmp_path / "log").read_text()
    assert len(text.splitlines()) == 2
    assert "abc123" not in text
    assert "hush" not in text

"""The full text of every call, one JSON object a line."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from pdr_graph.trace import JsonLinesTrace, TraceRecord
from tests.fakes import odd_texts


def make_record(index: int = 0, thought: str = "hm", solution: str = "yes") -> TraceRecord:
    return TraceRecord(
        thread_id="t",
        round=1,
        node="drafter",
        index=index,
        template="draft",
        prompt="P",
        thought=thought,
        solution=solution,
        finish_reason="stop",
        prompt_tokens=10,
        completion_tokens=5,
        seed=7,
        seconds=0.5,
        error="",
    )


def read(file) -> list[TraceRecord]:
    lines = file.read_text("utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


async def test_calls_are_appended_in_the_order_in_which_they_end(tmp_path):
    """A second trace on the same file goes on where the first stopped."""
    file = tmp_path / "trace.jsonl"
    await JsonLinesTrace(file).record(make_record(0))
    await JsonLinesTrace(file).record(make_record(1))
    assert read(file) == [make_record(0), make_record(1)]


async def test_parallel_calls_do_not_mix_their_lines(tmp_path):
    """Sixty-four long thoughts that end at once are sixty-four whole lines."""
    trace = JsonLinesTrace(tmp_path / "trace.jsonl")
    records = [make_record(index, thought="word " * 20_000) for index in range(64)]
    await asyncio.gather(*map(trace.record, records))
    assert sorted(read(trace.file), key=lambda record: record["index"]) == records


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thought=odd_texts, solution=odd_texts)
async def test_any_text_reads_back_as_it_was(tmp_path, thought, solution):
    """Line breaks, line separators and lone surrogates included."""
    trace = JsonLinesTrace(tmp_path / "trace.jsonl")
    record = make_record(thought=thought, solution=solution)
    await trace.record(record)
    # JSON itself takes two halves of a character that meet for the whole one.
    assert read(trace.file) == [json.loads(json.dumps(record))]
    trace.file.unlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
async def test_a_full_disk_costs_the_trace_and_not_the_run(caplog):
    """A record that cannot be kept is logged; the run goes on."""
    await JsonLinesTrace(Path("/dev/full")).record(TraceRecord(thread_id="t"))
    assert "trace.lost file=/dev/full" in caplog.text

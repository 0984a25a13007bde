"""The benchmark of the orchestration: its endpoint, its arithmetic, one case from end to end."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.orchestration.endpoint import BenchEndpoint
from benchmarks.orchestration.fit import fit
from benchmarks.orchestration.lag import INTERVAL_S, lag_of_loop, percentile, summary_ms, unrolled
from benchmarks.orchestration.load import Job, Load

ROOT = Path(__file__).parent.parent
NUMBERS = st.floats(-1e3, 1e3)
WHOLE = st.integers(-999, 999)


# ------------------------------------------------------------------------------ arithmetic


@given(slope=WHOLE, intercept=WHOLE, xs=st.lists(st.integers(-99, 99), min_size=2, unique=True))
def test_a_line_is_found_through_its_own_points(slope, intercept, xs):
    """Slope and intercept come back, and explain all of the variance."""
    line = fit(xs, [intercept + slope * x for x in xs])
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.intercept == pytest.approx(intercept, abs=1e-4)
    assert line.r_squared == pytest.approx(1.0, abs=1e-6)


def test_a_parabola_is_no_line():
    """What grows with the square must show in the fit."""
    xs = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert fit(xs, [x * x for x in xs]).r_squared < 0.96


@given(late_s=st.floats(0, 10))
def test_a_blocked_loop_counts_for_as_long_as_it_was_blocked(late_s):
    """A second of standing still is a hundred bad samples and not one."""
    samples = unrolled(late_s)
    assert samples[0] == pytest.approx(late_s, abs=1e-8)
    assert len(samples) == int(late_s / INTERVAL_S) + 1
    assert min(samples) >= 0


async def test_lag_is_seen():
    """Work that never pauses shows as lag."""
    async with lag_of_loop() as samples:
        await asyncio.sleep(0.05)
        end = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < end:
            pass
        await asyncio.sleep(0.05)
    assert max(samples) > 0.15
    assert summary_ms(samples)["max"] == 1000 * max(samples)


@given(st.lists(NUMBERS, min_size=1, max_size=50), st.integers(1, 99))
def test_a_percentile_lies_among_its_values(values, percent):
    """Between the least and the greatest, whatever is asked."""
    assert min(values) <= percentile(values, percent) + 1e-9
    assert percentile(values, percent) - 1e-9 <= max(values)


def test_a_job_survives_its_way_to_the_worker():
    """Plain JSON there and back."""
    job = Job([Load("bare", runs=3, widths=(4, 2), settings={"delay_s": 0.1})], 1, "unix:///x")
    assert Job.of_json(json.loads(json.dumps(job.to_json()))) == job


# -------------------------------------------------------------------------------- endpoint


@pytest.fixture(scope="module")
def endpoint() -> Iterator[BenchEndpoint]:
    with BenchEndpoint() as running:
        yield running


def body(**fields: object) -> dict[str, object]:
    return {"model": "bench", "messages": [{"role": "user", "content": "What?"}], **fields}


async def test_a_reply_depends_on_seed_and_prompt_alone(endpoint):
    """So that two clients which ask the same wait equally long."""
    endpoint.configure(lognormal=(0.01, 0.5), tokens_per_s=10_000)
    async with httpx2.AsyncClient() as http:
        url = f"{endpoint.url}/chat/completions"
        first, again, other = [
            (await http.post(url, json=body(seed=seed))).json()["usage"] for seed in (1, 1, 2)
        ]
    assert first == again != other


async def test_several_choices_are_counted_as_one_call(endpoint):
    """`n` asks for copies, as some peers do."""
    endpoint.configure(tokens=20)
    async with httpx2.AsyncClient() as http:
        reply = (await http.post(f"{endpoint.url}/chat/completions", json=body(n=3))).json()
    assert len(reply["choices"]) == 3
    assert reply["usage"]["completion_tokens"] == 60
    stats = endpoint.stats()
    assert (stats["calls"], stats["choices"], stats["completion_tokens"]) == (1, 3, 60)


async def test_a_call_that_is_left_is_charged_what_it_was_given(endpoint):
    """Half-way through, about half of its tokens."""
    endpoint.configure(delay_s=1.0, tokens=1000)
    async with httpx2.AsyncClient() as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.post(f"{endpoint.url}/chat/completions", json=body(), timeout=0.4)
    async with asyncio.timeout(5):
        while not (stats := endpoint.stats())["aborted"]:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.01)
    assert stats["in_flight"] == 0
    assert 300 <= stats["aborted_tokens"] <= 900


# ------------------------------------------------------------------------------- from end to end


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.orchestration", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.redis
def test_one_case_from_end_to_end(tmp_path):
    """Both clients make the same calls, and table, JSON and Markdown say the same."""
    done = bench("--only", "a", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "orchestration.json").read_text())
    case = found["results"]["a"]
    assert all(wall > 0.5 for walls in case["wall_s"].values() for wall in walls)
    assert f"{case['ratio']:.3f}" in done.stdout
    assert f"{case['ratio']:.3f}" in (tmp_path / "orchestration.md").read_text()
    again = bench("--redraw", "--out", str(tmp_path))
    assert again.stdout == done.stdout


def test_a_case_that_does_not_exist_is_named():
    """With those that do."""
    done = bench("--only", "a,x")
    assert done.returncode == 2
    assert "no case 'x'; cases: a, b, c, d, e, f" in done.stderr

"""An evaluation over a local Ray of two workers, and one worker without Ray.

Ray is large: `make test-clients` installs it into its own environment and runs this.
"""

import asyncio
import importlib.util
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from pdr_graph.answers import CheckVerdict
from pdr_graph.errors import install_command
from pdr_graph.eval.arms import make_arms, parse_arm
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import GymScorer, Problem, load_problems
from pdr_graph.eval.ray_cluster import Worker, WorkerKit
from pdr_graph.eval.records import read_run
from pdr_graph.eval.sample import RunFacts, Sample
from pdr_graph.judge import SELF_CHECK, JudgePlaces, SignalsJudge
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.prompts import Prompts
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import load_settings
from tests.cli.conftest import wait_for
from tests.eval.conftest import write_quiz
from tests.eval.test_eval_command import ARMS, CALLS, SHORT, records
from tests.fakes import PROMPTS
from tests.test_judges import hidden_judge

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: make test-clients"
)
Spawn = Callable[..., subprocess.Popen[str]]
WEIGHED = "majority@widths=3;finish=weighted_vote"


@asynccontextmanager
async def in_memory(settings):
    """Open a store that only this test sees."""
    yield InMemorySaver()


def unclaimed(saver):
    """Claim no thread."""


def kit(mock) -> WorkerKit:
    """Return the kit of a worker that asks the mock endpoint."""
    return WorkerKit(
        settings=load_settings(base_url=mock.url, model="mock-model"),
        open_store=in_memory,
        claim=unclaimed,
        judge=Judge.of_kind("math"),
        prompts=Prompts(dict(Prompts.load().templates)),
        facts=RunFacts("sha", {}, {}, dependent=frozenset()),
        traced=True,
    )


def sample(spec: str, problem: Problem) -> Sample:
    """Return one sample of an arm."""
    common = {"max_tokens": 256, "kappa": 256, "solution_tokens": 128}
    [arm] = make_arms([parse_arm(spec)], common, Budgets())
    return Sample(arm=arm, problem=problem, number=0, position=0, thread_id="t", seed=5)


async def test_a_worker_needs_nothing_but_its_kit(mock, clean):
    """Kit and sample can be pickled; the outcome has the record and every call."""
    mock.configure(replies=[{"contains": "1 + 1", "answers": ["2"]}])
    worker = Worker(pickle.loads(pickle.dumps(kit(mock))))
    asked = pickle.loads(pickle.dumps(sample("pdr@widths=2", Problem("p", "What is 1 + 1?", "2"))))
    assert "error" not in await worker.open()
    outcome = await worker.run(asked)
    await worker.close()
    assert outcome.record is not None
    assert (outcome.record["correct"], outcome.record["ledger"]["calls"]) == (True, 4)
    assert [call["node"] for call in outcome.calls] == ["drafter"] * 2 + ["distiller", "refiner"]


SELF_CHECKED = SignalsJudge(
    model="mock-model",
    features=(SELF_CHECK,),
    question=PROMPTS.templates[SELF_CHECK],
    means=(0.0,),
    scales=(1.0,),
    weights=(1.0,),
    bias=0.0,
)
"""Asks the model about each draft, and weighs it by what the model says."""


def adapter() -> AdapterJudge:
    """Return a judge that is served beside the model."""
    question = PROMPTS.templates[SELF_CHECK]
    return AdapterJudge(
        model="mock-model", adapter="judge", question=question, scale=1.0, shift=0.0
    )


def knowing(mock, **more: object) -> None:
    """Serve the model and an adapter, and embeddings; asked of a draft, both say yes by 0.75."""
    top = {"Yes": math.log(0.75), "No": math.log(0.25)}
    asked = {"contains": "Is this solution correct?", "content": "Yes", "top": top}
    served = {"model": ["mock-model", "judge"], "embeddings": "vllm"}
    mock.configure(**{"replies": [asked], "answers": ["2"], **served, **more})


@pytest.mark.parametrize("kind", ["self_check", "adapter", "hidden by an endpoint"])
async def test_a_worker_weighs_drafts_as_the_judge_that_was_sent(mock, clean, kind):
    """It asks by the worker's own client, or by an address; what that costs is in the record."""
    knowing(mock)
    places = JudgePlaces(url=mock.url)
    judges = {"self_check": SELF_CHECKED, "adapter": adapter()}
    weigher = judges[kind] if kind in judges else hidden_judge().opened(places)
    worker = Worker(pickle.loads(pickle.dumps(replace(kit(mock), weigher=weigher))))
    assert "error" not in await worker.open()
    outcome = await worker.run(sample(WEIGHED, Problem("p", "What is 1 + 1?", "2")))
    await worker.close()
    assert outcome.record is not None
    weights = [draft["weight"] for draft in outcome.record["drafts"]]
    stats, ledger = mock.stats(), outcome.record["ledger"]
    if kind in judges:
        assert weights == pytest.approx([0.75] * 3)
    else:
        assert all(0.0 < weight < 1.0 for weight in weights)
        assert stats["embeddings"] == 3
    assert ledger["calls"] == stats["calls"] + stats["embeddings"] == 6
    assert ledger["prompt_tokens"] == stats["prompt_tokens"] + stats["embedded_tokens"]


async def test_a_worker_that_fails_says_how(mock, clean):
    """A sample whose call is refused has a record with the endpoint's reason."""
    mock.configure(status=[{"status": 400}])
    worker = Worker(kit(mock))
    outcome = await worker.run(sample("long_cot", Problem("p", "What is 1 + 1?", "2")))
    await worker.close()
    assert outcome.record is not None
    assert outcome.record["reason"] == "failed"
    assert "HTTP 400" in outcome.record["error"]


async def test_a_worker_that_is_drained_leaves_its_sample(mock, clean):
    """It stops at the next step, and returns the calls that it has made."""
    mock.configure(delay_s=0.3)
    worker = Worker(kit(mock))
    running = asyncio.create_task(
        worker.run(sample("pdr@widths=2", Problem("p", "What is 1 + 1?", "2")))
    )
    await asyncio.to_thread(wait_for, mock, in_flight=2)
    await worker.drain()
    outcome = await running
    await worker.close()
    assert (outcome.record, outcome.error) == (None, None)
    assert len(outcome.calls) == 2


async def test_a_worker_without_its_endpoint_says_so(clean):
    """It returns a sentence instead of raising an error across the cluster."""
    worker = Worker(kit(type("Dead", (), {"url": "http://127.0.0.1:1/v1"})))
    about = await worker.open()
    assert "no model endpoint answers at http://127.0.0.1:1/v1" in about["error"]
    outcome = await worker.run(sample("long_cot", Problem("p", "What is 1 + 1?", "2")))
    assert outcome.error == about["error"]


async def test_a_scorer_is_made_anew_where_it_is_sent():
    """The unpickled scorer has its own workers."""
    problems = load_problems("reasoning-gym:chain_sum?size=2&seed=1")
    scorer = pickle.loads(pickle.dumps(problems.score))
    assert isinstance(scorer, GymScorer)
    first = problems.problems[0]
    assert await scorer(first, first.gold) is CheckVerdict.CORRECT


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--ray local needs a store that its workers can reach; set --checkpoint"),
        (["--checkpoint", "memory"], "--ray local needs a store that its workers can reach"),
    ],
)
def test_a_cluster_needs_a_store_in_its_reach(cli, mock, monkeypatch, tmp_path, words, said):
    """It is refused before anything is started."""
    quiz = write_quiz(tmp_path, mock, 5)
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    done = cli(
        "eval", str(quiz.file), "--arm", "long_cot", "--out", "run", "--ray", "local", *words
    )
    assert done.code == 2
    assert said in done.err


@needs_ray
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "is not HOST:PORT of a cluster's head; `auto` finds the cluster"),
        ("somewhere", "is not HOST:PORT of a cluster's head"),
        ("127.0.0.1:99999", "no Ray cluster answers at '127.0.0.1:99999'"),
    ],
)
def test_a_cluster_that_is_none_is_told_at_once(cli, mock, monkeypatch, tmp_path, address, said):
    """Ray itself would try for minutes."""
    quiz = write_quiz(tmp_path, mock, 5)
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    words = ["--ray", address, "--checkpoint", "redis://127.0.0.1:1/0"]
    done = cli("eval", str(quiz.file), "--arm", "long_cot", "--out", "run", "--quiet", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err


def test_without_ray_one_sentence_says_how_to_get_it(cli, mock, monkeypatch, tmp_path):
    """It names feature, package and command."""
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    quiz = write_quiz(tmp_path, mock, 5)
    monkeypatch.setenv("PDR_BASE_URL", mock.url)
    words = ["--ray", "local", "--checkpoint", "redis://127.0.0.1:1/0"]
    done = cli("eval", str(quiz.file), "--arm", "long_cot", "--out", "run", *words)
    assert done.code == 2
    assert f"--ray needs Ray: {install_command('ray')}" in done.err


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[str]:
    """URL of a Valkey that processes share."""
    loop = asyncio.new_event_loop()
    valkey = embedded_valkey(tmp_path_factory.mktemp("shared"))
    yield loop.run_until_complete(valkey.__aenter__())
    loop.run_until_complete(valkey.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
def on_ray(mock, store, clean) -> Iterator[Spawn]:
    """Starts an evaluation on a local Ray of two workers."""
    started: list[subprocess.Popen[str]] = []

    def start(
        quiz: Path, out: Path, *words: str, arms: Sequence[str] = ARMS
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pdr_graph.cli", "eval", str(quiz), *arms, *SHORT,
             "--samples", "2", "--out", str(out), "--ray", "local", "--ray-workers", "2",
             "--max-in-flight", "4", *words],
            env={**os.environ, "PDR_BASE_URL": mock.url, "PDR_REDIS_URL": store},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        for child in (
            psutil.Process(process.pid).children(recursive=True) if _alive(process) else []
        ):
            child.kill()
        process.kill()
        process.communicate()


def _alive(process: subprocess.Popen[str]) -> bool:
    return process.poll() is None


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the workers' processes, as Ray names them."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [each for each in children if each.cmdline()[:1][0].startswith("ray::Worker")]


def wait_for_calls(mock, number: int) -> None:
    """Wait until the endpoint has had so many calls."""
    give_up = time.monotonic() + 120
    while mock.stats()["calls"] < number:
        assert time.monotonic() < give_up, mock.stats()
        time.sleep(0.05)


@needs_ray
@pytest.mark.redis
def test_a_worker_is_killed_and_another_goes_on(on_ray, mock, tmp_path):
    """Every sample is recorded once, and no stored draft is asked for again."""
    quiz = write_quiz(tmp_path, mock, 5)
    mock.configure(delay_s=0.3)
    process = on_ray(quiz.file, tmp_path / "run")
    wait_for_calls(mock, 30)
    victim = workers_of(process)[0]
    in_flight = mock.stats()["in_flight"]
    victim.kill()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert "a worker was lost; another goes on with" in err
    run = read_run(tmp_path / "run")
    assert len(run.samples) == 30
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 30
    assert all(each["correct"] == (each["problem_id"] in quiz.right) for each in run.samples)
    # Only what was under way at the death is asked twice.
    served = mock.stats()
    assert 10 * CALLS <= served["calls"] <= 10 * CALLS + in_flight + 4


@needs_ray
@pytest.mark.redis
def test_a_signal_drains_the_workers_and_the_same_command_goes_on(on_ray, mock, tmp_path):
    """All samples are recorded, and no call is made twice."""
    quiz = write_quiz(tmp_path, mock, 5)
    mock.configure(delay_s=0.4)
    process = on_ray(quiz.file, tmp_path / "run")
    wait_for_calls(mock, 10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "of 30 samples are recorded; the same command continues with the rest" in err
    mock.configure(delay_s=0.0)
    process = on_ray(quiz.file, tmp_path / "run")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert mock.stats()["calls"] == 10 * CALLS
    assert len(records(tmp_path / "run")) == 30
    traced = [len(file.read_text().splitlines()) for file in (tmp_path / "run/trace").iterdir()]
    assert sum(traced) == 10 * CALLS


@needs_ray
@pytest.mark.redis
@pytest.mark.parametrize("kind", ["self_check", "hidden"])
def test_a_judge_goes_to_the_workers(on_ray, mock, tmp_path, kind):
    """Every draft is weighed there, once, and the ledgers are what the endpoint has served."""
    quiz = write_quiz(tmp_path, mock, 3)
    knowing(mock)
    file = tmp_path / "judge.json"
    (SELF_CHECKED if kind == "self_check" else hidden_judge()).save(file)
    where = ["--judge-url", mock.url] if kind == "hidden" else []
    words = ["--model", "mock-model", "--judge", str(file), *where]
    process = on_ray(quiz.file, tmp_path / "run", *words, arms=["--arm", WEIGHED])
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    found, served = records(tmp_path / "run"), mock.stats()
    assert len(found) == 6
    assert all("weight" in draft for each in found for draft in each["drafts"])
    assert served["calls"] + served["embeddings"] == 36
    assert sum(each["ledger"]["calls"] for each in found) == 36
    prompt_tokens = sum(each["ledger"]["prompt_tokens"] for each in found)
    assert prompt_tokens == served["prompt_tokens"] + served["embedded_tokens"]

"""A run that has begun goes before new runs, at a server that schedules by priority."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pdr_graph import PRESETS, ModelClient, Parts, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.llm.asker import priority_of
from pdr_graph.process import Process
from pdr_graph.servers.record import ServerRecord, Shelf
from pdr_graph.settings import load_settings
from tests.cli.conftest import clean  # noqa: F401  # a fixture
from tests.fakes import ListTrace, ScriptedChat

PROBLEM = "What is 6 x 7?"
SMALL = {"max_tokens": 64, "solution_tokens": 64, "kappa": 256, "seed": 7, "k": 2}
WIDTHS = {"long_cot": (), "majority": (3,), "genselect": (3,), "rsa": (2, 2, 2)}
STEPS = ("drafter", "distiller", "refiner", "verifier")
"""The steps of a round that ask the model, in their order."""
JUDGED = {"verifier": "judge"}
REJECTS = [{"contains": "Verdict: incorrect", "content": "No.\nVerdict: incorrect"}]


async def solved(
    mock, client: ModelClient, name: str = "pdr", **fields
) -> list[tuple[int, int | None]]:
    """Run a strategy; return the place and the priority of each call, in the order of places.

    A place is round and step in one number.
    """
    trace = ListTrace()
    rounds = (1, 1, 1) if name.startswith("sr") else (3, 2)
    config = preset(name, **{"widths": WIDTHS.get(name, rounds), **SMALL, **fields})
    await solve(PROBLEM, config, model=client, parts=Parts(trace=trace))
    places = {
        each["seed"]: each["round"] * len(STEPS) + STEPS.index(each["node"])
        for each in trace.records
    }
    bodies = [request["body"] for request in mock.requests()]
    assert len(bodies) == len(places)
    return sorted((places[body["seed"]], body.get("priority")) for body in bodies)


def check_order(priorities: list[int | None]) -> None:
    """Check that each step goes before the one ahead of it, and all but the first before 0."""
    assert priorities == sorted(set(priorities), reverse=True)
    assert priorities[0] >= 0 > max(priorities[1:], default=-1)


# ------------------------------------------------------------------------- the calls of a run


@pytest.mark.parametrize("verifier", ["none", "judge"])
@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_each_step_goes_before_those_that_led_to_it(mock, connect, name, verifier):
    """In every strategy only the first calls are not below 0, and calls of one step are equal."""
    calls = await solved(mock, connect(priorities=True), name, verifier=verifier)
    steps = sorted(set(calls))
    assert len({place for place, _ in steps}) == len(steps)
    check_order([priority for _, priority in steps])


async def test_a_run_of_two_rounds(mock, connect):
    """Drafts, distiller, drafts, distiller, refinement, verdict."""
    calls = await solved(mock, connect(priorities=True), **JUDGED)
    assert [priority for _, priority in calls] == [5, 5, 5, -1, -4, -4, -5, -6, -7]


@pytest.mark.parametrize(("name", "widths"), [("pdr", (2,)), ("long_cot", ())])
async def test_a_granted_round_goes_before_the_calls_that_led_to_it(mock, connect, name, widths):
    """A rejected solution is worth less the longer its next round waits."""
    mock.configure(replies=REJECTS)
    calls = await solved(
        mock, connect(priorities=True), name, widths=widths, max_extra_rounds=2, **JUDGED
    )
    check_order([priority for _, priority in sorted(set(calls))])


def test_new_runs_wait_by_their_size():
    """One call does not wait for the sixteen drafts of another run; a verdict waits for neither."""
    long_cot, pdr, majority = preset("long_cot"), preset("pdr", widths=(4, 2)), preset("majority")
    first = [priority_of(long_cot, "refiner", 0)]
    first += [priority_of(each, "drafter", 1) for each in (pdr, majority)]
    assert first == [0, 6, 16]
    assert priority_of(long_cot, "verifier", 0) < 0


def test_a_run_without_money_for_its_rounds_begins_with_its_refinement():
    """It is new, whatever it had planned."""
    assert priority_of(preset("pdr", widths=(4, 2)), "refiner", 0) == 6


async def test_a_retry_keeps_its_priority(mock, connect):
    """A call that is sent again stands where it stood."""
    mock.configure(status=[{"match": {"contains": "<notes>"}, "status": 503, "times": 1}])
    config = preset("pdr", widths=(2,), **SMALL)
    await solve(PROBLEM, config, model=connect(priorities=True))
    assert [request["body"]["priority"] for request in mock.requests()] == [2, 2, -1, -2, -2]


# ------------------------------------------------------------------------- who is told


async def test_a_server_is_told_nothing_by_default(mock, connect):
    """Some servers refuse a request that names a priority."""
    assert {told for _, told in await solved(mock, connect())} == {None}


@pytest.mark.parametrize("priorities", [True, False])
@pytest.mark.parametrize("fields", [{"priority": 3}, {"extra_body": {"priority": 3}}])
async def test_a_models_own_priority_is_kept(mock, connect, fields, priorities):
    """What a user gave the model holds for all of its calls."""
    client = connect(priorities=priorities, model_fields=fields)
    assert {told for _, told in await solved(mock, client)} == {3}


async def test_a_model_without_the_field_is_not_handed_one():
    """Other providers refuse a parameter that they do not know."""
    model = ScriptedChat(replies=[r"\boxed{42}"])
    client = ModelClient(model, priorities=True)
    await solve(PROBLEM, preset("pdr", widths=(2,), **SMALL), model=client)
    assert not [each for each in model.parameters if "priority" in each]


# ------------------------------------------------------------------------- what `up` started


@pytest.fixture
def shelf(clean: Path, monkeypatch) -> Iterator[Shelf]:  # noqa: F811
    """The records of a data directory, with a keeper of the model that is alive."""
    monkeypatch.setenv("PDR_DATA_DIR", str(clean / "data"))
    shelf = Shelf(clean / "data").made()
    with shelf.lock("model") as lock:
        assert lock.try_exclusive()
        yield shelf


def started(url: str, *flags: str, **fields) -> ServerRecord:
    """Return the record of a vLLM that `up` started at an address."""
    policy = ("--scheduling-policy", "priority")
    known = {"part": "model", "kind": "vllm", "state": "ready", "keeper": Process.of(1)}
    command = ("python", "-m", "vllm", "--port", "8000", *policy, *flags)
    return ServerRecord(**{**known, "url": url, "command": command, **fields})


async def told(mock, **settings: object) -> set[int | None]:
    """Return the priorities that reach the server of `mock`, by the settings."""
    async with open_client(load_settings(**{"base_url": mock.url, **settings})) as client:
        return {priority for _, priority in await solved(mock, client, widths=(1,))}


ALL = {1, -1, -2}


async def test_the_vllm_of_up_is_told(mock, shelf):
    """Nothing has to be set."""
    shelf.write(started(mock.url))
    assert await told(mock) == ALL


@pytest.mark.parametrize("other", ["http://localhost:{}/v1", "http://127.0.0.1:{}/v1/"])
async def test_its_address_may_be_written_otherwise(mock, shelf, other):
    """Under another name of this machine, with a slash at the end."""
    shelf.write(started(mock.url))
    port = mock.root.rpartition(":")[2]
    assert await told(mock, base_url=other.format(port)) == ALL


@pytest.mark.parametrize(
    "flags",
    [
        ("--scheduling-policy", "fcfs"),
        ("--scheduling-policy=fcfs",),
        ("--scheduling_policy", "fcfs"),
        ("--scheduling_policy=fcfs",),
    ],
)
async def test_a_flag_of_the_users_own_may_take_the_policy_away(mock, shelf, flags):
    """The last flag wins at vLLM."""
    shelf.write(started(mock.url, *flags))
    assert await told(mock) == {None}
    shelf.write(started(mock.url, *flags, "--scheduling-policy=priority"))
    mock.reset()
    assert await told(mock) == ALL


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://127.0.0.1:9/v1"},
        {"url": "http://10.0.0.1:8000/v1"},
        {"kind": "embedded model", "command": ()},
        {"state": "failed"},
    ],
)
async def test_other_servers_are_not_told(mock, shelf, fields):
    """Neither one at another address, nor the embedded llama.cpp, nor one that has failed."""
    shelf.write(started(**{"url": mock.url, **fields}))
    assert await told(mock) == {None}


async def test_a_server_without_its_keeper_is_not_told(mock, clean, monkeypatch):  # noqa: F811
    """Whoever answers there now may be another."""
    monkeypatch.setenv("PDR_DATA_DIR", str(clean / "data"))
    Shelf(clean / "data").made().write(started(mock.url))
    assert await told(mock) == {None}


async def test_a_record_that_cannot_be_read_is_none(mock, shelf):
    """A run does not fail for the record of another version."""
    (shelf.home / "model.json").write_text('{"of": "another version"}')
    assert await told(mock) == {None}


async def test_settings_decide_before_the_record(mock, shelf, monkeypatch):
    """PDR_PRIORITY turns them on for any endpoint, and off for that of `up`."""
    monkeypatch.setenv("PDR_PRIORITY", "1")
    assert await told(mock) == ALL
    shelf.write(started(mock.url))
    monkeypatch.setenv("PDR_PRIORITY", "no")
    mock.reset()
    assert await told(mock) == {None}

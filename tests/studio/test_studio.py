"""LangGraph's development server on `langgraph.json`, over the HTTP contract that Studio uses.

Real: the server, a Valkey that outlives it, and the kill. The model is the mock endpoint, so that
calls can be counted.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import httpx2
import pytest
import redis

from tests.mock_endpoint import MockEndpoint

if importlib.util.find_spec("langgraph_api") is None:
    pytest.skip("needs LangGraph's server: make test-studio", allow_module_level=True)

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.pregel.remote import RemoteGraph

from pdr_graph import preset
from pdr_graph.budget import merge_rows
from pdr_graph.servers.valkey import find_binary
from pdr_graph.types import LedgerRow

pytestmark = pytest.mark.studio

ROOT = Path(__file__).parents[2]
PROBLEM = {"problem": "What is 6 x 7?"}
BUDGETS = {"max_tokens": 64, "solution_tokens": 64, "kappa": 128}
# Whole, as a form sends it: the graph's own default is the recommended preset.
SMALL = preset("pdr", widths=(3, 2), seed=7, **BUDGETS).model_dump(mode="json")


class Sheet(TypedDict, total=False):
    """The state of a parent in this process."""

    problem: str
    pdr_config: dict[str, Any]
    solution: Any
    ledger: Annotated[list[LedgerRow], merge_rows]


class Studio:
    """The server in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, redis_url: str, model_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.model_url = model_url
        self.log_file = folder / "logs" / "run.jsonl"  # in a folder that is made for it
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx2.Client(timeout=60.0)

    def start(self) -> None:
        port = _unused_port()
        self.http.base_url = f"http://127.0.0.1:{port}"
        words = ["dev", "--port", str(port), "--no-browser", "--no-reload"]
        settings = {
            "REDIS_URL": self.redis_url,
            "PDR_BASE_URL": self.model_url,
            "PDR_LOG_FILE": str(self.log_file),
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "langgraph_cli", *words],
                cwd=self.folder, env={**os.environ, **settings},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        eventually(self._answers, within_s=90)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def get(self, path: str, **query: object) -> object:
        return self.http.get(path, params=query).raise_for_status().json()

    def post(self, path: str, **body: object) -> object:
        return self.http.post(path, json=body).raise_for_status().json()

    def thread(self) -> str:
        return self.post("/threads")["thread_id"]

    def assistant(self, graph: str) -> str:
        (found,) = self.post("/assistants/search", graph_id=graph)
        return found["assistant_id"]

    def stream(self, thread: str, graph: str, **body: object) -> list[str]:
        """Return the names of the events of a run."""
        asked = {"assistant_id": graph, "stream_mode": ["updates", "custom"], **body}
        with self.http.stream("POST", f"/threads/{thread}/runs/stream", json=asked) as reply:
            reply.raise_for_status()
            lines = list(reply.iter_lines())
        return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]

    def wait(self, thread: str, **body: object) -> object:
        return self.post(f"/threads/{thread}/runs/wait", assistant_id="pdr", **body)

    def events(self, thread: str) -> list[dict[str, object]]:
        """Return what the log file holds of a thread."""
        lines = map(json.loads, self.log_file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line.get("thread") == thread]

    def _answers(self) -> bool:
        try:
            return self.http.get("/ok").status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture(scope="module")
def endpoint():
    with MockEndpoint() as mock:
        yield mock


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    port = _unused_port()
    folder = tmp_path_factory.mktemp("valkey")
    words = [str(find_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
        yield f"redis://127.0.0.1:{port}/0"
        server.kill()


@pytest.fixture(scope="module")
def studio(tmp_path_factory, store, endpoint):
    """The server as `make studio` starts it, but for its store and its model."""
    folder = tmp_path_factory.mktemp("studio")
    shutil.copy(ROOT / "langgraph.json", folder)
    shutil.copytree(ROOT / "graphs", folder / "graphs")
    studio = Studio(folder, store, endpoint.url)
    try:
        studio.start()
        yield studio
    finally:
        studio.kill()
        studio.http.close()


@pytest.fixture(autouse=True)
def _reset(endpoint):
    endpoint.reset()


@pytest.fixture
def calls(endpoint):
    return lambda: endpoint.stats()["calls"]


def test_three_graphs_are_offered_and_drawn(studio):
    """With xray the agent shows PDR inside its node, and LangChain's agent beside it."""
    ids = {graph: studio.assistant(graph) for graph in ("pdr", "sr", "agent")}
    steps = {"plan", "drafter", "distiller", "refiner", "verifier"}
    for graph in ("pdr", "sr"):
        drawn = studio.get(f"/assistants/{ids[graph]}/graph", xray=True)
        assert {node["id"] for node in drawn["nodes"]} == steps | {"__start__", "__end__"}
        assert {"source": "drafter", "target": "distiller"} in drawn["edges"]
    drawn = {
        node["id"] for node in studio.get(f"/assistants/{ids['agent']}/graph", xray=True)["nodes"]
    }
    assert {f"reason:{step}" for step in steps} | {"triage", "assistant:tools"} <= drawn
    subgraphs = studio.get(f"/assistants/{ids['agent']}/subgraphs", recurse=True)
    assert {"reason", "assistant"} <= set(subgraphs)


@pytest.mark.parametrize(("graph", "widths"), [("pdr", [3, 2, 3, 4, 4]), ("sr", [1, 1, 1])])
def test_the_form_is_the_config_with_help_and_prompts(studio, graph, widths):
    """Each field has a text; prompts are shown at the nodes that they instruct."""
    schemas = studio.get(f"/assistants/{studio.assistant(graph)}/schemas")
    fields = schemas["context_schema"]["properties"]
    assert fields["widths"]["default"] == widths
    assert all(field.get("description") for field in fields.values())
    prompts = {
        name: field["langgraph_nodes"]
        for name, field in fields.items()
        if field.get("langgraph_type") == "prompt"
    }
    assert prompts == {
        "draft_prompt": ["drafter"],
        "improve_prompt": ["drafter", "refiner"],
        "distill_prompt": ["distiller"],
        "judge_prompt": ["verifier"],
    }
    assert set(schemas["input_schema"]["properties"]) == {"problem", "config"}
    assert "workspaces" in schemas["state_schema"]["properties"]


def test_looking_at_a_graph_asks_no_model(studio, endpoint):
    """Drawing, schemas and states work where the model is away."""
    studio.get(f"/assistants/{studio.assistant('pdr')}/graph", xray=True)
    studio.get(f"/assistants/{studio.assistant('agent')}/schemas")
    studio.get(f"/threads/{studio.thread()}/state")
    told = endpoint.stats()
    assert (told["calls"], told["models_calls"], told["tokenize_calls"]) == (0, 0, 0)


def test_a_run_is_streamed_and_kept_in_redis(studio, store, calls):
    """Updates and progress come as they happen; state and history are the saver's."""
    thread = studio.thread()
    events = studio.stream(thread, "pdr", input=PROBLEM, context=SMALL)
    assert events.count("updates") == 2 + 5 + 2 + 1 + 1  # plan, drafter, distiller, the end
    assert "custom" in events
    assert calls() == 3 + 1 + 2 + 1 + 1
    state = studio.get(f"/threads/{thread}/state", subgraphs=True)
    assert state["next"] == []
    assert state["values"]["config"]["widths"] == SMALL["widths"]
    history = studio.get(f"/threads/{thread}/history", limit=50)
    assert [step["next"][:1] for step in history] == [
        *([], ["verifier"], ["refiner"]),
        *(["distiller"], ["drafter"], ["plan"], ["distiller"], ["drafter"], ["plan"]),
        ["__start__"],
    ]
    with closing(redis.Redis.from_url(store)) as client:
        assert any(thread.encode() in key for key in client.keys("checkpoint:*:data"))


def test_a_prompt_of_the_form_reaches_the_model(studio, endpoint):
    """What is typed at a node is what its calls say."""
    own = {**SMALL, "widths": [1], "draft_prompt": "Marmalade first. $problem"}
    thread = studio.thread()
    endpoint.configure(
        status=[{"match": {"contains": "Marmalade first"}, "status": 400, "times": 9}]
    )
    studio.wait(thread, input=PROBLEM, context=own, raise_error=False)
    assert endpoint.stats()["by_status"]["400"] == 1


def test_a_config_that_cannot_be_is_a_sentence(studio, calls):
    """The form's values are checked before any call."""
    thread = studio.thread()
    asked = {"assistant_id": "pdr", "input": PROBLEM, "context": {**SMALL, "kappa": 1}}
    reply = studio.http.post(f"/threads/{thread}/runs/wait", json=asked)
    assert "kappa" in reply.text
    assert calls() == 0


def test_edited_drafts_are_distilled_again_on_a_branch(studio, calls):
    """A fork at the distiller reads the edited draft; the old branch stays in the history."""
    thread = studio.thread()
    config = {**SMALL, "widths": [2], "distiller": "latest"}
    studio.wait(thread, input=PROBLEM, context=config)
    history = studio.get(f"/threads/{thread}/history", limit=50)
    (before,) = [step for step in history if step["next"] == ["distiller"]]
    drafts = before["values"]["drafts"]
    edited = [{**drafts[0], "solution": "By hand: \\boxed{42}", "answer": "42"}]
    asked = calls()
    forked = studio.post(
        f"/threads/{thread}/state", values={"drafts": edited}, as_node="drafter",
        checkpoint_id=before["checkpoint"]["checkpoint_id"],
    )  # fmt: skip
    checkpoint = forked["checkpoint"]["checkpoint_id"]
    after = studio.wait(thread, input=None, checkpoint_id=checkpoint)
    assert calls() == asked + 1, "the drafts are kept, and only the refinement is asked again"
    assert after["drafts"][0]["answer"] == "42"
    assert after["drafts"][1] == drafts[1]
    ids = {step["checkpoint"]["checkpoint_id"] for step in history}
    later = studio.get(f"/threads/{thread}/history", limit=50)
    assert ids < {step["checkpoint"]["checkpoint_id"] for step in later}


def test_a_step_can_be_run_again_from_its_checkpoint(studio, calls):
    """Re-run from the refiner: one call, and the same workspaces."""
    thread = studio.thread()
    first = studio.wait(thread, input=PROBLEM, context={**SMALL, "widths": [2]})
    history = studio.get(f"/threads/{thread}/history", limit=50)
    (before,) = [step for step in history if step["next"] == ["refiner"]]
    asked = calls()
    again = studio.wait(thread, input=None, checkpoint_id=before["checkpoint"]["checkpoint_id"])
    assert calls() == asked + 1
    assert again["workspaces"] == first["workspaces"]
    assert again["solution"] == first["solution"], "the same seed, and thus the same reply"


def test_a_breakpoint_stops_before_its_node_and_the_run_goes_on(studio, calls):
    """Stopped at the distiller with its drafts in sight; going on asks for none of them again."""
    thread = studio.thread()
    config = {**SMALL, "widths": [3]}
    studio.wait(thread, input=PROBLEM, context=config, interrupt_before=["distiller"])
    state = studio.get(f"/threads/{thread}/state")
    assert state["next"] == ["distiller"]
    assert len(state["values"]["drafts"]) == 3
    assert calls() == 3
    studio.wait(thread, input=None)
    assert studio.get(f"/threads/{thread}/state")["next"] == []
    assert calls() == 3 + 1 + 1


def test_the_agent_reasons_and_shows_its_inner_run(studio, endpoint):
    """The mock sorts nothing, so the agent thinks; PDR's own events come through its stream."""
    thread = studio.thread()
    asked = {"messages": [{"role": "user", "content": "Plan the test of a bridge."}]}
    events = studio.stream(thread, "agent", input=asked, stream_subgraphs=True)
    inner = [event for event in events if event.startswith("updates|reason:")]
    assert inner
    values = studio.get(f"/threads/{thread}/state")["values"]
    assert values["messages"][-1]["type"] == "ai"
    assert values["ledger"][0]["calls"] == endpoint.stats()["calls"] - 1


# ------------------------------------------------------------- a question while a run is under way

NINES = {"problem": "What is 9 x 9?"}
WIDER = {**SMALL, "widths": [4], "seed": 8}
FIRST_CALLS, WIDER_CALLS = 3 + 1 + 2 + 1 + 1, 4 + 1 + 1
ANSWERS = [
    {"contains": PROBLEM["problem"], "answers": ["42"]},
    {"contains": NINES["problem"], "answers": ["81"]},
]


@pytest.fixture
def under_way(studio, endpoint):
    """A thread, and the id of its run that waits for the calls of its second round."""
    endpoint.configure(replies=ANSWERS, status=[{"match": {"call": 5}, "status": "hang"}])
    thread = studio.thread()
    asked = {"assistant_id": "pdr", "input": PROBLEM, "context": SMALL}
    run = studio.post(f"/threads/{thread}/runs", **asked)["run_id"]
    eventually(lambda: endpoint.stats()["calls"] >= 6, within_s=60)
    endpoint.configure(replies=ANSWERS, status=[])
    return thread, run


def charged(state: dict) -> int:
    return sum(row["calls"] for row in state["ledger"])


def test_a_question_may_be_rejected_while_a_run_is_under_way(studio, endpoint, under_way):
    """The run goes on, and answers its own question."""
    thread, run = under_way
    again = {"assistant_id": "pdr", "input": NINES, "context": WIDER}
    reply = studio.http.post(
        f"/threads/{thread}/runs/wait", json={**again, "multitask_strategy": "reject"}
    )
    assert reply.status_code == 409
    studio.post(f"/threads/{thread}/runs/{run}/cancel?wait=true&action=interrupt")
    state = studio.wait(thread, input=None)
    assert state["solution"]["answer"] == "42"
    assert not [each for each in endpoint.requests() if "9 x 9" in str(each["body"])]


def test_a_question_may_interrupt_a_run(studio, endpoint, under_way):
    """It gets its own answer by its own config; the ledger says what the other run had cost."""
    thread, _ = under_way
    before = endpoint.stats()["calls"]
    state = studio.wait(thread, input=NINES, context=WIDER, multitask_strategy="interrupt")
    assert state["solution"]["answer"] == "81"
    assert state["config"]["widths"] == WIDER["widths"]
    assert endpoint.stats()["calls"] - before == WIDER_CALLS
    assert charged(state) == endpoint.stats()["calls"]
    abandoned = [row for row in state["ledger"] if row["node"] == "abandoned"]
    assert sum(row["calls"] for row in abandoned) == before


def test_a_question_may_roll_a_run_back(studio, endpoint, under_way):
    """Of the other run nothing is left, and its question is not answered."""
    thread, _ = under_way
    before = endpoint.stats()["calls"]
    state = studio.wait(thread, input=NINES, context=WIDER, multitask_strategy="rollback")
    assert state["solution"]["answer"] == "81"
    assert endpoint.stats()["calls"] - before == WIDER_CALLS
    assert charged(state) - before <= WIDER_CALLS


def test_a_question_may_wait_for_a_run(studio, endpoint):
    """Each is answered, in their order, by its own config."""
    endpoint.configure(replies=ANSWERS, delay_s=0.3)
    thread = studio.thread()
    asked = {"assistant_id": "pdr", "input": PROBLEM, "context": SMALL}
    studio.post(f"/threads/{thread}/runs", **asked)
    eventually(lambda: endpoint.stats()["calls"] >= 1, within_s=60)
    state = studio.wait(thread, input=NINES, context=WIDER, multitask_strategy="enqueue")
    assert state["solution"]["answer"] == "81"
    assert charged(state) == WIDER_CALLS
    past = studio.get(f"/threads/{thread}/history", limit=50)
    answers = [step["values"]["solution"]["answer"] for step in past if not step["next"]]
    assert answers == ["81", "42"]
    assert endpoint.stats()["calls"] == FIRST_CALLS + WIDER_CALLS


async def test_a_parent_elsewhere_asks_in_the_servers_thread(studio, endpoint):
    """`RemoteGraph` as a node: each turn its own answer by its own config, and the exact cost."""
    endpoint.configure(replies=ANSWERS)
    builder = StateGraph(Sheet)
    builder.add_node("pdr", RemoteGraph("pdr", url=str(studio.http.base_url)))
    builder.add_edge(START, "pdr")
    graph = builder.compile(checkpointer=InMemorySaver())
    run = {"configurable": {"thread_id": studio.thread()}}
    for asked, config, answer in ((PROBLEM, SMALL, "42"), (NINES, WIDER, "81")):
        state = await graph.ainvoke({**asked, "pdr_config": config}, run)
        assert state["solution"]["answer"] == answer
        assert charged(state) == endpoint.stats()["calls"]
    assert charged(state) == FIRST_CALLS + WIDER_CALLS


def test_the_log_has_each_event_once(studio, endpoint):
    """Of runs side by side too; its folder is made by the first run."""
    endpoint.configure(delay_s=0.2)
    threads = [studio.thread(), studio.thread()]
    for number, thread in enumerate(threads):
        asked = {"assistant_id": "pdr", "input": PROBLEM, "context": SMALL}
        studio.post(f"/threads/{thread}/runs", **asked)
        eventually(lambda least=number: endpoint.stats()["calls"] > 3 * least, within_s=60)
    for thread in threads:
        eventually(
            lambda thread=thread: (
                [each["event"] for each in studio.events(thread)][-1:] == ["run.end"]
            ),
            within_s=60,
        )
        told = [each["event"] for each in studio.events(thread)]
        assert (told[0], told[-1]) == ("run.begin", "run.end")
        assert told.count("run.draft") == 3 + 2
        assert told.count("run.end") == 1


def test_a_killed_server_goes_on_where_it_was(studio, endpoint):
    """SIGKILL in the second round: restarted, it asks for no finished draft again."""
    thread = studio.thread()
    endpoint.configure(delay_s=1.5)
    mine = {"problem": "What is 9 x 9 after the kill?"}

    def seeds() -> list[int]:
        # The restarted server may also repeat runs of other tests, which it last saw running.
        bodies = [body for request in endpoint.requests() if (body := request["body"])]
        return [body["seed"] for body in bodies if mine["problem"] in str(body["messages"])]

    studio.post(f"/threads/{thread}/runs", assistant_id="pdr", input=mine, context=SMALL)
    eventually(lambda: len(seeds()) == 3 + 1 + 2, within_s=120)
    studio.kill()
    endpoint.configure(delay_s=0.0)
    studio.start()
    # The server has forgotten the thread, since it keeps those of its own in memory.
    graph = {"graph_id": "pdr"}
    studio.post("/threads", thread_id=thread, if_exists="do_nothing", metadata=graph)
    state = studio.get(f"/threads/{thread}/state")
    assert (state["values"]["round"], state["next"]) == (2, ["drafter", "drafter"])
    final = studio.wait(thread, input=None)
    assert final["phase"] == "done"
    finished, asked_again = seeds()[:4], seeds()[6:]
    assert len(asked_again) == 2 + 1 + 1
    assert not set(finished) & set(asked_again)


def eventually(holds, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

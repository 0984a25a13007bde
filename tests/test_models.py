"""Models by role: who is asked, what each is charged, and by whose tokens texts are bounded."""

import json
from collections import defaultdict
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from pdr_graph import (
    ChatVLLM,
    Extensions,
    ModelClient,
    Models,
    as_tool,
    build_graph,
    history,
    pdr_node,
    preset,
    resume,
    solve,
)
from pdr_graph.budget import Ledger, empty_row, merge_rows, totals_by_model
from pdr_graph.distill import Entry
from pdr_graph.embed import charge
from pdr_graph.errors import ConfigChangedError, ConfigError, ContextWindowError
from pdr_graph.llm.models import changed_models, widest
from pdr_graph.run import Parts
from pdr_graph.types import ROLES, LedgerRow, Price
from tests.fakes import CountBy, ListTrace, ScriptedChat, every, num_bytes, num_words
from tests.mock_endpoint import MockEndpoint

PROBLEM = "What is 6 x 7?"
SMALL = {"max_tokens": 256, "kappa": 200, "solution_tokens": 128, "seed": 7}
NAMES = ("small", "large")


@pytest.fixture(scope="module")
def _pair():
    with MockEndpoint(model="small") as small, MockEndpoint(model="large") as large:
        yield small, large


@pytest.fixture
def pair(_pair):
    """Two endpoints that count what they serve, of the models `small` and `large`."""
    for each in _pair:
        each.reset()
    return _pair


@pytest.fixture
async def client(pair):
    """Makes a client of `small` or `large`; its connections are closed after the test."""
    opened = []

    def make(name: str, **options) -> ModelClient:
        model = ChatVLLM(base_url=pair[NAMES.index(name)].url, model=name)
        opened.append(model)
        return ModelClient(model, **options)

    yield make
    for model in opened:
        await model.aclose()


@pytest.fixture
def clients(client):
    """A client of each."""
    return client("small"), client("large")


def served(mock: MockEndpoint) -> tuple[int, int, int]:
    stats = mock.stats()
    return stats["calls"], stats["prompt_tokens"], stats["completion_tokens"]


def charged(ledger: Ledger, model: str) -> tuple[int, int, int]:
    row = ledger.by_model().get(model) or empty_row(0, "", 0)
    return row["calls"], row["prompt_tokens"], row["completion_tokens"]


def asked(result, model: str) -> set[tuple[int, str]]:
    return {(row["round"], row["node"]) for row in result.ledger.rows if row["model"] == model}


# ------------------------------------------------------------------------------ who is asked


@pytest.mark.parametrize(
    ("roles", "by_large"),
    [
        ({"drafter"}, {(1, "drafter"), (2, "drafter")}),
        ({"distiller"}, {(1, "distiller"), (2, "distiller")}),
        ({"refiner"}, {(2, "refiner")}),
        ({"verifier"}, {(2, "verifier")}),
        ({"judge"}, {(2, "verifier")}),
        ({"contested"}, {(2, "drafter")}),
        ({"drafter", "refiner"}, {(1, "drafter"), (2, "drafter"), (2, "refiner")}),
    ],
)
async def test_each_role_asks_its_own_model_and_the_ledger_is_what_each_served(
    pair, clients, roles, by_large
):
    """Of two endpoints each serves what the ledger says of its model, to the token."""
    config = preset("pdr", widths=(4, 2), verifier="judge", **SMALL)
    models = dict.fromkeys(roles, clients[1])
    result = await solve(PROBLEM, config, model=clients[0], models=models)
    assert asked(result, "large") == by_large
    for mock, name in zip(pair, NAMES, strict=True):
        assert charged(result.ledger, name) == served(mock)
    assert result.ledger.b_total == sum(sum(served(mock)[1:]) for mock in pair)


async def test_b_seq_is_the_longest_call_of_each_step_whoever_makes_it(pair, clients):
    """Which model makes a call does not change the critical path."""
    pair[1].configure(completion_tokens=100)
    config = preset("pdr", widths=(4, 2), **SMALL)
    result = await solve(PROBLEM, config, model=clients[0], models={"contested": clients[1]})
    longest = defaultdict(int)
    for row in result.ledger.rows:
        longest[row["step"]] = max(longest[row["step"]], row["critical_tokens"])
    assert result.ledger.b_seq == sum(longest.values())


async def test_a_run_of_one_model_is_recorded_as_before(clients, pair):
    """Naming the same model for a role changes neither record nor ledger."""
    config = preset("pdr", widths=(2,), **SMALL)
    trace = ListTrace()
    result = await solve(
        PROBLEM,
        config,
        model=clients[0],
        models={"refiner": clients[0]},
        parts=Parts(trace=trace),
    )
    assert "models" not in result.state["record"]
    assert all("model" not in row for row in [*result.ledger.rows, *trace.records])
    assert "models" not in result.ledger.to_json()


async def test_the_record_and_the_trace_name_the_models(clients, pair):
    """`model` stays the drafter's."""
    trace = ListTrace()
    result = await solve(
        PROBLEM,
        preset("pdr", widths=(2,), **SMALL),
        model=clients[1],
        models={"drafter": clients[0]},
        parts=Parts(trace=trace),
    )
    record = result.state["record"]
    assert record["model"] == "small"
    assert record["models"] == dict.fromkeys(ROLES, "large") | {
        "drafter": "small",
        "contested": "small",
    }
    assert [each["model"] for each in trace.records] == ["small", "small", "large", "large"]


async def test_a_run_gives_roles_to_other_models_of_the_process_by_name(pair, clients):
    """A form, a request or an arm chooses among those that there are; it is recorded."""
    saver = InMemorySaver()
    config = preset("pdr", widths=(2,), models="judge=small, refiner = large", **SMALL)
    models = {"judge": clients[1]}
    result = await solve(
        PROBLEM, config, model=clients[0], models=models, checkpointer=saver, thread_id="t"
    )
    assert asked(result, "large") == {(1, "refiner")}
    assert result.state["record"]["models"]["judge"] == "small"
    again = await resume("t", model=clients[0], models=models, checkpointer=saver)
    assert again.ledger == result.ledger
    with pytest.raises(ConfigChangedError, match="another models;"):
        await resume(
            "t",
            model=clients[0],
            models=models,
            checkpointer=saver,
            changes={"models": "refiner=small"},
        )
    with pytest.raises(ConfigError, match="role refiner is given to 'large', which this process"):
        await resume("t", model=clients[0], checkpointer=saver)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("refiner=gpt", "role refiner is given to 'gpt', which this process does not have; it"),
        ("refiner=small@http://h/v1", "given to 'small@http://h/v1', which this process does not"),
        ("writer=small", "unknown role 'writer'; perhaps 'refiner'; known: drafter"),
        ("small", "models 'small': write it as ROLE=NAME"),
    ],
)
async def test_a_run_chooses_no_model_that_the_process_does_not_have(
    pair, clients, named, sentence
):
    """Least of all an address."""
    with pytest.raises(ConfigError, match=sentence):
        await solve(PROBLEM, preset("pdr", models=named, **SMALL), model=clients[0])
    assert served(pair[0]) == (0, 0, 0)


# ------------------------------------------------------------------------- contested drafts


@pytest.mark.parametrize(
    ("answers", "fields", "escalated"),
    [
        (["42"], {}, False),
        (["1", "2", "3", "4", "5", "6", "7", "8"], {}, True),
        (["42"], {"answer": "text"}, False),
        (["1", "2", "3", "4", "5"], {"stop_on_consensus": 0.01}, False),
    ],
)
async def test_drafts_go_to_the_larger_model_where_those_before_did_not_agree(
    pair, clients, answers, fields, escalated
):
    """Agreement is that of `stop_on_consensus`; without short answers there is none to miss."""
    pair[0].configure(answers=answers)
    config = preset("pdr", widths=(4, 2), distiller="latest", **{**SMALL, **fields})
    result = await solve(PROBLEM, config, model=clients[0], models={"contested": clients[1]})
    assert (served(pair[1])[0] > 0) is escalated
    assert served(pair[0])[0] + served(pair[1])[0] == sum(
        row["calls"] for row in result.ledger.rows
    )


async def test_the_policy_is_off_where_nobody_names_a_model_for_it(pair, clients):
    """Drafts that differ are followed by drafts of the same model."""
    pair[0].configure(answers=["1", "2", "3", "4", "5", "6"])
    config = preset("pdr", widths=(4, 2), **SMALL)
    result = await solve(PROBLEM, config, model=clients[0], models={"refiner": clients[1]})
    assert asked(result, "large") == {(2, "refiner")}
    assert "contested" not in result.state


# -------------------------------------------------------------------------------- by tokens


async def test_a_workspace_is_bounded_by_the_models_that_read_it(client):
    """κ holds in the tokens of drafter and refiner, however coarse the distiller counts."""
    counters = {"distiller": CountBy(every(40)), "refiner": CountBy(every(3))}
    drafting = CountBy(num_words)

    async def long(step):
        return [[Entry("a bee sees " * 400)]]

    models = {role: client("large", counter=counter) for role, counter in counters.items()}
    result = await solve(
        PROBLEM,
        preset("pdr", widths=(2,), distiller="long", **SMALL),
        model=client("small", counter=drafting),
        models=models,
        parts=Parts(extensions=Extensions(distillers={"long": long})),
    )
    (workspace,) = result.state["workspaces"]
    counts = [each.length(workspace["text"]) for each in (drafting, counters["refiner"])]
    assert max(counts) == workspace["tokens"] <= 200
    assert max(counts) > 150  # and no smaller than it must be


async def test_a_draft_that_another_model_reads_is_cut_by_its_tokens_too(pair, client):
    """The server's count of a reply holds for its own model alone."""
    pair[0].configure(completion_tokens=120)
    dense = CountBy(num_bytes)
    result = await solve(
        PROBLEM,
        preset("majority", widths=(1,), **SMALL),
        model=client("small", counter=CountBy(num_words)),
        models={"refiner": client("large", counter=dense)},
    )
    (draft,) = result.state["drafts"]
    assert draft["tokens"] == 120
    assert dense.length(draft["solution"]) <= 128


async def test_the_widest_count_is_the_largest():
    """What fits by it fits every model."""
    for text in ("", "one two three", "x" * 99):
        clients = [ModelClient(ScriptedChat(), counter=CountBy(f)) for f in (num_words, every(3))]
        assert await widest(clients).count(text) == max(num_words(text), every(3)(text))


@pytest.mark.parametrize("role", ["drafter", "contested", "distiller", "refiner", "judge"])
async def test_the_window_of_each_role_is_looked_at_before_any_draft(pair, client, role):
    """The sentence names the role."""
    narrow = client("large", window=400)
    config = preset("pdr", widths=(2,), verifier="judge", **SMALL)
    with pytest.raises(ContextWindowError, match=f"of role {role}'s context window is 400; low"):
        await solve(PROBLEM, config, model=client("small"), models={role: narrow})
    assert served(pair[0]) == served(pair[1]) == (0, 0, 0)


async def test_a_role_that_the_run_does_not_ask_may_have_a_small_window(client):
    """Long CoT has no drafts, and nobody judges it."""
    narrow = client("large", window=40)
    models = {"drafter": narrow, "distiller": narrow, "judge": narrow}
    await solve(PROBLEM, preset("long_cot", **SMALL), model=client("small"), models=models)


# --------------------------------------------------------------------------------- resuming


async def test_a_run_is_resumed_with_the_models_that_it_was_started_with(pair, clients):
    """Another one is refused by name of its role; the same ones go on."""
    small, large = clients
    saver, config = InMemorySaver(), preset("pdr", widths=(2,), **SMALL)
    pair[1].configure(status=[{"status": 400}])
    with pytest.raises(Exception, match="400"):
        await solve(
            PROBLEM,
            config,
            model=small,
            models={"refiner": large},
            checkpointer=saver,
            thread_id="t",
        )
    pair[1].configure(status=[])
    with pytest.raises(ConfigChangedError) as refused:
        await resume("t", model=small, checkpointer=saver)
    assert "another model of refiner ('large', now 'small');" in str(refused.value)
    with pytest.raises(ConfigChangedError, match=r"model of drafter and verifier \('small', n"):
        await resume("t", model=large, models={"distiller": small}, checkpointer=saver)
    before = served(pair[0])
    result = await resume("t", model=small, models={"refiner": large}, checkpointer=saver)
    assert served(pair[0]) == before
    assert charged(result.ledger, "small") == before
    past = await history("t", checkpointer=saver)
    assert past.models == "small (refiner: large)"
    assert past.ledger.by_model().keys() == {"small", "large"}


def test_a_record_of_one_model_is_compared_as_one():
    """Runs of earlier versions name one model, and any other is another model."""
    one, other = (Models.of(ScriptedNamed(model_name=name)) for name in NAMES)
    assert changed_models({"model": "small"}, one.recorded) == []
    assert changed_models({"model": "small"}, other.recorded) == ["model ('small', now 'large')"]
    both = Models.of(one, {"judge": other.default})
    assert changed_models({"model": "small"}, both.recorded) == [
        "model of judge ('small', now 'large')"
    ]


class ScriptedNamed(ScriptedChat):
    """A scripted model with a name."""

    model_name: str


# ------------------------------------------------------------------------------- the ledger

ROWS = st.builds(
    lambda step, node, model, prompt, completion, critical, seconds: LedgerRow(
        {
            **empty_row(1, node, step),
            **({"model": model} if model else {}),
            "calls": 1,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "critical_tokens": critical,
            "seconds": seconds,
        }
    ),
    st.integers(1, 4),
    st.sampled_from(["drafter", "refiner"]),
    st.sampled_from(["", "small", "large"]),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 2000),
    st.integers(0, 9).map(float),
)


@given(st.lists(ROWS, max_size=12))
def test_the_sum_over_models_is_the_total(rows):
    """No token is lost or counted twice when the ledger is divided by models."""
    ledger = Ledger(tuple(merge_rows([], rows)), model="own", prices={"small": Price(1, 2)})
    parts = ledger.by_model().values()
    assert sum(row["prompt_tokens"] + row["completion_tokens"] for row in parts) == ledger.b_total
    assert sum(row["calls"] for row in parts) == len(rows)
    assert json.loads(json.dumps(ledger.to_json()))["b_total"] == ledger.b_total


@given(st.lists(ROWS, max_size=12))
def test_naming_models_changes_no_budget(rows):
    """B_total, B_seq and seconds are those of the same calls by one model."""
    plain = [LedgerRow({**row, "model": ""}) for row in rows]
    named, unnamed = (Ledger(tuple(merge_rows([], each))) for each in (rows, plain))
    assert named.total() == unnamed.total()


@given(st.lists(ROWS, max_size=12))
def test_a_run_within_another_graph_keeps_its_models_and_its_critical_path(rows):
    """As rows of the calling node it costs what it costs by itself, by model too."""
    whole = Ledger(tuple(merge_rows([], rows)))
    inside = Ledger(tuple(merge_rows([], totals_by_model(whole.rows, "reason", 3))))
    assert inside.b_total == whole.b_total
    assert inside.b_seq == whole.b_seq
    assert inside.total()["seconds"] == whole.total()["seconds"]
    for model, row in whole.by_model().items():
        found = inside.by_model()[model]
        assert (found["calls"], found["prompt_tokens"]) == (row["calls"], row["prompt_tokens"])


async def test_costs_are_stated_where_prices_are(pair, clients):
    """Prompt and completion tokens have prices of their own; a missing one is not guessed."""
    small, large = clients
    config = preset("pdr", widths=(2,), **SMALL)
    small.price, large.price = Price(1.0, 2.0), Price(10.0, 20.0)
    result = await solve(PROBLEM, config, model=small, models={"refiner": large})
    told = result.to_json()["ledger"]
    _, prompt, completion = served(pair[1])
    assert told["models"]["large"]["cost"] == (10 * prompt + 20 * completion) / 1e6
    _, prompt, completion = served(pair[0])
    assert told["models"]["small"]["cost"] == (prompt + 2 * completion) / 1e6
    assert told["cost"] == sum(each["cost"] for each in told["models"].values())
    small.price = None
    told = (await solve(PROBLEM, config, model=small, models={"refiner": large})).to_json()
    assert told["ledger"]["models"]["small"]["cost"] is None
    assert told["ledger"]["cost"] is None


# ------------------------------------------------------------------------------ other doors


class Charged(MessagesState):
    """A conversation, and what reasoning has cost."""

    ledger: Annotated[list[LedgerRow], merge_rows]


async def test_a_parent_graph_is_charged_by_model(pair, clients):
    """A row for each model, which sum to what both endpoints served."""
    config = preset("pdr", widths=(2,), **SMALL)
    reason = pdr_node(config, model=clients[0], models={"refiner": clients[1]})
    builder = StateGraph(Charged)
    builder.add_node("reason", reason)
    builder.add_edge(START, "reason")
    graph = builder.compile(checkpointer=InMemorySaver())
    run = {"configurable": {"thread_id": "t"}}
    state = await graph.ainvoke({"messages": [("user", PROBLEM)]}, run)
    ledger = Ledger(tuple(state["ledger"]))
    for mock, name in zip(pair, NAMES, strict=True):
        assert charged(ledger, name) == served(mock)
    report = state["messages"][-1].response_metadata["pdr"]["ledger"]
    assert ledger.b_seq == report["b_seq"]
    assert report["models"].keys() == set(NAMES)


async def test_a_run_is_one_row_for_those_who_charge_it_themselves(pair, clients):
    """`charge` returns one row whatever models were asked."""
    found = []

    async def reason(state):
        result = await solve(
            PROBLEM,
            preset("pdr", widths=(2,), **SMALL),
            model=clients[0],
            models={"refiner": clients[1]},
        )
        found.append(result.ledger)
        return {"ledger": [charge(result)]}

    builder = StateGraph(Charged)
    builder.add_node("reason", reason)
    builder.add_edge(START, "reason")
    state = await builder.compile().ainvoke({"messages": [("user", PROBLEM)]})
    (row,) = state["ledger"]
    assert Ledger((row,)).b_total == found[0].b_total
    assert Ledger((row,)).b_seq == found[0].b_seq


async def test_a_tool_has_models_by_role(pair, clients):
    """Its artefact tells the tokens of each."""
    config = preset("pdr", widths=(2,), **SMALL)
    tool = as_tool(config, model=clients[0], models={"refiner": clients[1]})
    call = {"name": "think_hard", "args": {"question": PROBLEM}, "id": "1", "type": "tool_call"}
    message = await tool.ainvoke(call)
    told = message.artifact["ledger"]["models"]
    assert {name: told[name]["calls"] for name in NAMES} == {"small": 3, "large": 1}


async def test_an_abandoned_run_is_charged_by_model(pair, clients):
    """New input ends a run that stopped; what it cost stays with the models that it asked."""
    small, large = clients
    graph = build_graph(
        small,
        models={"refiner": large},
        default=preset("pdr", widths=(2,), **SMALL),
        checkpointer=InMemorySaver(),
    )
    run = {"configurable": {"thread_id": "t"}}
    pair[1].configure(status=[{"status": 400, "times": 1}])
    with pytest.raises(Exception, match="400"):
        await graph.ainvoke({"problem": PROBLEM}, run)
    state = await graph.ainvoke({"problem": "What is 2 x 3?"}, run)
    ledger = Ledger(tuple(state["ledger"]))
    for mock, name in zip(pair, NAMES, strict=True):
        assert charged(ledger, name) == served(mock)


def test_graphs_of_other_models_do_not_share_cached_answers():
    """LangGraph keeps what a cached node returned under the name that the graph has."""
    one, other = (ScriptedNamed(model_name=name) for name in NAMES)
    names = {
        build_graph(one, models=models).__name__
        for models in ({}, {"refiner": other}, {"judge": other}, {"refiner": one})
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"writer": ScriptedChat()}, "unknown role 'writer'; perhaps 'refiner'; known: drafter"),
        ({"judge": "gpt"}, "model 'gpt' is a name, and no model; open one: .*open_client"),
    ],
)
def test_what_is_no_role_or_no_model_is_refused(models, sentence):
    """Before anything is asked."""
    for build in (build_graph, pdr_node, as_tool):
        with pytest.raises(ConfigError, match=sentence):
            build(model=ScriptedChat(), models=models)

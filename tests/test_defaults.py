"""What a run is where its caller leaves things open: its preset, its name, its budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from pdr_graph import PDRConfig, preset, solve
from pdr_graph.budget import TEMPLATE_TOKENS, workspace_limit
from pdr_graph.config import (
    MIN_KAPPA,
    PAPER,
    PRESETS,
    RECOMMENDED,
    base_preset,
    default_config,
    make_config,
)
from pdr_graph.embed import as_tool, pdr_node
from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.extensions import Extensions
from pdr_graph.llm.client import ModelClient
from pdr_graph.nodes.plan import LEAST_CALL, check_window, fitted
from pdr_graph.run import Parts, resume
from tests.fakes import CountBy, ScriptedChat, num_words

# ------------------------------------------------------------------------------ which preset


@pytest.mark.parametrize(
    ("given_fields", "base"),
    [
        ({}, RECOMMENDED),
        ({"max_tokens": 64, "seed": 1}, RECOMMENDED),
        ({"stop_on_consensus": 0.9}, RECOMMENDED),
        ({"widths": (8, 4)}, PAPER),
        ({"distiller": "consensus"}, PAPER),
        ({"finish": "vote"}, PAPER),
        ({"kappa": 512}, PAPER),
        ({"answer": "text"}, PAPER),
        ({"answer": "choice"}, RECOMMENDED),
        ({"preset": "majority", "widths": (3,)}, "majority"),
    ],
)
def test_the_base_of_what_is_given(given_fields, base):
    """Parts of the paper's method mean the paper's, and all else the recommended preset."""
    assert base_preset(given_fields) == base
    config = default_config(given_fields)
    assert config.preset == base
    assert {name: getattr(config, name) for name in given_fields} == given_fields


def test_a_config_of_your_own_keeps_its_defaults():
    """Code that holds `PDRConfig()` gets what it always got."""
    config = PDRConfig()
    assert (config.widths, config.distiller, config.finish) == ((8, 4), "summary", "refine")


async def test_python_solves_by_the_recommended_preset(connect):
    """Where no config is given."""
    result = await solve("What is 6 x 7?", model=connect())
    assert result.config.preset == RECOMMENDED
    assert result.to_json()["preset"] == RECOMMENDED


# ------------------------------------------------------------------------------ what it is called


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_its_bare_name(name):
    """Budgets, sampling and prompts do not make another strategy of it."""
    config = preset(name, max_tokens=9, temperature=0.1, seed=3)
    assert config.strategy == config.label == name


@pytest.mark.parametrize(
    ("config", "strategy", "label"),
    [
        (preset("pdr", widths=(4, 2)), "pdr@widths=4,2", "pdr*"),
        (PDRConfig(), "pdr@widths=8,4", "pdr*"),
        (
            preset("vote_first", finish="guarded", distiller="evidence"),
            "vote_first@distiller=evidence;finish=guarded",
            "vote_first*",
        ),
        (preset("pdr_adaptive", stop_on_consensus=None), None, "pdr_adaptive*"),
        # As an earlier version has recorded it.
        (make_config(preset="long_cot", widths=(4,)), "long_cot@widths=4", "long_cot*"),
        (make_config(preset="mine", widths=(4,)), "mine", "mine"),
    ],
)
def test_a_changed_preset_says_what_was_changed(config, strategy, label):
    """It is never shown under the name of another strategy."""
    assert config.strategy == (strategy or "pdr_adaptive@stop_on_consensus=none")
    assert config.label == label


@pytest.mark.parametrize(
    ("name", "widths", "why"),
    [
        ("long_cot", (4,), r"'long_cot' has no rounds of drafts, and widths 4 asks for some"),
        ("pdr", (), r"'pdr' is made of rounds of drafts, and widths is empty"),
    ],
)
def test_what_contradicts_a_preset_is_refused(name, widths, why):
    """By name, value and remedy."""
    with pytest.raises(ConfigError, match=why):
        preset(name, widths=widths)


# ------------------------------------------------------------------------------ budgets

budgets = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 20_000),
        "kappa": st.integers(16, 8_000),
        "solution_tokens": st.integers(16, 8_000),
    },
)


@given(
    name=st.sampled_from(sorted(PRESETS)),
    fields=budgets,
    problem=st.integers(1, 4_000),
    window=st.integers(64, 40_000),
)
def test_budgets_follow_the_window(name, fields, problem, window):
    """What is set stays, nothing grows, and what nobody set is never the reason of a refusal."""
    asked = preset(name, **fields)
    config = fitted(asked, problem, window)
    for budget in ("max_tokens", "kappa", "solution_tokens"):
        assert getattr(config, budget) <= max(getattr(asked, budget), LEAST_CALL)
        if budget in fields:
            assert getattr(config, budget) == fields[budget]
    needed = fields.get("max_tokens", LEAST_CALL)
    if workspace_limit(asked):
        needed += fields.get("kappa", MIN_KAPPA)
    # Where both are open, the answer takes half, and at the least its own.
    room = 2 * LEAST_CALL if needed == LEAST_CALL + MIN_KAPPA else needed
    if window - problem - TEMPLATE_TOKENS >= room:
        check_window(config, problem, window)
    elif window - problem - TEMPLATE_TOKENS < needed:
        with pytest.raises(ContextWindowError) as refused:
            check_window(config, problem, window)
        for budget in {"max_tokens", "kappa"} - fields.keys():
            assert f"lower {budget}" not in str(refused.value)


def test_what_fits_is_left_alone():
    """The very config, so that no run records what it need not."""
    config = preset("pdr")
    assert fitted(config, 10, None) is fitted(config, 10, 20_000) is config


@pytest.mark.parametrize(
    ("fields", "problem", "words"),
    [
        ({"max_tokens": 3000}, 60, "problem 60, template 192, max_tokens 3000) and the model's"),
        ({"max_tokens": 3000}, 60, "lower max_tokens, or serve a larger window"),
        ({}, 3000, "the problem has 3000 tokens and the model's context window is 2560"),
        ({"max_tokens": 300}, 3000, "shorten the problem, or serve a larger window"),
    ],
)
def test_a_refusal_names_what_can_be_done(fields, problem, words):
    """Only what the user has set can be lowered, and a problem that is too long says so."""
    config = fitted(preset("vote_first", **fields), problem, 2560)
    with pytest.raises(ContextWindowError) as refused:
        check_window(config, problem, 2560)
    assert words in str(refused.value)


def small_client(window: int) -> ModelClient:
    replies = ["It is \\boxed{42}."] * 40
    return ModelClient(ScriptedChat(replies=replies), counter=CountBy(num_words), window=window)


async def test_a_run_records_the_budgets_that_it_used():
    """And says so once; resumed, it keeps them."""
    saver, told = InMemorySaver(), []
    parts = Parts(on_event=told.append)
    model = small_client(2560)
    result = await solve(
        "What is 6 x 7?", model=model, checkpointer=saver, thread_id="t", parts=parts
    )
    assert result.config.max_tokens == 2560 - TEMPLATE_TOKENS - 5
    note = (
        "budgets follow the model's context window of 2560 tokens: max_tokens 2363, "
        "solution_tokens 2048"
    )
    assert result.notes[0] == note
    assert [each["text"] for each in told if each["event"] == "note"].count(note) == 1
    again = await resume("t", model=small_client(9000), checkpointer=saver)
    assert again.config == result.config


async def test_an_embedded_run_follows_the_window_too():
    """As a node and as a tool: they are the same graph."""
    for window in (400, 2560):
        tool = as_tool(model=small_client(window))
        said = await tool.ainvoke({"question": "What is 6 x 7?"})
        assert "42" in said
    assert pdr_node(model=small_client(400))


def test_a_run_that_was_killed_at_once_still_follows_the_window():
    """Its input does not name budgets that nobody has set."""
    assert "max_tokens" not in preset("pdr", kappa=99).asked()
    assert preset("pdr", kappa=99).asked()["kappa"] == 99


# ------------------------------------------------------------------------------ parts


def test_trust_needs_a_judge():
    """A distiller that reads what a judge trusts is refused where there is none."""
    config = preset("vote_first", distiller="trusted")
    with pytest.raises(ConfigError, match="admits what a judge trusts, and there is none"):
        Extensions().check(config)


@pytest.mark.parametrize(
    ("fields", "weighs"),
    [
        ({"finish": "weighted_vote"}, True),
        ({"finish": "vote", "widths": (4,), "distiller": "evidence"}, False),
        ({"finish": "vote", "widths": (4, 4), "distiller": "evidence"}, True),
        ({"finish": "refine", "widths": (4,), "distiller": "trusted"}, True),
        ({"finish": "refine", "widths": (), "distiller": "trusted"}, False),
    ],
)
def test_signals_are_asked_for_only_where_they_are_used(fields, weighs):
    """A distiller that makes no workspace reads no signals."""
    assert make_config(**fields).weighs is weighs


async def test_a_refinement_is_asked_for_no_signals_unless_it_votes(connect, mock):
    """`evidence` weighs drafts; only `guarded` weighs the refinement."""
    config = preset("pdr", widths=(2,), distiller="evidence", max_tokens=64)
    await solve("What is 6 x 7?", config, model=connect())
    asked = [call["body"].get("logprobs") for call in mock.requests()]
    assert asked == [True, True, None]


async def test_the_final_call_may_have_its_own_temperature(connect, mock):
    """Greedy, for instance, while the drafts differ."""
    config = preset("pdr", widths=(2,), max_tokens=64, refine_temperature=0.0, temperature=0.9)
    await solve("What is 6 x 7?", config, model=connect())
    heats = [call["body"]["temperature"] for call in mock.requests()]
    assert heats == [0.9, 0.9, 0.9, 0.0]

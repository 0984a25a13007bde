"""What a run may be asked to do, and how a bad request is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.config import PDRConfig, changed_fields, form_of, make_config
from pdr_graph.errors import ConfigError

configs = st.builds(
    make_config,
    widths=st.lists(st.integers(1, 64), min_size=1, max_size=6).map(tuple),
    distiller=st.sampled_from(["summary", "top_k", "random_k", "package.module:mine"]),
    finish=st.sampled_from(["refine", "vote", "select"]),
    answer=st.sampled_from(["math", "choice"]),
    kappa=st.integers(16, 10**6),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(0, 2**31 - 1),
    quorum=st.floats(0, 1, exclude_min=True),
    stop_on_consensus=st.none() | st.floats(0, 1, exclude_min=True),
    max_total_tokens=st.none() | st.integers(1, 10**9),
    deadline_s=st.none() | st.floats(0, exclude_min=True),
)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("widths", (0,), "widths 0: each round needs at least 1 draft, got 0"),
        ("widths", (4, -2), "widths 4,-2: each round needs at least 1 draft, got -2"),
        ("widths", "eight", "widths 'eight': input should be a valid tuple"),
        ("kappa", 15, "kappa 15: a workspace must hold at least one line, use 16 tokens or more"),
        ("k", 0, "k 0: input should be greater than or equal to 1"),
        ("max_tokens", 0, "max_tokens 0: input should be greater than or equal to 1"),
        ("solution_tokens", 3, "solution_tokens 3: input should be greater than or equal to 16"),
        ("thinking_token_budget", -1, "thinking_token_budget -1: input should be greater"),
        ("temperature", 2.5, "temperature 2.5: input should be less than or equal to 2"),
        ("temperature", "hot", "temperature 'hot': input should be a valid number"),
        ("temperature", math.nan, "temperature nan: input should be"),
        ("top_p", 0, "top_p 0: input should be greater than 0"),
        ("seed", -1, "seed -1: input should be greater than or equal to 0"),
        ("seed", 2**31, "seed 2147483648: input should be less than 2147483648"),
        ("quorum", 1.5, "quorum 1.5: input should be less than or equal to 1"),
        ("quorum", 0, "quorum 0: input should be greater than 0"),
        ("min_success", 0, "min_success 0: input should be greater than 0"),
        ("stop_on_consensus", 1.1, "stop_on_consensus 1.1: input should be less"),
        ("max_extra_rounds", -1, "max_extra_rounds -1: input should be greater"),
        ("max_total_tokens", 0, "max_total_tokens 0: input should be greater"),
        ("deadline_s", 0, "deadline_s 0: input should be greater than 0"),
        ("finish", None, "finish None: input should be a valid string"),
        ("kapa", 64, "unknown setting 'kapa'; perhaps 'kappa'; known: preset, widths"),
    ],
)
def test_a_bad_value_is_one_sentence_with_field_and_value(field, value, shown):
    """A refusal names what was asked, with what value, and what would do."""
    with pytest.raises(ConfigError) as refused:
        make_config(**{field: value})
    message = str(refused.value)
    assert message.startswith(shown)
    assert "\n" not in message
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"finish": "vote"}, "finish 'vote'"),
        ({"verifier": "consensus"}, "verifier 'consensus'"),
        ({"distiller": "consensus"}, "distiller 'consensus'"),
        ({"stop_on_consensus": 0.5}, "stop_on_consensus"),
    ],
)
def test_what_compares_answers_is_refused_for_text(fields, what):
    """Free text has no short answer to count, and the sentence says so before anything is paid."""
    with pytest.raises(ConfigError) as refused:
        make_config(answer="text", **fields)
    assert str(refused.value) == (
        f"{what} compares short answers, and answer kind 'text' has none; "
        "choose answer 'math' or 'choice', or another way to end"
    )


@pytest.mark.parametrize("fields", [{"finish": "vote"}, {"finish": "select"}])
def test_a_choice_among_drafts_needs_a_round_of_them(fields):
    """Long CoT has no drafts to vote on or to select from."""
    with pytest.raises(ConfigError, match="needs drafts, and widths is empty; give it a round"):
        make_config(widths=(), **fields)


def test_agreement_with_drafts_needs_a_round_of_them():
    """The consensus verifier compares with drafts, of which long CoT has none."""
    with pytest.raises(ConfigError, match="verifier 'consensus' needs drafts"):
        make_config(widths=(), verifier="consensus")


@pytest.mark.parametrize("name", sorted(PDRConfig.model_fields))
def test_every_field_is_described(name):
    """The docstring under a field is what Studio's form and the command line show."""
    description = PDRConfig.model_fields[name].description
    assert description
    assert description.endswith(".") or "\n" in description or ";" in description


@given(config=configs)
def test_a_config_survives_its_record(config):
    """What `plan` writes into the state reads back as the same config."""
    recorded = config.model_dump(mode="json")
    assert PDRConfig.model_validate(recorded) == config


def test_a_config_cannot_be_changed():
    """Two nodes of one run never see different settings."""
    with pytest.raises(ValueError, match="frozen"):
        make_config().kappa = 64


def test_a_config_error_is_a_value_error():
    """A caller that knows nothing of this package can catch it."""
    with pytest.raises(ValueError, match="kappa 1"):
        make_config(kappa=1)


@given(config=configs)
def test_nothing_has_changed_between_equal_configs(config):
    """A resume that repeats the record is accepted."""
    assert changed_fields(config, config) == []


def test_changed_fields_are_named():
    """A refused resume can say what differs."""
    recorded = make_config(seed=7)
    asked = make_config(seed=8, kappa=64, widths=(2,))
    assert changed_fields(recorded, asked) == ["widths", "kappa", "seed"]


def test_a_seed_that_is_not_asked_for_is_no_change():
    """The record holds the seed that was drawn; a resume without one asks for nothing."""
    assert changed_fields(make_config(seed=7), make_config()) == []
    assert changed_fields(make_config(seed=7), make_config(seed=7)) == []


@given(config=configs)
def test_a_form_shows_what_a_config_holds(config):
    """Its defaults are the config's values, its checks and texts those of every config."""
    form = form_of(config)
    assert form().model_dump() == config.model_dump()
    assert issubclass(form, PDRConfig)
    for name, field in PDRConfig.model_fields.items():
        assert form.model_fields[name].description == field.description
    with pytest.raises(ValueError, match="kappa"):
        form(kappa=1)


def test_every_field_has_a_text_and_every_node_a_form():
    """Studio shows the text beside the field, and the field at its nodes."""
    fields = PDRConfig.model_json_schema()["properties"]
    assert all(field["description"] for field in fields.values())
    nodes = {node for field in fields.values() for node in field.get("langgraph_nodes", [])}
    assert nodes == {"plan", "drafter", "distiller", "refiner", "verifier"}

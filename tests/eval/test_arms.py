"""Arms, sweeps and budgets: from what is typed to each arm's settings."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.config import PRESETS
from pdr_graph.errors import ConfigError
from pdr_graph.eval.arms import Arm, Sweep, make_arms, parse_arm, parse_sweep, swept
from pdr_graph.eval.budgets import LEAST_TOKENS, Budgets


def make(*specs: str, **common: object):
    """Make arms without a budget to match."""
    return make_arms([parse_arm(each) for each in specs], common, Budgets())


def test_an_arm_is_a_preset_with_fields_of_its_own():
    """A name may come first; without one, the text is the name."""
    named, plain = make("narrow=pdr@widths=8,4; distiller=top_k ;k=3", "majority@widths=8")
    assert (named.name, named.preset, named.config.widths) == ("narrow", "pdr", (8, 4))
    assert (named.config.distiller, named.config.k) == ("top_k", 3)
    assert (plain.name, plain.config.widths, plain.config.finish) == (
        "majority@widths=8",
        (8,),
        "vote",
    )


def test_common_fields_hold_where_an_arm_says_nothing():
    """An arm's own fields take precedence over them."""
    one, other = make("pdr@kappa=300", "long_cot", kappa=500, max_tokens=99)
    assert (one.config.kappa, other.config.kappa) == (300, 500)
    assert (one.config.max_tokens, other.config.max_tokens) == (99, 99)


@pytest.mark.parametrize("common", [{}, {"max_tokens": 77}])
def test_t_is_the_thought_and_the_solution_comes_on_top(common):
    """As in the paper, the solution has tokens besides the thinking budget."""
    [arm] = make("pdr@T=8192;solution_tokens=1024", **common)
    assert arm.config.max_tokens == 8192 + 1024


def test_values_read_as_none_and_as_empty_lists():
    """A field that allows them can be None or empty."""
    [arm] = make("long_cot@widths=;thinking_token_budget=none")
    assert (arm.config.widths, arm.config.thinking_token_budget) == ((), None)


BAD = {
    "no rounds": ("pdr@widths=", "'pdr' is made of rounds of drafts, and widths is empty"),
    "rounds of none": ("long_cot@widths=4", "has no rounds of drafts, and widths 4 asks"),
    "trust in nobody": ("vote_first@distiller=trusted", "admits what a judge trusts"),
    "unknown preset": (
        "pdrr",
        "arm 'pdrr': unknown preset 'pdrr'; perhaps 'pdr'; known: long_cot, sr,",
    ),
    "no name": ("=pdr", "begins with '='"),
    "nothing after @": ("pdr@ ", "ends in '@'"),
    "no value": ("pdr@kappa", "'kappa' is not FIELD=VALUE"),
    "twice": ("pdr@k=1;k=2", "sets k twice"),
    "unknown field": ("pdr@kapa=1", "unknown field 'kapa'; perhaps 'kappa'; known: T, widths, "),
    "a seed": ("pdr@seed=1", "cannot set seed: give --seed to all arms"),
    "a preset": ("pdr@preset=sr", "cannot set preset: name it before the @"),
    "T that is no number": ("pdr@T=1k", "T is '1k', it must be a number of tokens"),
    "T and max_tokens": ("pdr@T=10;max_tokens=9", "sets both T and max_tokens"),
    "value that does not fit": ("pdr@kappa=x", "arm 'pdr@kappa=x': kappa 'x': input should be"),
    "unknown distiller": ("a=pdr@distiller=zip", "arm 'a': unknown distiller 'zip'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_arm_is_refused_by_name(case):
    """The sentence names arm, field and value."""
    text, said = BAD[case]
    with pytest.raises(ConfigError) as refused:
        make(text)
    assert said in str(refused.value)


def test_two_arms_of_one_name_are_refused():
    """The names of arms identify samples."""
    with pytest.raises(ConfigError, match="two arms are named 'pdr'"):
        make("pdr", "pdr")


def test_a_sweep_puts_an_arm_for_each_value_in_an_arms_place():
    """Several sweeps combine; an arm on which a field has no effect stays as it is."""
    specs = [parse_arm("a=pdr@widths=4"), parse_arm("long_cot"), parse_arm("majority")]
    sweeps = [parse_sweep("kappa=256,512"), parse_sweep("widths=16;8,4")]
    assert [each.name for each in swept(specs, sweeps)] == [
        "a[kappa=256;widths=16]",
        "a[kappa=256;widths=8,4]",
        "a[kappa=512;widths=16]",
        "a[kappa=512;widths=8,4]",
        "long_cot",
        "majority[widths=16]",
        "majority[widths=8,4]",
    ]
    arms = make_arms(swept(specs, sweeps), {}, Budgets())
    assert [arm.config.widths for arm in arms][:2] == [(16,), (8, 4)]


@pytest.mark.parametrize("text", ["kappa", "kappa=", "=1,2", "kappa=,", "kapa=1", "kappa=1,1"])
def test_a_malformed_sweep_is_refused(text):
    """The sentence names the sweep."""
    with pytest.raises(ConfigError, match="sweep"):
        parse_sweep(text)


def test_values_of_a_sweep_that_hold_commas_are_parted_by_semicolons():
    """Without semicolons, commas separate the values."""
    widths = {"16": ("16",), "8,4": ("8", "4")}
    assert parse_sweep("widths=16;8,4") == Sweep("widths", widths)
    assert parse_sweep("kappa= 1 ,2") == Sweep("kappa", {"1": "1", "2": "2"})


def fitted(spec: str, b_seq: int | None = None, b_total: int | None = None) -> Arm:
    """Fit one arm to budgets."""
    [arm] = make_arms([parse_arm(spec)], {"kappa": 256}, Budgets(b_seq, b_total))
    return arm


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    distiller=st.sampled_from(["summary", "top_k", "random_k", "tournament", "oracle_wrong"]),
    budget=st.integers(1, 100_000),
    seq=st.booleans(),
)
def test_a_derived_arm_comes_within_a_token_a_call_of_its_budget(
    preset, widths, distiller, budget, seq
):
    """It never exceeds the budget; a refusal names the least budget that would do."""
    shape = "" if preset == "long_cot" else f"@widths={','.join(map(str, widths))}"
    shape += f";distiller={distiller}" if preset == "pdr" else ""
    which = {"b_seq": budget} if seq else {"b_total": budget}
    refusal = ""
    try:
        derived = fitted(preset + shape, **which).budget
    except ConfigError as refused:
        refusal = str(refused)
    if refusal:
        enough = int(refusal.partition("are the least; give ")[2].split()[0])
        assert enough > budget
        least = fitted(preset + shape, **dict.fromkeys(which, enough))
        assert least.budget["max_tokens"] == LEAST_TOKENS
        return
    calls = derived["sequential_calls" if seq else "total_calls"]
    spent = derived["b_seq_nominal" if seq else "b_total_nominal"]
    assert budget - calls < spent <= budget
    assert spent == calls * derived["max_tokens"]


@pytest.mark.parametrize(
    ("spec", "budget", "calls", "derived"),
    [
        ("long_cot", {"b_seq": 900}, (1, 1), "--b-seq 900 / 1 sequential call = 900 tokens a call"),
        ("sr@widths=1,1", {"b_seq": 900}, (3, 3), "900 / 3 sequential calls = 300 tokens a call"),
        ("pdr@widths=4", {"b_seq": 900}, (3, 6), "900 / 3 sequential calls = 300 tokens a call"),
        ("pdr@widths=4;distiller=random_k", {"b_seq": 900}, (2, 5), "= 450 tokens a call"),
        ("pdr@widths=4", {"b_total": 900}, (3, 6), "--b-total 900 / 6 total calls = 150 tokens a"),
        ("majority@widths=4", {"b_total": 900}, (1, 4), "= 225 tokens a call"),
        ("majority@max_tokens=100", {"b_total": 950}, (1, 9), "at 100 tokens a call = 9 drafts"),
        ("genselect@max_tokens=100", {"b_total": 950}, (2, 9), "= 8 drafts, which use 900"),
        ("sr@max_tokens=100", {"b_seq": 950}, (9, 9), "at 100 tokens a call = 8 rounds"),
        ("majority", {"b_seq": 100, "b_total": 950}, (1, 9), "= 100 tokens a call; --b-total 950"),
        ("pdr@widths=4", {"b_seq": 300, "b_total": 900}, (3, 6), "; 600 of --b-total 900"),
    ],
)
def test_what_is_derived_is_said(spec, budget, calls, derived):
    """The record has the calls on the critical path and in all, and how the rest was derived."""
    got = fitted(spec, **budget).budget
    assert (got["sequential_calls"], got["total_calls"]) == calls
    assert derived in got["derived"]


def test_without_a_budget_nothing_is_derived():
    """The nominal figures are the arm's own."""
    got = fitted("pdr@widths=4;max_tokens=100").budget
    assert (got["derived"], got["b_seq_nominal"], got["b_total_nominal"]) == ("", 300, 600)


@pytest.mark.parametrize(
    ("spec", "budget", "said"),
    [
        ("pdr@T=100", {"b_seq": 900}, "no single number of drafts or rounds is left to derive"),
        ("majority@T=100", {"b_seq": 900}, "no single number of drafts or rounds is left"),
        (
            "majority@max_tokens=100",
            {"b_total": 50},
            "does not pay for arm 'majority@max_tokens=100'",
        ),
        ("majority@max_tokens=1", {"b_total": 9999}, "would give arm"),
        ("pdr@widths=9", {"b_seq": 300, "b_total": 900}, "would spend up to 1100 tokens in all"),
    ],
)
def test_a_budget_that_cannot_be_matched_is_refused(spec, budget, said):
    """The sentence says what would do instead."""
    with pytest.raises(ConfigError, match=said):
        fitted(spec, **budget)


@given(max_tokens=st.integers(1, 500), budget=st.integers(1, 20_000))
def test_as_many_drafts_are_derived_as_the_budget_pays_for(max_tokens, budget):
    """One more would cost more than there is."""
    with suppress(ConfigError):
        arm = fitted(f"majority@max_tokens={max_tokens}", b_total=budget)
        [width] = arm.config.widths
        assert width * max_tokens <= budget < (width + 1) * max_tokens

"""From one budget for all to each arm's calls."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import ConfigError
from pdr_graph.eval.arms import Arm, make_arms, parse_arm
from pdr_graph.eval.budgets import LEAST_TOKENS, Budgets
from pdr_graph.strategies import PRESETS


def fitted(spec: str, b_seq: int | None = None, b_total: int | None = None) -> Arm:
    """Derive one arm."""
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
    """And never above it; where it cannot, it is refused with the least that would do."""
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
    """The number of calls on the critical path and in all, and how the rest followed."""
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
    """With what would do instead."""
    with pytest.raises(ConfigError, match=said):
        fitted(spec, **budget)


@given(max_tokens=st.integers(1, 500), budget=st.integers(1, 20_000))
def test_as_many_drafts_are_derived_as_the_budget_pays_for(max_tokens, budget):
    """One more would cost more than there is."""
    with suppress(ConfigError):
        arm = fitted(f"majority@max_tokens={max_tokens}", b_total=budget)
        [width] = arm.config.widths
        assert width * max_tokens <= budget < (width + 1) * max_tokens

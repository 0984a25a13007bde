"""Arms and sweeps, as they are typed."""

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.eval.arms import Sweep, make_arms, parse_arm, parse_sweep, swept
from pdr_graph.eval.budgets import Budgets


def make(*specs: str, **common: object):
    """Settle arms without a budget to match."""
    return make_arms([parse_arm(each) for each in specs], common, Budgets())


def test_an_arm_is_a_preset_with_fields_of_its_own():
    """A name may come before it; without one its text is its name."""
    named, plain = make("narrow=pdr@widths=8,4; distiller=top_k ;k=3", "majority@widths=8")
    assert (named.name, named.preset, named.config.widths) == ("narrow", "pdr", (8, 4))
    assert (named.config.distiller, named.config.k) == ("top_k", 3)
    assert (plain.name, plain.config.widths, plain.config.finish) == (
        "majority@widths=8",
        (8,),
        "vote",
    )


def test_common_fields_hold_where_an_arm_says_nothing():
    """An arm's own come before them, and so do the preset's."""
    one, other = make("pdr@kappa=300", "long_cot", kappa=500, max_tokens=99, widths=(3,))
    assert (one.config.kappa, other.config.kappa) == (300, 500)
    assert (one.config.max_tokens, other.config.max_tokens) == (99, 99)


@pytest.mark.parametrize("common", [{}, {"max_tokens": 77}])
def test_t_is_the_thought_and_the_solution_comes_on_top(common):
    """As in the paper, where a solution has a buffer beside the thinking budget."""
    [arm] = make("pdr@T=8192;solution_tokens=1024", **common)
    assert arm.config.max_tokens == 8192 + 1024


def test_values_read_as_none_and_as_empty_lists():
    """Where a field admits them."""
    [arm] = make("pdr@widths=;thinking_token_budget=none")
    assert (arm.config.widths, arm.config.thinking_token_budget) == ((), None)


BAD = {
    "unknown preset": ("pdrr", "arm 'pdrr': unknown preset 'pdrr'; known: long_cot, sr,"),
    "no name": ("=pdr", "begins with '='"),
    "nothing after @": ("pdr@ ", "ends in '@'"),
    "no value": ("pdr@kappa", "'kappa' is not FIELD=VALUE"),
    "twice": ("pdr@k=1;k=2", "sets k twice"),
    "unknown field": ("pdr@kapa=1", "unknown field 'kapa'; known: T, widths, "),
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
    """Names tell samples apart."""
    with pytest.raises(ConfigError, match="two arms are named 'pdr'"):
        make("pdr", "pdr")


def test_a_sweep_puts_an_arm_for_each_value_in_an_arms_place():
    """All combinations of several; arms that a field means nothing to stay as they are."""
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
    """In one sentence."""
    with pytest.raises(ConfigError, match="sweep"):
        parse_sweep(text)


def test_values_of_a_sweep_that_hold_commas_are_parted_by_semicolons():
    """A field of one number takes commas."""
    assert parse_sweep("widths=16;8,4") == Sweep("widths", ("16", "8,4"))
    assert parse_sweep("kappa= 1 ,2") == Sweep("kappa", ("1", "2"))

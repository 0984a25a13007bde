"""The named strategies are points of one family."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.config import (
    PRESETS,
    drafts_awaited,
    drafts_needed,
    make_config,
    num_rounds,
    preset,
    width_of,
)
from pdr_graph.distill import DISTILLERS
from pdr_graph.errors import ConfigError
from pdr_graph.finish import FINISHES


def test_the_design_names_these_presets():
    """Every strategy of the family is there under its name."""
    assert sorted(PRESETS) == [
        "genselect",
        "long_cot",
        "majority",
        "pacore",
        "pdr",
        "pdr_adaptive",
        "rsa",
        "sr",
        "sr_error_analysis",
        "tournament",
        "vote_first",
    ]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_a_valid_config_of_parts_that_exist(name):
    """Nothing in a preset is refused or unknown, and the config says where it came from."""
    config = preset(name)
    assert config.preset == name
    assert config.distiller in DISTILLERS
    assert config.finish in FINISHES


@pytest.mark.parametrize(
    ("name", "widths", "finish"),
    [
        ("long_cot", (), "refine"),
        ("sr", (1, 1, 1), "refine"),
        ("pdr", (16, 8, 4), "refine"),
        ("majority", (16,), "vote"),
        ("rsa", (16,) * 10, "vote"),
        ("pacore", (32, 4), "refine"),
        ("genselect", (16,), "select"),
    ],
)
def test_presets_have_the_shape_that_their_papers_give_them(name, widths, finish):
    """Widths and finish are those of the sources."""
    config = preset(name)
    assert (config.widths, config.finish) == (widths, finish)


def test_paper_presets_do_not_stop_early():
    """Only the adaptive presets end their rounds when drafts agree."""
    stopping = [name for name in PRESETS if preset(name).stop_on_consensus is not None]
    assert stopping == ["pdr_adaptive", "vote_first"]


def test_overrides_win_over_the_preset():
    """A caller's own field is what counts."""
    assert preset("pdr", widths=(2,), kappa=64).widths == (2,)


def test_an_unknown_preset_names_the_known_ones():
    """A misspelt name is one sentence that lists what there is."""
    with pytest.raises(
        ConfigError, match="unknown preset 'prd'; perhaps 'pdr'; known: long_cot, sr, "
    ):
        preset("prd")


@pytest.mark.parametrize("name", [["pdr"], {"preset": "pdr"}, None, 4])
def test_a_preset_that_is_no_text_is_refused(name):
    """In a sentence, whatever it is."""
    with pytest.raises(ConfigError, match="a preset is named by a text, such as 'pdr', not by "):
        preset(name)


def test_a_bad_override_is_refused_by_name():
    """A preset does not hide which field is wrong."""
    with pytest.raises(ConfigError, match="widths 0: each round needs"):
        preset("pdr", widths=(0,))


def test_a_preset_of_ones_own_stands_beside_the_built_in_ones():
    """Another table of presets is handed in; nothing is registered anywhere."""
    own = {**PRESETS, "mine": {"widths": (3, 2), "distiller": "top_k"}}
    config = preset("mine", own, k=1)
    assert (config.preset, config.widths, config.distiller, config.k) == (
        "mine",
        (3, 2),
        "top_k",
        1,
    )
    with pytest.raises(ConfigError):
        preset("mine")


def test_the_built_in_presets_cannot_be_changed():
    """No caller changes what `pdr` means for another."""
    with pytest.raises(TypeError):
        PRESETS["pdr"] = {}  # type: ignore[index]  # that is the point


@pytest.mark.parametrize(("round_number", "width"), [(1, 16), (2, 8), (3, 4), (4, 4), (9, 4)])
def test_an_extra_round_has_the_width_of_the_last(round_number, width):
    """A rejected solution goes back to a round like the one before."""
    assert width_of(preset("pdr"), round_number) == width


def test_an_extra_round_of_long_cot_is_one_call():
    """Where there are no rounds at all, a further one has one draft."""
    assert width_of(preset("long_cot"), 1) == 1


def test_rounds_are_counted_with_the_granted_ones():
    """The bound on rounds is the list plus what a rejection granted."""
    assert num_rounds(preset("pdr")) == 3
    assert num_rounds(preset("pdr"), 2) == 5
    assert num_rounds(preset("long_cot")) == 0


@given(
    width=st.integers(1, 200),
    min_success=st.floats(0.01, 1),
    quorum=st.floats(0.01, 1),
)
def test_drafts_needed_is_within_the_round_and_what_the_gate_lets_in(width, min_success, quorum):
    """At least one, never more than asked, and never more than a quorum leaves."""
    config = make_config(widths=(width,), min_success=min_success, quorum=quorum)
    needed = drafts_needed(config, 1)
    assert 1 <= needed <= width
    assert needed - 1 < min(min_success, quorum) * width + 1e-6


@pytest.mark.parametrize(
    ("width", "share", "needed"),
    [(100, 0.07, 7), (16, 0.5, 8), (3, 0.5, 2), (1, 0.01, 1), (4, 1, 4)],
)
def test_a_share_is_rounded_up_but_not_past_itself(width, share, needed):
    """0.07 of 100 is 7, though the product of the floats is above it."""
    assert drafts_needed(make_config(widths=(width,), min_success=share), 1) == needed
    assert drafts_awaited(make_config(widths=(width,), quorum=share), 1) == needed

"""The problems and arms of `make bench-gpu`."""

import pytest

from benchmarks.gpu.__main__ import model_window
from benchmarks.gpu.arms import make_problems, matched_arms
from pdr_graph.errors import ConfigError


def test_problems_are_drawn_from_their_seed():
    """The same seed draws the same problems, another one others."""
    assert make_problems(4) == make_problems(4)
    assert make_problems(4) != make_problems(4, seed=1)


def test_an_answer_is_what_the_sentences_say():
    """Reading a problem's sentences one by one gives its answer."""
    for problem in make_problems(50):
        total = 0
        for sentence in problem.text.split(". "):
            numbers = [int(word) for word in sentence.split() if word.isdigit()]
            if "shelf holds" in sentence:
                total = numbers[0]
            elif "times as large" in sentence:
                total *= numbers[0]
            elif "taken away" in sentence:
                total -= numbers[0]
            elif "added" in sentence:
                total += numbers[0]
        assert total == problem.answer > 0


def test_long_cot_is_allotted_the_critical_path():
    """Two rounds are five calls in sequence, and majority makes as many calls as PDR."""
    arms = matched_arms((8, 4), 100, kappa=64, window=10_000)
    assert arms["long_cot"].max_tokens == 500
    assert arms["majority"].widths == (8 + 4 + 2 + 1,)


def test_a_window_bounds_long_cot_and_refuses_a_call_that_cannot_fit():
    """What does not fit is cut for long CoT, and is an error where PDR's own call does not."""
    arms = matched_arms((8, 4), 100, kappa=64, window=812)
    assert arms["long_cot"].max_tokens == 300
    with pytest.raises(ConfigError, match="--tokens asks for 400"):
        matched_arms((8, 4), 400, kappa=64, window=812)


def test_a_folder_that_holds_no_model_is_one_sentence(tmp_path):
    """The folder is named."""
    with pytest.raises(ConfigError, match="is no model folder"):
        model_window(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    assert model_window(tmp_path) == 4096

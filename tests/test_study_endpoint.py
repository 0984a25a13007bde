"""How the studies serve their model, and how its tokens are drawn."""

import argparse

import pytest

from benchmarks.studies.endpoint import endpoint


def test_without_vllm_nothing_is_started(tmp_path):
    """The named endpoint is used."""
    asked = argparse.Namespace(vllm=False, base_url="http://127.0.0.1:1/v1", out=tmp_path / "out")
    with endpoint(asked):
        assert asked.base_url == "http://127.0.0.1:1/v1"
    assert not asked.out.exists()


def test_a_token_is_drawn_with_its_probability_and_by_its_seed():
    """This covers block borders, tokens without weight and a padded end."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from benchmarks.studies.token_draw import draw

    weights = torch.zeros(1300)
    weights[[0, 511, 512, 1299]] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rows = weights.log().repeat(4000, 1)
    drawn = draw(rows, {index: torch.Generator().manual_seed(index) for index in range(4000)})
    shares = torch.bincount(drawn, minlength=1300) / 4000
    assert shares.sum() == shares[[0, 511, 512, 1299]].sum()
    assert (shares - weights).abs().max() < 0.03
    again = draw(rows[:3], {row: torch.Generator().manual_seed(row) for row in (0, 2)})
    assert again[[0, 2]].tolist() == drawn[[0, 2]].tolist()

"""The axes of the plots of `pdr-graph compare`."""

import pytest

from pdr_graph.eval.comparison import compare
from pdr_graph.eval.comparison_page import plot
from tests.eval.recorded import recorded, sample


@pytest.mark.asyncio
@pytest.mark.parametrize("costs", [(1000, 1030), (1000, 1900), (620, 2900), (40, 90_000)])
async def test_an_axis_of_cost_has_several_labels_and_not_too_many(costs, tmp_path):
    """Two at least and eight at most stand between its ends, whatever it spans."""
    samples = [
        sample(arm, f"p{index}", b_total=cost + index)
        for arm, cost in zip(("pdr", "majority"), costs, strict=True)
        for index in range(3)
    ]
    figure = plot(await compare([recorded(tmp_path / "run", samples)]), "b_total")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 8

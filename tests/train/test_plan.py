"""How a problem's rows are spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import Plan, mixed


@pytest.mark.parametrize(
    ("plan", "rows", "workspaces"),
    [
        (Plan("direct", 24), {"direct": 24}, 0),
        (Plan("rounds", 25, 4), {"draft": 20, "refine": 5}, 5),
        (Plan("workspace", 24, 4), {"draft": 4, "refine": 20}, 1),
    ],
)
def test_every_row_has_a_role(plan, rows, workspaces):
    """The rows of a problem are K, whatever the plan."""
    assert (plan.rows, plan.num_workspaces) == (rows, workspaces)
    assert sum(plan.rows.values()) == plan.num_rows


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("direct", 1), "1 rows of a problem"),
        (("direct", 8, 2), "makes no drafts"),
        (("rounds", 8), "needs 1 draft or more"),
        (("rounds", 24, 4), "24 is not that times 2 or more; use 10"),
        (("rounds", 5, 4), "5 is not that times 2 or more; use 10"),
        (("workspace", 5, 4), "leaves 1 of 5 rows .* use 6 rows or more"),
    ],
)
def test_numbers_that_leave_nothing_to_compare_are_refused(fields, sentence):
    """The sentence says what would do."""
    with pytest.raises(ConfigError, match=sentence):
        Plan(*fields)


@given(num=st.integers(0, 60), fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_share_of_operator_problems_is_exact(num, fraction, seed):
    """Not merely expected: every batch is half and half, up to one problem."""
    direct, operator = Plan("direct", 10), Plan("rounds", 10, 4)
    plans = mixed(direct, operator, num, fraction, seed)
    assert len(plans) == num
    assert abs(plans.count(operator) - fraction * num) <= 0.5 + 1e-9
    assert plans == mixed(direct, operator, num, fraction, seed)


def test_plans_of_different_lengths_do_not_mix():
    """A trainer's batch is rectangular."""
    with pytest.raises(ConfigError, match="has 8 rows and plan 'rounds' 10"):
        mixed(Plan("direct", 8), Plan("rounds", 10, 4), 2, 0.5, 0)
    with pytest.raises(ConfigError, match=r"fraction 1\.5"):
        mixed(Plan("direct", 10), Plan("rounds", 10, 4), 2, 1.5, 0)

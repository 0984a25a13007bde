"""One sample: what its record says of workspaces, and drafts that arms share."""

import asyncio

import pytest

from pdr_graph.errors import CallError, ConfigError
from pdr_graph.eval.arms import make_arms, parse_arm
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.sample import SharingClient, holds_any, sharing_arms
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.types import Workspace

DRAW = Sampling(max_tokens=64, temperature=1.0, top_p=1.0, seed=3)


async def test_a_call_is_made_once_and_charged_to_each(mock, connect):
    """Equal calls wait for its reply; another seed is another call."""
    client = SharingClient(connect())
    bills = [Spent() for _ in range(4)]
    replies = await asyncio.gather(*(client.ask("What?", DRAW, bill) for bill in bills))
    assert mock.stats()["calls"] == 1
    assert len({reply.solution for reply in replies}) == 1
    assert {(bill.requests, bill.total, bill.nominal) for bill in bills} == {
        (1, bills[0].total, 64)
    }
    other = await client.ask("What?", Sampling(64, 1.0, 1.0, 4), Spent())
    assert (mock.stats()["calls"], other == replies[0]) == (2, False)


async def test_a_failure_is_charged_to_who_met_it_and_the_next_tries_again(mock, connect):
    """A shared failure would count one loss several times."""
    client = SharingClient(connect())
    mock.configure(status=[{"status": 400}])
    first, second = Spent(), Spent()
    with pytest.raises(CallError):
        await client.ask("What?", DRAW, first)
    mock.configure(status=[])
    await client.ask("What?", DRAW, second)
    assert (first.failed, first.total) == (1, 0)
    assert (second.failed, second.requests) == (0, 1)
    assert second.total > 0


def named(*specs: str):
    """Make arms."""
    return make_arms([parse_arm(each) for each in specs], {}, Budgets())


def test_arms_share_where_their_drafts_are_the_same_calls():
    """Widths and distillers may differ; the settings of a call may not."""
    arms = named("pdr", "rk=pdr@widths=4;distiller=random_k", "long_cot", "pdr@max_tokens=9")
    assert sharing_arms(arms) == {"pdr", "rk"}


def test_arms_of_which_no_two_share_are_refused():
    """The option would have no effect."""
    with pytest.raises(ConfigError, match="no two arms with drafts are alike in max_tokens"):
        sharing_arms(named("pdr", "long_cot", "majority@temperature=0.5"))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("x = 42.", True),
        ("**42** (3 of 4)", True),
        ("142", False),
        ("4.42", False),
        ("42.5", False),
        ("4,420 and 42,000", False),
        ("nothing", False),
    ],
)
def test_a_workspace_holds_an_answer_that_stands_alone(text, holds):
    """It must be a number of its own, not part of another."""
    assert holds_any(Workspace(text=text, tokens=9), {"42"}) == holds

"""Names in Redis keep apart whatever they are made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pdr_checkpoints import keys
from pdr_checkpoints.keys import Keyspace

# Surrogates included: a JSON body may hold a lone one.
NAMES = st.text(alphabet=st.characters(), max_size=8) | st.sampled_from(["", "\0", "\1", "\1\2"])


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_names_come_back(names: list[str]) -> None:
    """Splitting gives what was joined."""
    assert keys.split(keys.join(keys.RECORD, *names)) == names


@given(one=st.lists(NAMES, min_size=1, max_size=3), two=st.lists(NAMES, min_size=1, max_size=3))
def test_a_range_holds_what_begins_with_its_names(one: list[str], two: list[str]) -> None:
    """A byte range holds exactly the longer names that begin with the given ones."""
    low, high = keys.below(keys.WRITE, *one)
    name = keys.join(keys.WRITE, *two)
    assert (low[1:] <= name < high[1:]) == (len(two) > len(one) and two[: len(one)] == one)


@given(one=NAMES, two=NAMES)
def test_threads_share_no_key(one: str, two: str) -> None:
    """Two ids have the same keys only if they are the same, and one brace-tag each."""
    keyspace = Keyspace("p")
    assert (keyspace.thread(one) == keyspace.thread(two)) == (one == two)
    assert keyspace.thread(one).data.count("{") == 1
    assert keyspace.thread(one).data.split("{")[1].split("}")[0] != ""

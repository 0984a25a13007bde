"""One checker, and so one worker process, for the tests that need no other limits."""

from collections.abc import Iterator

import pytest

from pdr_graph.answers import Checker, Limits, WorkerPool


@pytest.fixture(scope="session")
def checker() -> Iterator[Checker]:
    """Start a worker once; the deadline is generous, since machines that test are busy."""
    checker = Checker(WorkerPool(Limits(num_workers=1, deadline_s=20)))
    yield checker
    checker.close()

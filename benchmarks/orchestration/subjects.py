"""What is measured, by name; each is imported only in the process that measures it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

from benchmarks.orchestration.load import Job, Load

Opened = AbstractAsyncContextManager[Any] | AbstractContextManager[Any]
"""Any: a function that does the run of a number, asynchronous or not."""

PEERS: Mapping[str, tuple[str, str]] = {
    "its-hub self-consistency": ("its_hub", "self_consistency"),
    "its-hub best-of-n": ("its_hub", "bon"),
    "optillm self-consistency": ("optillm", "self_consistency"),
    "optillm best-of-n": ("optillm", "bon"),
    "optillm moa": ("optillm", "moa"),
}

SUBJECTS: Mapping[str, str] = {
    "bare": "the calls alone, on httpx2",
    "pdr-graph": "pdr, stored in Valkey",
    "pdr-graph in memory": "pdr, stored nowhere",
    "pdr-graph majority": "majority of 16, stored in Valkey",
    "its-hub self-consistency": "majority of 16",
    "its-hub best-of-n": "best of 16 by a judge",
    "optillm self-consistency": "majority of 5, one after another",
    "optillm best-of-n": "best of 3",
    "optillm moa": "3 candidates in one request, critique, answer",
}
"""Every subject, and what one run of it does."""


def open_subject(load: Load, job: Job) -> Opened:
    """Import and open the subject of a load."""
    if load.subject in PEERS:
        from benchmarks.orchestration import peers

        package, method = PEERS[load.subject]
        opened: Opened = getattr(peers, package)(load, job, method=method)
        return opened
    if load.subject == "bare":
        from benchmarks.orchestration.bare import bare

        return bare(load, job)
    from benchmarks.orchestration.ours import ours

    kinds = {
        "pdr-graph": partial(ours, stored=True, name="pdr"),
        "pdr-graph in memory": partial(ours, stored=False, name="pdr"),
        "pdr-graph majority": partial(ours, stored=True, name="majority"),
    }
    return kinds[load.subject](load, job)

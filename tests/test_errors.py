"""The tree of errors, as its docstring draws it, and which of them are worth another try."""

import ast
import pickle
import re
from pathlib import Path

import pytest
from httpx2 import ReadError
from langgraph.errors import GraphDrained, GraphInterrupt
from langgraph.types import RetryPolicy
from pdr_checkpoints import StoreUnreachableError

import pdr_graph
from pdr_graph import errors
from pdr_graph.errors import (
    CallError,
    CallLostError,
    CheckpointError,
    ConfigChangedError,
    ConfigError,
    ContextWindowError,
    DrainedError,
    EndpointAwayError,
    EndpointError,
    QuorumError,
    QuorumLostError,
    ThreadExistsError,
    UnknownThreadError,
    WorkspaceOverflowError,
    retry_on,
)
from pdr_graph.llm.client import call_error
from tests.embed.trials import RefusedError

PACKAGE = Path(pdr_graph.__file__).parent


def drawn() -> dict[str, tuple[str, str, str]]:
    """Return each error's parent, standard type and file, read off the docstring."""
    # A leaf's text may go on in the next line, beneath its branch.
    tree = re.sub(r"\n[ │]+(?![ │├└])", " ", errors.__doc__ or "")
    found, above = {}, ["PDRError"]
    for line in tree.splitlines():
        if leaf := re.match(r" +((?:│   )*)[├└]── (\w+)(?: \((\w+)\))?", line):
            depth, name = len(leaf[1]) // 4, leaf[2]
            place = re.search(r"\((\S+\.py)\)$", line)
            found[name] = above[depth], leaf[3] or "", place[1] if place else "errors.py"
            above[depth + 1 :] = [name]
    return found


def written() -> dict[str, tuple[str, str, str]]:
    """Return the same of every public error class, read off the code."""
    classes = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = [each.id for each in node.bases if isinstance(each, ast.Name)]
                classes[node.name] = bases, str(file.relative_to(PACKAGE))
    ours = {"PDRError"}
    while more := {n for n, (bases, _) in classes.items() if ours & set(bases)} - ours:
        ours |= more
    return {
        name: (bases[0], "".join(bases[1:]), place)
        for name, (bases, place) in classes.items()
        if name in ours and name != "PDRError" and not name.startswith("_")
    }


def test_the_tree_is_drawn_whole():
    """Every public error has its line, with its parent, its standard type and its file."""
    assert drawn() == written()


TRANSIENT = [
    CallLostError("HTTP 429: busy", status=429),
    QuorumLostError(1, 0, 1, 2, "2 x HTTP 503"),
    EndpointAwayError("no model endpoint answers"),
    CheckpointError("the store is away"),
    StoreUnreachableError("127.0.0.1:6379", 5.0, "refused"),
]
LASTING = [
    CallError("HTTP 401: wrong key", status=401),
    ContextWindowError("HTTP 400: too long", status=400),
    QuorumError(1, 0, 1, 2, "2 x HTTP 401"),
    ConfigError("max_tokens 3 cannot pay"),
    ConfigChangedError("t", ["model"]),
    WorkspaceOverflowError(3, 2),
    DrainedError("t"),
    UnknownThreadError("t"),
    ThreadExistsError("t"),
]


@pytest.mark.parametrize("error", TRANSIENT)
def test_what_may_pass_is_retried_by_langgraphs_default(error):
    """And by the function that says so."""
    assert RetryPolicy().retry_on(error)
    assert retry_on(error)


@pytest.mark.parametrize("error", LASTING)
def test_what_would_only_fail_again_is_not_retried(error):
    """Neither by default nor by the function."""
    assert not RetryPolicy().retry_on(error)
    assert not retry_on(error)


@pytest.mark.parametrize(
    "signal", [GraphInterrupt(), GraphDrained("shutdown"), KeyboardInterrupt()]
)
def test_a_signal_is_no_error(signal):
    """An interrupt that were retried would ask its person again."""
    assert not retry_on(signal)


def test_a_wrong_key_is_not_retried_by_the_function():
    """Though it is a connection's error."""
    assert not retry_on(EndpointError("the endpoint refuses the API key"))


def test_what_users_catch_stays_what_it_was():
    """A class that may pass is the one that it was made of."""
    lost, quorum = CallLostError("gone", status=503), QuorumLostError(2, 1, 3, 4, "why")
    assert isinstance(lost, CallError)
    assert isinstance(lost, RuntimeError)
    assert (str(lost), lost.status) == ("gone", 503)
    assert isinstance(quorum, QuorumError)
    assert isinstance(quorum, RuntimeError)
    assert (quorum.round_number, quorum.needed) == (2, 3)
    copied = pickle.loads(pickle.dumps(lost))
    assert (type(copied), str(copied), copied.status) == (CallLostError, "gone", 503)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, CallLostError) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        *((status, CallError) for status in (400, 401, 403, 404, 413, 422)),
    ],
)
def test_a_call_is_lost_where_its_status_may_change(status, kind):
    """As the client's own retries have it."""
    assert type(call_error(RefusedError(status))) is kind


def test_a_call_without_an_answer_is_lost():
    """Refused, cut off or too slow; a defect of a provider's code is not."""
    for error in (ConnectionRefusedError("no"), TimeoutError("slow"), ReadError("cut")):
        assert type(call_error(error)) is CallLostError
    assert type(call_error(KeyError("choices"))) is CallError

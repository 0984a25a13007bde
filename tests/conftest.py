"""What most tests share: a mock endpoint in its own process, and a client for it."""

import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import settings

from pdr_graph import ChatVLLM, ModelClient
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import ServerCounter
from tests.mock_endpoint import MockEndpoint

MODEL = "mock-model"

# How long an example takes says more of the machine, and of what else it runs, than of the law.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# A shell's background job ignores Ctrl-C, and so would every command that the tests start in one.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "tests/test_study_evaluation.py",
    "tests/test_study_adaptive.py",
    "tests/test_notebook.py",
    "tests/test_walkthrough.py",
    "tests/test_killed.py",
    "tests/test_presets_on_model.py",
    "tests/test_bench_checkpoints.py",
    "tests/test_docs.py",
    "tests/test_docker.py",
    "tests/embed/",
    "tests/eval/",
    "tests/cli/",
    "tests/servers/",
)
"""Files and folders that take longest. They are begun first, so that all processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""

    def place(item: pytest.Item) -> int:
        found = (at for at, name in enumerate(LONGEST) if item.nodeid.startswith(name))
        return next(found, len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def _mock_process() -> Iterator[MockEndpoint]:
    with MockEndpoint() as mock:
        yield mock


@pytest.fixture
def mock(_mock_process: MockEndpoint) -> Iterator[MockEndpoint]:
    """An endpoint that counts what it served, with its rules at their defaults."""
    _mock_process.reset()
    yield _mock_process
    _mock_process.reset()


@pytest.fixture
async def connect(mock: MockEndpoint) -> AsyncIterator[Callable[..., ModelClient]]:
    """Makes clients of the mock endpoint; their connections are closed after the test."""
    opened = []

    def make(**options) -> ModelClient:
        fields = options.pop("model_fields", {})
        model = ChatVLLM(base_url=mock.url, model=MODEL, **fields)
        http = make_http_client()
        opened.append((model, http))
        counter = ServerCounter(http, mock.url, MODEL, "EMPTY")
        options.setdefault("retry", Retry(attempts=3, backoff_s=0.01, max_wait_s=0.1))
        return ModelClient(model, counter=counter, **options)

    yield make
    for model, http in opened:
        await model.aclose()
        await http.aclose()

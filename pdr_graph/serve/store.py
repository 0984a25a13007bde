"""Where runs are kept, as whoever starts the server hands it in."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from langgraph.checkpoint.base import BaseCheckpointSaver


@asynccontextmanager
async def unguarded(thread_id: str) -> AsyncIterator[None]:
    """Guard nothing: for stores that no other process shares."""
    yield


@dataclass(frozen=True, slots=True)
class Store:
    """A checkpoint store and the right to run a thread of it."""

    saver: BaseCheckpointSaver[str]
    alone: Callable[[str], AbstractAsyncContextManager[None]] = unguarded
    """Keeps other processes from running a thread; raises `RefusalError` where one does."""
    keeps_unnamed: bool = True
    """Whether runs are kept whose client has not named them; a store in memory would only grow."""

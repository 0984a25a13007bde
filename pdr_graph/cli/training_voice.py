"""Of several processes the main one tells what ended a run, the others only what it cannot know."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from pdr_graph.cli.ending import RunEndedError
from pdr_graph.cli.failure import explain
from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.train.launch import Launch, RankError

PATIENCE_S = 10.0
"""What ends the main process as well is told by it, and then the launcher ends this one."""


@contextmanager
def one_voice(launch: Launch, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Have errors of a block told by one process.

    Args:
        launch: Which process this is.
        patience_s: Seconds in which a launcher has time to end this process for the main one's
            end, before it speaks.

    Raises:
        ConfigError, PDRError, RunEndedError: what went wrong here, with this process named.
        SystemExit: the main process knows.
    """
    if launch.is_main:
        yield
        return
    try:
        yield
    except RunEndedError as ended:
        if ended.cause is None:
            raise SystemExit(ended.exit_code) from None
        named = _named(ended.cause, launch, patience_s)
        raise RunEndedError(ended.way_on, None, named) from ended.cause
    # Whatever it is, the top of the command line explains it.
    except Exception as error:
        raise _named(error, launch, patience_s) from error


def _named(error: Exception, launch: Launch, patience_s: float) -> PDRError:
    failure = explain(error)
    if isinstance(error, RankError):
        raise SystemExit(failure.exit_code)
    sleep(patience_s)
    sentence = f"rank {launch.rank}: {failure.sentence}"
    return ConfigError(sentence) if isinstance(error, ConfigError) else PDRError(sentence)

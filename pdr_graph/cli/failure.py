"""The end of a command that could not do what it was asked: one sentence and an exit code.

A bad request ends with 2, Ctrl-C with 130, a signal with 128 and its number, all else with 1.
"""

import errno
import os
import sys
import time
import traceback
from dataclasses import dataclass

import typer

from pdr_graph.cli.output import Output
from pdr_graph.errors import redacted

BAD_REQUEST, FAILED, INTERRUPTED = 2, 1, 130
PATIENCE_S = 10.0
"""Seconds to wait for a launcher to stop this process, once the main one has said why both end."""


class RunEndedError(Exception):
    """The run was stopped by a signal, or failed after it had begun."""

    def __init__(self, way_on: str, exit_code: int, cause: Exception | None = None) -> None:
        self.way_on = way_on
        """The line that says how to continue."""
        self.exit_code = exit_code
        """Exit code after a signal; otherwise the exit code of `cause` counts."""
        self.cause = cause
        """The error that the run failed with; None after a signal."""
        super().__init__(way_on)


class RankEndedError(Exception):
    """A process of a training run that is not the main one has ended."""

    def __init__(self, rank: int, cause: Exception) -> None:
        self.rank = rank
        self.cause = cause
        """What ended it; may be a `RunEndedError`."""
        super().__init__(str(cause))


@dataclass(frozen=True, slots=True)
class Failure:
    """What to say, and how to exit."""

    sentence: str
    exit_code: int


def end_of(
    error: BaseException, output: Output, *, debug: bool = False, patience_s: float = PATIENCE_S
) -> int:
    """Say what ended a command, and return its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, RankEndedError):
        code = _told_by_main(error.cause)
        if code is None:
            time.sleep(patience_s)
            code = _say(error.cause, output, f"rank {error.rank}: ", debug=debug)
        return code
    return _say(error, output, debug=debug)


def _say(error: BaseException, output: Output, speaker: str = "", *, debug: bool) -> int:
    if isinstance(error, RunEndedError):
        code = error.exit_code
        if error.cause is not None:
            code = _say(error.cause, output, speaker, debug=debug)
        output.tell(error.way_on, to_copy=True)
        return code
    failure = explain(error)
    if debug:
        sys.stderr.write(redacted("".join(traceback.format_exception(error))))
    output.tell(f"error: {speaker}{failure.sentence}", "red")
    return failure.exit_code


def _told_by_main(error: Exception) -> int | None:
    """Return the exit code of a rank if the main process says why both end; else None."""
    from pdr_graph.train.preparation import RankError

    if isinstance(error, RunEndedError) and error.cause is None:
        return error.exit_code
    cause = error.cause if isinstance(error, RunEndedError) else error
    return explain(cause).exit_code if isinstance(cause, RankError) else None


def explain(error: BaseException) -> Failure:
    """Find the sentence for an exception, without keys and passwords."""
    failure = _explained(error)
    return Failure(redacted(failure.sentence), failure.exit_code)


def _explained(error: BaseException) -> Failure:
    # Late: the help must not wait for these.
    from pdr_checkpoints.errors import SaverError, StoreConfigError
    from redis.exceptions import RedisError

    from pdr_graph.errors import ConfigError, PDRError

    if isinstance(error, typer.TyperException):
        return Failure(_of_usage(error), error.exit_code)
    if isinstance(error, (ConfigError, StoreConfigError)):
        return Failure(str(error), BAD_REQUEST)
    if isinstance(error, (PDRError, SaverError)):
        return Failure(str(error), FAILED)
    if isinstance(error, RedisError):
        return Failure(f"Redis refused a command: {error}; `pdr-graph doctor` checks it", FAILED)
    if isinstance(error, OSError):
        return Failure(_of_system(error), FAILED)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(f"unexpected {what}; --debug shows where", FAILED)


def _of_usage(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "pdr-graph")
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{message}{' Run' if message.endswith('?') else '; run'} `{command} --help`"


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f" {os.fspath(error.filename)!r}" if error.filename is not None else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where and ' at'}{where}; free some space and run again"
    return f"{reason}{where and ':'}{where}"

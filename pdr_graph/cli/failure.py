"""What went wrong as one sentence and an exit code: 2 for a bad request, 1 for all else.

A run that ended before it had a result.
"""

import errno
import os
from dataclasses import dataclass

import typer

BAD_REQUEST, FAILED, INTERRUPTED = 2, 1, 130


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a command that could not do what it was asked."""

    sentence: str
    exit_code: int


def explain(error: BaseException) -> Failure:
    """Find the sentence for an exception."""
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
    return f"{message[:1].lower()}{message[1:]}; `{command} --help` shows what there is"


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f" {os.fspath(error.filename)!r}" if error.filename is not None else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where and ' at'}{where}; free some space and run again"
    return f"{reason}{where and ':'}{where}"


class RunEndedError(Exception):
    """The run was stopped, or failed after it had begun."""

    def __init__(self, way_on: str, exit_code: int | None, cause: Exception | None) -> None:
        self.way_on = way_on
        """The line that says how to go on."""
        self.exit_code = exit_code
        """Set where a signal ended the run; None where `cause` did."""
        self.cause = cause
        super().__init__(way_on)

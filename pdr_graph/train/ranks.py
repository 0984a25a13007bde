"""How the ranks of a run meet, and how a failure on one ends all.

Without this, the others would wait in their next collective operation for a rank that never comes.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from pdr_graph.errors import ConfigError, PDRError, install_command
from pdr_graph.train.preparation import RankError

try:
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.utils import gather_object
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=4)
"""Longest wait of one rank for another. The libraries' ten minutes are too short: rollouts may take
that much longer on one rank than on another. The launcher notices when a process ends."""


@dataclass(frozen=True, slots=True)
class _Failure:
    rank: int
    sentence: str
    trace: str
    """Traceback in the process where it happened, for `--debug`."""


def meet(*, cpu: bool) -> None:
    """Wait until every rank is here; the first call connects them.

    Args:
        cpu: Whether they leave accelerators alone.
    """
    PartialState(cpu=cpu, timeout=LONGEST_WAIT).wait_for_everyone()


def together(work: Callable[[], T], accelerator: Accelerator) -> T:
    """Do some work on every rank, and return this rank's result once all are done.

    If the work fails, the main rank raises its own error, or else the first of the others' as a
    `RankError`. All other ranks raise a `RankError`, so that the error is reported once.

    Args:
        work: If it has collective operations and fails before one, the other ranks stay in that
            operation.
        accelerator: Of the trainer.

    Raises:
        RankError: the work failed on another rank, or on this one and it is not the main one.
    """
    if accelerator.num_processes == 1:
        return work()
    rank = accelerator.process_index
    done: list[T] = []
    own: Exception | None = None
    try:
        done.append(work())
    # Any error must reach the other ranks, and it is raised again.
    except Exception as error:  # noqa: BLE001
        own = error
    told: list[_Failure | None] = gather_object([None if own is None else _failure(rank, own)])
    failures = [each for each in told if each is not None]
    if not failures:
        return done[0]
    if own is not None and accelerator.is_main_process:
        raise own
    first = failures[0]
    failed = RankError(f"rank {first.rank}: {first.sentence}")
    failed.add_note(first.trace)
    raise failed from own


def is_of_a_lost_rank(error: Exception) -> bool:
    """Return whether an error is a collective operation's whose other side is gone."""
    # Gloo has no type of its own for it.
    return isinstance(error, torch.distributed.DistError) or "/gloo/transport/" in str(error)


def _failure(rank: int, error: Exception) -> _Failure:
    named = isinstance(error, PDRError)
    sentence = str(error) if named else f"unexpected {type(error).__name__}: {error}"
    return _Failure(rank, sentence, "".join(traceback.format_exception(error)))

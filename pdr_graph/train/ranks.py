"""How the ranks of a run meet, and what becomes of all where one fails at what it does alone.

Without it the others would wait in their next collective operation for one that never comes.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.train.launch import RankError

try:
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.utils import gather_object
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=4)
"""Of one rank for another. NCCL's own ten minutes are less than the rollouts of a step may take
longer on one than on another; that a process has ended is for the launcher to see."""


@dataclass(frozen=True, slots=True)
class _Failure:
    rank: int
    sentence: str
    trace: str
    """Of the process that it happened in, for `--debug`."""


def meet(*, cpu: bool) -> None:
    """Wait until every rank is here; the first time, make the connections between them.

    Args:
        cpu: Whether they leave accelerators alone.
    """
    PartialState(cpu=cpu, timeout=LONGEST_WAIT).wait_for_everyone()


def together(work: Callable[[], T], accelerator: Accelerator) -> T:
    """Do something on every rank, and return what it gives on this one, once all are done.

    Where it fails, the main rank raises its own error, or else the first of the others' as a
    `RankError`; all ranks but the main one raise a `RankError`, for that one to be told once.

    Args:
        work: What is done; if it fails ahead of a collective operation of its own, the others are
            left in that one.
        accelerator: Of the trainer.

    Raises:
        RankError: it failed on another rank, or on this one and it is not the main one.
    """
    if accelerator.num_processes == 1:
        return work()
    rank = accelerator.process_index
    done: list[T] = []
    own: Exception | None = None
    try:
        done.append(work())
    # Whatever it is: the others must hear of it, and it is raised again.
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
    """Tell whether an error is a collective operation's whose other side is gone."""
    # Gloo says it by no type of its own.
    return isinstance(error, torch.distributed.DistError) or "/gloo/transport/" in str(error)


def _failure(rank: int, error: Exception) -> _Failure:
    named = isinstance(error, PDRError)
    sentence = str(error) if named else f"unexpected {type(error).__name__}: {error}"
    return _Failure(rank, sentence, "".join(traceback.format_exception(error)))

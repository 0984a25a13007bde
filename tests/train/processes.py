"""Processes that train, which tests may kill.

They are forked from one that has imported what training takes, once for all of them: that is most
of the time that such a process lives.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.train.given_rows", "tests.train.drawn_rows"])


def start(target: Callable[..., None], *args: object, **environment: str) -> BaseProcess:
    """Run a function of a module in a process of its own, with further environment."""
    process = _FORKS.Process(target=_run, args=(target, args, environment))
    process.start()
    return process


def start_ranks(
    number: int, target: Callable[..., None], *args: object, **environment: str
) -> list[BaseProcess]:
    """Run a function on each of several ranks, which meet on the loopback interface."""
    meeting = {
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        start(target, *args, RANK=str(rank), LOCAL_RANK=str(rank), **meeting, **environment)
        for rank in range(number)
    ]


def exit_code(process: BaseProcess, *, within_s: float = 300.0) -> int | None:
    """Wait for a process to end, and return its exit code; None if it has not."""
    process.join(within_s)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def _run(
    target: Callable[..., None], args: tuple[object, ...], environment: dict[str, str]
) -> None:
    import torch

    # Several threads in each would only be in one another's way, and sum in another order.
    torch.set_num_threads(1)
    os.environ.update(environment)
    target(*args)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

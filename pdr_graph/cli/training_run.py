"""Carries a training run out, or goes on with it: signals, the folder's claim, the way on."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from pdr_graph.cli.ending import RunEndedError
from pdr_graph.cli.output import Output
from pdr_graph.cli.training_board import TrainingBoard
from pdr_graph.cli.training_stop import Stop
from pdr_graph.cli.training_summary import show_summary
from pdr_graph.errors import ConfigError
from pdr_graph.train.launch import Launch, LostRankError
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.run_folder import TrainFolder, header_of, refuse_changes

GOES_ON = "the same command goes on"


def carry_out(prepared: Prepared, path: Path, launch: Launch, output: Output) -> None:
    """Train until all is done, or until told to stop.

    Raises:
        ConfigError: the folder holds another run, or another process works in it.
        RunEndedError: the run was stopped, or failed once it had begun.
    """
    folder = TrainFolder(path)
    if not launch.is_main:
        output = Output(json=output.json, quiet=True)
    header = header_of(prepared.settings, None if prepared.rl is None else prepared.rl.problems)
    refuse_changes(path, header)
    if folder.finished:
        output.say(f"{path} is done; another --out begins anew")
    else:
        _train(prepared, folder, folder.claimed(header), launch, output)
    if launch.is_main:
        show_summary(folder, output)


def _train(
    prepared: Prepared,
    folder: TrainFolder,
    claim: AbstractContextManager[None],
    launch: Launch,
    output: Output,
) -> None:
    board = TrainingBoard(output)
    tell = output.tell if launch.is_main else _nothing
    stop = Stop(tell, leave=lambda number: _leave(number, board, tell))
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.enter_context(board.shown())
        board.phase("loading torch, transformers and trl")
        from pdr_graph.train.session import Session

        if launch.is_main:
            stack.enter_context(claim)
            if folder.finished:
                raise ConfigError(
                    f"another process has done the run in {str(folder.path)!r} meanwhile; the same "
                    "command shows what came of it"
                )
        session = Session(prepared, folder, board if launch.is_main else None, stop.asked)
        stop.starting = lambda: not session.updating
        try:
            finished = session.run()
        # Whatever ended the run, the top of the command line says it; here we add the way on.
        except Exception as error:
            stop.deaf = launch.is_main and launch.world_size > 1
            if isinstance(error, ConfigError) or not session.begun:
                raise
            raise RunEndedError(_way_on(board), None, _named(error)) from error
    if not finished:
        raise RunEndedError(_way_on(board), 128 + (stop.received or signal.SIGINT), None)


def _named(error: Exception) -> Exception:
    from pdr_graph.train.together import is_of_a_lost_rank

    return LostRankError() if is_of_a_lost_rank(error) else error


def _leave(number: int, board: TrainingBoard, tell: Callable[[str], None]) -> None:
    """End this process at once, whatever its main thread does."""
    board.hide()
    tell(_way_on(board))
    os._exit(128 + number)


def _nothing(line: str) -> None:
    """Tell nobody: the main process does."""


def _way_on(board: TrainingBoard) -> str:
    if not board.total:
        return f"stopped; {GOES_ON}"
    return f"{board.what}: {board.place} is done; {GOES_ON}"

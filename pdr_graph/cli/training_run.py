"""Carries a training run out, or goes on with it: signals, the folder's claim, the way on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType

from pdr_graph.cli.ending import RunEndedError
from pdr_graph.cli.output import Output
from pdr_graph.cli.signals import SIGNALS
from pdr_graph.cli.training_board import TrainingBoard
from pdr_graph.cli.training_summary import show_summary
from pdr_graph.errors import ConfigError
from pdr_graph.train.launch import Launch
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.run_folder import TrainFolder, header_of, refuse_changes

SAME_S = 1.0
"""A launcher passes on what the terminal has sent to all: within this it is one signal."""
GOES_ON = "the same command goes on"


@dataclass(slots=True)
class Stop:
    """Listens for the signals that end a run: the first lets an update end, the second kills."""

    say: Callable[[str], None]
    received: int | None = None
    """The first signal's number; None as long as there was none."""
    _at: float = 0.0
    _before: dict[int, object] = field(default_factory=dict)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals for as long as the block lasts."""
        self._before = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in self._before.items():
                signal.signal(each, handler)  # type: ignore[arg-type]  # what it was before

    def asked(self) -> bool:
        """Return whether to stop."""
        return self.received is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, monotonic()
            self.say(
                "stopping: the update under way is finished and a checkpoint written; a second "
                "signal stops at once, and costs what came after the last checkpoint"
            )
        elif monotonic() - self._at > SAME_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


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
    stop = Stop(output.tell if launch.is_main else lambda line: None)
    board = TrainingBoard(output)
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        stack.enter_context(board.shown())
        board.phase("loading torch, transformers and trl")
        from pdr_graph.train.session import Session

        if launch.is_main:
            stack.enter_context(claim)
        session = Session(prepared, folder, board if launch.is_main else None, stop.asked)
        try:
            finished = session.run()
        except ConfigError:
            raise
        # Whatever ended the run, the top of the command line says it; here we add the way on.
        except Exception as error:
            if not session.begun:
                raise
            raise RunEndedError(_way_on(board), None, error) from error
    if not finished:
        raise RunEndedError(_way_on(board), 128 + (stop.received or signal.SIGINT), None)


def _way_on(board: TrainingBoard) -> str:
    if not board.total:
        return f"stopped; {GOES_ON}"
    return f"{board.what}: {board.place} is done; {GOES_ON}"

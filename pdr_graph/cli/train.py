"""`pdr-graph train`: checks the settings, then trains, or estimates what that would need.

Carries a training run out, or goes on with it: signals, the folder's claim, the way on.

The signals that end a training run: at once while it starts, after an update once it trains.

Of several processes the main one tells what ended a run, the others only what it cannot know.

Shows what a training run needs: `pdr-graph train --dry-run`.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from types import FrameType

from rich.table import Table
from rich.text import Text

from pdr_graph.cli.failure import RunEndedError, explain
from pdr_graph.cli.output import Output, plain_table
from pdr_graph.cli.signals import SIGNALS
from pdr_graph.cli.train_board import TrainingBoard, show_summary
from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.train.estimate import GIB, Memory, Tokens, TrainEstimate
from pdr_graph.train.launch import Launch, LostRankError, RankError, check_launch, read_launch
from pdr_graph.train.preparation import PlannedRollouts, Prepared, prepare
from pdr_graph.train.run_folder import TrainFolder, header_of, refuse_changes
from pdr_graph.train.settings import TrainSettings, load_train_settings

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
        named = _named_rank(ended.cause, launch, patience_s)
        raise RunEndedError(ended.way_on, None, named) from ended.cause
    # Whatever it is, the top of the command line explains it.
    except Exception as error:
        raise _named_rank(error, launch, patience_s) from error


def _named_rank(error: Exception, launch: Launch, patience_s: float) -> PDRError:
    failure = explain(error)
    if isinstance(error, RankError):
        raise SystemExit(failure.exit_code)
    sleep(patience_s)
    sentence = f"rank {launch.rank}: {failure.sentence}"
    return ConfigError(sentence) if isinstance(error, ConfigError) else PDRError(sentence)


FREE = 0.9
"""Share of a device that an estimate may fill; the rest is for what it does not count."""


def show_estimate(prepared: Prepared, output: Output) -> None:
    """Show memory and tokens, or that there is nothing to estimate."""
    rl = prepared.rl
    if output.json:
        facts = {} if rl is None else rl.estimate.to_json()
        facts |= {} if rl is None else {"fits": _fits(prepared.settings, rl.estimate)}
        output.show_json({"settings": prepared.settings.model_dump(mode="json"), **facts})
        return
    if rl is None:
        output.show(Text("The settings are possible; a warm start alone is not estimated."))
        return
    output.show(
        Text(_summary(prepared, rl)),
        Text(""),
        _memory_table(rl.estimate.memory),
        Text(_verdict(prepared.settings, rl.estimate), "bold"),
        Text(""),
        _token_table(rl.estimate.tokens),
        Text("Every call as long as it may be; nothing was loaded, and nothing written.", "dim"),
    )


def _summary(prepared: Prepared, rl: PlannedRollouts) -> str:
    settings, estimate, rollouts = prepared.settings, rl.estimate, prepared.settings.rollouts
    trained = f"{estimate.trained_parameters:,} of adapters"
    if settings.lora is None:
        trained = "all of them"
    operator = int(rollouts.operator_fraction * rollouts.problems_per_step + 0.5)
    plan = settings.operator_plan
    roles = ", ".join(f"{number} {role}" for role, number in plan.rows.items())
    by_plan = f", {operator} by plan {plan.kind} ({roles} each)" if operator else ""
    counted = "counted by its tokenizer" if rl.size.exact else "estimated"
    return "\n".join(
        [
            f"{settings.model}: {estimate.parameters:,} weights, trained are {trained}",
            f"a step: {rollouts.problems_per_step} problems of {rollouts.rows_per_problem} rows; "
            f"{rollouts.problems_per_step - operator} by long CoT{by_plan}",
            f"rows of up to {estimate.row_tokens:,} tokens; prompts {counted}",
        ]
    )


def _memory_table(memory: Memory) -> Table:
    table = plain_table()
    table.add_column("memory of one device")
    table.add_column("GiB", justify="right")
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations": memory.activations,
        "head": memory.head,
        "KV cache": memory.kv_cache,
        "weights that draw": memory.drawing_weights,
        "taken by the engine": memory.reserved,
    }
    for name, size in rows.items():
        if size:
            table.add_row(name, _gib(size))
    table.add_row(Text("at the peak", "bold"), Text(_gib(memory.peak), "bold"))
    return table


def _token_table(tokens: Tokens) -> Table:
    table = plain_table()
    table.add_column("tokens at most")
    table.add_column("a step", justify="right")
    table.add_column(f"{tokens.steps:,} steps", justify="right")
    for name, number in (
        ("drawn", tokens.drawn_per_step),
        ("read as prompts", tokens.read_per_step),
        ("trained on", tokens.trained_per_step),
        ("calls", tokens.calls_per_step),
    ):
        table.add_row(name, f"{number:,}", f"{number * tokens.steps:,}")
    return table


def _fits(settings: TrainSettings, estimate: TrainEstimate) -> bool | None:
    """Tell whether the peak leaves a tenth of a device; None where its size is not said."""
    size = settings.devices.memory_gib
    return None if size is None else estimate.memory.peak <= FREE * size * GIB


def _verdict(settings: TrainSettings, estimate: TrainEstimate) -> str:
    size = settings.devices.memory_gib
    fits = _fits(settings, estimate)
    if fits is None:
        return "set devices.memory_gib to hear whether it fits"
    if fits:
        return f"fits a device of {size:g} GiB"
    return (
        f"does not fit a device of {size:g} GiB with a tenth left free; lower "
        "optimiser.micro_batch_rows or strategy.max_tokens, add [lora], or shard over more devices"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB // 100 else f"{size / GIB:.4f}"


RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What was typed."""

    config: Path | None
    given: Mapping[str, object]
    """Settings by name, before those of the file."""
    overrides: Sequence[str]
    """`table.field=value`, before both."""
    out: Path | None

    @property
    def folder(self) -> Path:
        """Return where the run is."""
        return self.out or RUNS / (self.config.stem if self.config else "train")


def train_command(asked: TrainRequest, *, dry_run: bool, output: Output) -> None:
    """Train, or go on with a run; or say what it would need."""
    launch = read_launch()
    with one_voice(launch):
        if dry_run:
            _estimate(asked, launch, output)
        else:
            _train(asked, launch, output)


def _estimate(asked: TrainRequest, launch: Launch, output: Output) -> None:
    prepared = prepare(_settings(asked))
    if launch.is_main:
        show_estimate(prepared, output)


def _train(asked: TrainRequest, launch: Launch, output: Output) -> None:
    settings = _settings(asked)
    check_launch(launch, settings)
    prepared = prepare(settings)

    carry_out(prepared, asked.folder, launch, output)


def _settings(asked: TrainRequest) -> TrainSettings:
    return load_train_settings(asked.config, asked.given, asked.overrides)


SAME_S = 1.0
"""A launcher passes on what the terminal has sent to all: within this it is one signal."""
_CHUNK = 16


def _always() -> bool:
    return True


@dataclass(slots=True)
class Stop:
    """Listens for the signals that end a run.

    While it starts, nothing can be lost: the first signal ends the process, from a thread of its
    own, since the main one may be in an import, or wait for other processes, and would hear of it
    only afterwards. Later the first lets an update end, and the second kills.
    """

    say: Callable[[str], None]
    leave: Callable[[int], None]
    """Ends the process by a signal's number; called in that thread."""
    starting: Callable[[], bool] = _always
    received: int | None = None
    """The first signal's number; None as long as there was none."""
    deaf: bool = False
    """Whether signals are of no account from the end of the block on: what ended the run is told
    first, whatever a launcher sends whose other processes have ended as well."""
    _at: float = 0.0
    _before: dict[int, object] = field(default_factory=dict)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals for as long as the block lasts."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        watch = Thread(target=self._watch, args=(read,), name="signals", daemon=True)
        self._before = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for each, handler in self._before.items():
                after = signal.SIG_IGN if self.deaf else handler
                signal.signal(each, after)  # type: ignore[arg-type]  # what it was before
            os.close(write)
            watch.join()
            os.close(read)

    def asked(self) -> bool:
        """Return whether to stop."""
        return self.received is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, monotonic()
            if not self.starting():
                self.say(
                    "stopping: the update under way is finished and a checkpoint written; a second "
                    "signal stops at once, and costs what came after the last checkpoint"
                )
        elif monotonic() - self._at > SAME_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _watch(self, read: int) -> None:
        while numbers := os.read(read, _CHUNK):
            for number in numbers:
                if number in SIGNALS and self.starting():
                    self.leave(number)


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
        _run_training(prepared, folder, folder.claimed(header), launch, output)
    if launch.is_main:
        show_summary(folder, output)


def _run_training(
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
        from pdr_graph.train.session import TrainSession

        if launch.is_main:
            stack.enter_context(claim)
            if folder.finished:
                raise ConfigError(
                    f"another process has done the run in {str(folder.path)!r} meanwhile; the same "
                    "command shows what came of it"
                )
        session = TrainSession(prepared, folder, board if launch.is_main else None, stop.asked)
        stop.starting = lambda: not session.updating
        try:
            finished = session.run()
        # Whatever ended the run, the top of the command line says it; here we add the way on.
        except Exception as error:
            stop.deaf = launch.is_main and launch.world_size > 1
            if isinstance(error, ConfigError) or not session.begun:
                raise
            raise RunEndedError(_way_on(board), None, _named_folder(error)) from error
    if not finished:
        raise RunEndedError(_way_on(board), 128 + (stop.received or signal.SIGINT), None)


def _named_folder(error: Exception) -> Exception:
    from pdr_graph.train.ranks import is_of_a_lost_rank

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

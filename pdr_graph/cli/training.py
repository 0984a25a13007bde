"""`pdr-graph train`: checks the settings, then trains, or estimates what that would need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.cli.estimate_table import show_estimate
from pdr_graph.cli.output import Output
from pdr_graph.cli.training_voice import one_voice
from pdr_graph.train.launch import Launch, check_launch, read_launch
from pdr_graph.train.preparation import prepare
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.settings_file import load_train_settings

RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class Asked:
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


def train_command(asked: Asked, *, dry_run: bool, output: Output) -> None:
    """Train, or go on with a run; or say what it would need."""
    launch = read_launch()
    with one_voice(launch):
        if dry_run:
            _estimate(asked, launch, output)
        else:
            _train(asked, launch, output)


def _estimate(asked: Asked, launch: Launch, output: Output) -> None:
    prepared = prepare(_settings(asked))
    if launch.is_main:
        show_estimate(prepared, output)


def _train(asked: Asked, launch: Launch, output: Output) -> None:
    settings = _settings(asked)
    check_launch(launch, settings)
    prepared = prepare(settings)
    from pdr_graph.cli.training_run import carry_out

    carry_out(prepared, asked.folder, launch, output)


def _settings(asked: Asked) -> TrainSettings:
    return load_train_settings(asked.config, asked.given, asked.overrides)

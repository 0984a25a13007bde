"""From what was typed to `up`, `up --status` and `down`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output
from pdr_graph.errors import ConfigError
from pdr_graph.settings import load_settings, read_settings
from pdr_graph.stack.options import UpOptions
from pdr_graph.stack.record import Shelf


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed after `up`."""

    options: Given
    strategy: Given
    places: Given
    further: tuple[str, ...]
    env_file: Path | None
    dry: bool


def up(asked: Asked, *, status: bool, output: Output) -> None:
    """Start what is missing, or show what runs.

    Raises:
        ConfigError: words are left over, or an option has a value that it cannot have.
    """
    settings = load_settings(**asked.places)
    if status:
        from pdr_graph.cli.servers.status import status_command

        status_command(Shelf(settings.data_dir), output)
        return
    if asked.further and not asked.further[0].startswith("-"):
        raise ConfigError(
            f"{asked.further[0]!r} is no option; flags of vLLM's own come after `--`, as in "
            "`pdr-graph up --model NAME -- --tensor-parallel-size 2`"
        )
    options = read_settings(UpOptions, asked.options)
    from pdr_graph.cli.servers.planning import Request, asked_of
    from pdr_graph.cli.servers.up import up_command

    of_model, of_store = asked_of(asked.places, asked.options, asked.strategy, asked.further)
    request = Request(
        settings, options, asked.strategy, of_model, of_store, asked.further, asked.dry
    )
    up_command(request, asked.env_file, output)


def down(parts: Sequence[str], places: Given, output: Output) -> None:
    """End what runs."""
    from pdr_graph.cli.servers.down import down_command

    down_command(parts, Shelf(load_settings(**places).data_dir), output)

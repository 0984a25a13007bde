"""`pdr-graph serve`: opens store, model and server in turn, and closes them in reverse."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import typer
from pdr_checkpoints.errors import CorruptCheckpointError, ThreadBusyError

from pdr_graph.cli.commands import DEFAULTS, ServeCommand
from pdr_graph.cli.options import with_variables
from pdr_graph.cli.output import Output
from pdr_graph.cli.store import MEMORY, Saver, alone, open_saver
from pdr_graph.config import PDRConfig, preset
from pdr_graph.connect import check_settings, open_judge, open_models
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.extensions import Extensions
from pdr_graph.llm.models import Models
from pdr_graph.nodes.plan import budgets_note, fitted
from pdr_graph.prompts import Prompts
from pdr_graph.servers.llama import announcement, is_small, small_config
from pdr_graph.settings import Settings, load_settings, read_settings

try:
    from pdr_graph.serve.app import create_app
    from pdr_graph.serve.guard import client_keys
    from pdr_graph.serve.options import ServeOptions
    from pdr_graph.serve.refusal import thread_busy, thread_unreadable
    from pdr_graph.serve.request import Catalogue
    from pdr_graph.serve.runner import RunStore, SolveRunner
    from pdr_graph.serve.server import SolveServer, address_of, listen
except ModuleNotFoundError as error:
    raise ConfigError(f"serving needs {error.name}: {install_command('serve')}") from None

logger = logging.getLogger(__name__)


def serve_command(command: ServeCommand, output: Output) -> None:
    """Serve until a signal."""
    given = {"cors": command.cors, "allowed_hosts": command.allowed_host}
    lists = {name: values for name, values in given.items() if values}
    options = read_settings(ServeOptions, {**command.options, **lists})
    settings = load_settings(**command.settings)
    check_settings(settings)
    if options.public and not client_keys(options) and not options.keyless:
        raise ConfigError(
            f"host {options.host!r} may be reached from other machines: set a key by "
            "--key-file / PDR_SERVE_KEY, or say --keyless to serve anybody"
        )
    defaults = with_variables(command.defaults, DEFAULTS, command.settings_file, output.say)
    steps, small = Extensions(judge=open_judge(settings)), is_small(settings)
    catalogue = _catalogue(defaults, options, steps, small=small)
    listener = listen(options.host, options.port)  # before anything slow is started
    with listener:
        if small:
            output.say(announcement(catalogue.default(catalogue.names[0]), settings.base_url))
        asyncio.run(_serve(catalogue, options, settings, steps, listener, output))


async def _serve(
    catalogue: Catalogue,
    options: ServeOptions,
    settings: Settings,
    steps: Extensions,
    listener: socket.socket,
    output: Output,
) -> None:
    say = output.say
    prompts = Prompts.load(settings.prompts)
    ttl_s = None if options.keep_hours is None else options.keep_hours * 3600
    async with (
        open_saver(settings, say, ttl_s=ttl_s) as saver,
        open_models(settings, announce=say) as models,
    ):
        if steps.judge is not None:
            steps.judge.check(models.name)
            await steps.judge.meet(models.client("drafter"))
        store = _store(saver, settings, output)
        runner = SolveRunner(models, store, options, prompts=prompts, judge=steps.judge)
        server = SolveServer(
            create_app(runner, catalogue, options),
            runner,
            drain_s=options.drain_s,
            say=output.tell,
            options=options,
        )
        with _request_log(output):
            address = address_of(listener)
            await server.run(
                listener, lambda: _announce(catalogue, options, models, address, output)
            )
    say("stopped")


def _catalogue(
    defaults: Mapping[str, object], options: ServeOptions, steps: Extensions, *, small: bool
) -> Catalogue:
    def make(name: str, fields: Mapping[str, object]) -> PDRConfig:
        return small_config(name, fields) if small else preset(name, **fields)

    return Catalogue(make, defaults, max_drafts=options.max_drafts, steps=steps)


def _store(saver: Saver, settings: Settings, output: Output) -> RunStore:
    @asynccontextmanager
    async def held(thread_id: str) -> AsyncIterator[None]:
        try:
            async with alone(saver, thread_id, output.say):
                yield
        except ThreadBusyError as error:
            raise thread_busy(error.thread_id) from error
        except CorruptCheckpointError as error:
            logger.warning("thread.unreadable error=%s", error)
            raise thread_unreadable(thread_id) from error

    return RunStore(saver, held, keeps_unnamed=settings.redis_url != MEMORY)


def _announce(
    catalogue: Catalogue, options: ServeOptions, models: Models, address: str, output: Output
) -> None:
    for name, why in catalogue.left_out.items():
        output.say(f"{name} is not offered: {why}")
    config = catalogue.default(catalogue.names[0])
    if (within := fitted(config, 0, models.window)) is not config:
        output.say(f"{budgets_note(within, models.window)}, less for longer problems")
    has_key = bool(client_keys(options))
    if options.public and not has_key:
        output.tell(f"warning: there is no key; anybody who reaches {options.host} is served")
    if not has_key and ("*" in options.cors or "*" in options.allowed_hosts):
        output.tell("warning: there is no key; any web page that you open can use this server")
    output.say(f"serving {', '.join(catalogue.names)} on {models.summary}; Ctrl-C stops")
    if output.json:
        output.show_json({"base_url": address, "models": list(catalogue.names)})
    else:
        typer.echo(address)  # for a caller that chose port 0


@contextmanager
def _request_log(output: Output) -> Iterator[None]:
    """Show every line of the server's log on standard error, with the time."""
    log, handler = logging.getLogger("pdr_graph.serve"), _RequestLines(output)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


class _RequestLines(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:  # `LogLines` shows warnings
            clock = time.strftime("%H:%M:%S", time.localtime(record.created))
            self._output.say(f"{clock} {record.getMessage()}")

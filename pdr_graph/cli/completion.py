"""What the shell completes: strategies and their parts, values that an option knows, stored runs.

Completion starts no server. It offers stored runs only if their store is already running and
answers within a fraction of a second.
"""

import os
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Completer = Callable[[typer.Context, str], list[str]]
"""Takes what was typed so far, and returns what it may become."""

PATIENCE_S = 0.4
"""Longest wait for a store."""
REGISTRY = "checkpoint:threads"
"""The key of the saver's registry. Asking the saver itself would take LangGraph's seconds."""
MOST_THREADS = 500
"""Most runs that are offered, the last written first."""


def words_to_complete() -> list[str]:
    """Return the words of the line that a shell asks about; none where it asks nothing."""
    return (os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or "").split()


def completer(name: str, field: "FieldInfo", *, is_argument: bool) -> Completer | None:
    """Return what completes a field of a command or of the models that it takes."""
    if is_argument and name in {"thread", "threads"}:
        return _threads
    known, values = _PARTS.get(name), _literals(field.annotation)
    if known is None and not values:
        return None

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [each for each in (known() if known else values) if each.startswith(incomplete)]

    return complete


def _literals(annotation: Any) -> Sequence[str]:  # Any: whatever a model declares
    """Return the values of a field that has a few."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    return next((found for each in get_args(annotation) if (found := _literals(each))), [])


def _presets() -> list[str]:
    from pdr_graph.config import PRESETS

    return list(PRESETS)


def _distillers() -> list[str]:
    from pdr_graph.distill import DISTILLERS

    return list(DISTILLERS)


def _finishes() -> list[str]:
    from pdr_graph.finish import FINISHES

    return list(FINISHES)


def _verifiers() -> list[str]:
    from pdr_graph.finish import VERIFIERS

    return list(VERIFIERS)


def _answer_kinds() -> list[str]:
    from pdr_graph.answers import ANSWER_KINDS

    return list(ANSWER_KINDS)


_PARTS: dict[str, Callable[[], list[str]]] = {
    "preset": _presets,
    "arms": _presets,
    "distiller": _distillers,
    "finish": _finishes,
    "verifier": _verifiers,
    "answer": _answer_kinds,
    "parts": lambda: ["model", "store"],
}


def _threads(context: typer.Context, incomplete: str) -> list[str]:
    """Return the stored runs whose names begin so; none if the store does not answer."""
    found: list[str] = []
    named = {
        name: context.params[name]
        for name in ("redis_url", "data_dir")
        if context.params.get(name) is not None
    }

    def look() -> None:
        # A shell that completes a line has no place to show an error.
        try:
            found.extend(_stored(named, incomplete))
        except Exception:  # noqa: BLE001
            return

    # A thread: the name of a host may take long to be resolved, whatever the time-outs.
    looking = Thread(target=look, daemon=True)
    looking.start()
    looking.join(4 * PATIENCE_S)
    return [] if looking.is_alive() else found


def _stored(named: dict[str, object], incomplete: str) -> list[str]:
    from redis import Redis

    from pdr_graph.servers.valkey import noted_address
    from pdr_graph.settings import load_settings

    settings = load_settings(**named)
    address = noted_address(settings.data_dir / "valkey")
    url = settings.redis_url or (f"unix://{quote(address)}" if address else "")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return []
    with Redis.from_url(
        url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S
    ) as server:
        members = server.zrevrange(REGISTRY, 0, MOST_THREADS - 1)
    names = [member.decode("utf-8", "replace") for member in members]
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]

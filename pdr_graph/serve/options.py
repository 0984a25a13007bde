"""The options of `pdr-graph serve`: its address, its limits, and how it treats requests."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from pdr_graph.settings import ProcessSettings, Values

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Addresses that only this machine reaches."""


class ServeOptions(ProcessSettings):
    """How this process serves; read from options, then `PDR_SERVE_…`, then `.env`."""

    model_config = ProcessSettings.model_config | SettingsConfigDict(env_prefix="PDR_SERVE_")

    in_files: ClassVar[Mapping[str, str]] = {"key": "key_file"}
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            *("port", "key", "max_runs", "max_waiting", "max_drafts", "max_body_bytes"),
            *("timeout_s", "drain_s", "repeatable", "connections", "max_by_address"),
            *("head_s", "body_s", "idle_s", "stall_s"),
        }
    )

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on; any but this machine's own needs a key."""
    port: int = Field(8100, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    key: SecretStr | None = None
    """Key that clients must send; without one everybody who reaches the address is served. Several
    keys, one a line, are for clients that must not reach each other's runs. Other users of this
    machine can see what you type, so name a file or set the variable instead."""
    key_file: Path | None = None
    """File that holds such keys and that nobody else can read."""
    keyless: bool = False
    """Serve other machines without a key."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names by which clients may ask for this server, beside localhost and addresses; `*` is any.
    With a key, all names are allowed until you list some."""
    cors: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose web pages may call this server, such as https://app.example; `*` is any."""
    max_runs: int = Field(64, ge=1)
    """Runs at once; further requests wait."""
    max_waiting: int = Field(256, ge=0)
    """Requests that may wait; further ones are answered 429 with Retry-After."""
    max_drafts: int = Field(512, ge=1)
    """Drafts that one request may ask for, all its rounds together."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Size of a request; a larger one is answered 413."""
    connections: int | None = Field(None, ge=1)
    """Connections at once. Beyond them the one that has waited longest for its request is closed;
    if all are being answered, new ones get 503. By default, half of the open files that this
    process may have."""
    max_by_address: int | None = Field(None, ge=1)
    """Connections at once from one address, or from one IPv6 network (/64). By default, three
    quarters of all connections."""
    head_s: float = Field(15.0, gt=0)
    """Seconds in which the head of a request must arrive, from the connection on."""
    body_s: float = Field(30.0, gt=0)
    """Seconds in which the body of a request must arrive."""
    idle_s: float = Field(75.0, gt=0)
    """Seconds that a connection may wait for its next request."""
    stall_s: float = Field(30.0, gt=0)
    """Seconds after which a client that reads nothing of its answer is disconnected."""
    timeout_s: float = Field(3600.0, gt=0)
    """Seconds that one request may take, waiting included; its run can then be resumed."""
    drain_s: float = Field(60.0, ge=0)
    """Seconds that calls in flight are waited for after SIGTERM or Ctrl-C."""
    keep_hours: float | None = Field(168.0, gt=0)
    """Hours that a run is kept in the store after its last step; none keeps it forever."""
    repeatable: bool = False
    """Answer repeats of a request with one seed alike; otherwise each repeat is a new sample."""
    log_prompts: bool = False
    """Write the text of requests to the log."""

    @field_validator("key")
    @classmethod
    def _key_fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value() if key is not None else ""
        keys = [each.strip() for each in text.splitlines()]
        keys = [each for each in keys if each and not each.startswith("#")]
        for each in keys:
            if not (each.isascii() and each.isprintable()) or " " in each:
                raise ValueError("an API key holds printable ASCII characters only, and no space")
        return SecretStr("\n".join(keys)) if keys else None

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts_are_names(cls, given: object) -> object:
        if isinstance(given, str):
            given = tuple(each.strip() for each in given.split(",") if each.strip())
        for each in given if isinstance(given, tuple | list) else ():
            if each != "*" and not re.fullmatch(
                r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", each
            ):
                raise ValueError(f"{each!r} is no host name; write it without scheme and port")
        return given

    @field_validator("cors", mode="before")
    @classmethod
    def _cors_is_origins(cls, given: object) -> object:
        if isinstance(given, str):
            given = tuple(each.strip() for each in given.split(",") if each.strip())
        return tuple(map(_origin, map(str, given))) if isinstance(given, tuple | list) else given

    @property
    def public(self) -> bool:
        """Whether other machines may reach the address."""
        return _is_public(self.host)

    @classmethod
    def admitted(cls, filed: Mapping[str, str], others: Mapping[str, Any]) -> Values:
        """Take a key from the file, but not to serve other machines: its author knows the key."""
        values = super().admitted(filed, others)
        if "key" not in others and _is_public(str(values.get("host", ""))):
            values.pop("key", None)
        return values


def _is_public(host: str) -> bool:
    return host != "" and host.lower() not in LOOPBACK


_PORTS = {"http": 80, "https": 443}
"""What a browser leaves out of an origin."""


def _origin(text: str) -> str:
    """Return an origin as browsers write it."""
    if text == "*":
        return text
    wrong = ValueError(
        f"{text!r} is no origin; write scheme and host, as in https://app.example, or * for any"
    )
    try:
        parts = urlsplit(text.lower())
        host, port = parts.hostname, parts.port
        name = host if host is None or ":" in host else host.encode("idna").decode()
    except ValueError:
        raise wrong from None
    beyond = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username
    if not parts.scheme or not name or beyond or "*" in name:
        raise wrong
    name = f"[{name}]" if ":" in name else name
    is_usual = port in {None, _PORTS.get(parts.scheme)}
    return f"{parts.scheme}://{name}" + ("" if is_usual else f":{port}")

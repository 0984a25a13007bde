"""What a saver can be told, and what it does when told nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints.envelope import Compression
from checkpoints.errors import StoreConfigError


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a `RedisSaver`; every one has a default that is right for most."""

    prefix: str = "checkpoint"
    """First part of every key; savers with different prefixes do not see each other's threads."""
    ttl_s: float | None = None
    """Seconds that a whole thread lives after its last write; None keeps it until deleted."""
    compression: Compression = "zstd"
    """How stored bytes are compressed; whatever was written before stays readable."""
    encryption_keys: Sequence[bytes] = ()
    """Keys of 32 bytes: the first writes, all read. Empty stores plain bytes."""
    max_connections: int = 32
    """Bound on connections, half of which are kept ready while idle; operations that find none
    wait their turn, none fails."""
    reply_timeout_s: float = 20.0
    """A reply that takes longer counts as a lost connection."""
    retry_for_s: float = 30.0
    """How long operations are tried again, all together, while the server is away."""
    open_for_s: float = 3.0
    """How long opening, and each new connection, is tried: a wrong URL is reported soon."""
    lease_ttl_s: float = 30.0
    """Seconds after which the thread of a dead process may be taken over."""

    def __post_init__(self) -> None:
        for name in ("max_connections", "reply_timeout_s", "open_for_s", "lease_ttl_s"):
            if getattr(self, name) <= 0:
                raise StoreConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise StoreConfigError(f"ttl_s is {self.ttl_s}, it must be above 0, or None to keep")

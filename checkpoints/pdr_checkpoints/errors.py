"""Every error that the saver raises on purpose.

SaverError
├── StoreConfigError (ValueError)            an option or URL that cannot work
├── MissingDependencyError (ImportError)     an extra that is not installed
├── StoreUnreachableError (ConnectionError)  no server answers
├── StoreRefusedError (ConnectionError)      the server answers, and does not work
├── NotReplicatedError (ConnectionError)     too few replicas hold a write
├── CheckpointLostError (RuntimeError)       the server lost what it had acknowledged
├── ThreadNotFoundError (LookupError)        the thread has no checkpoints
├── ThreadTakenError (FileExistsError)       an import would overwrite a thread
├── ThreadBusyError (RuntimeError)           another process runs the thread
├── LeaseLostError (RuntimeError)            this process no longer has the thread's lease
├── ThreadContendedError (RuntimeError)      the thread kept changing while it was rewritten
└── CorruptCheckpointError (ValueError)      stored bytes are missing, cut or altered
    ├── FormatVersionError                   a newer release wrote them
    ├── UnknownSerializationError            another serializer wrote them
    ├── TypeNotAllowedError                  they name a type that is not listed
    ├── TooLargeError                        they would take more memory than is allowed
    └── DecryptionError                      no key opens them
"""

import re
from dataclasses import dataclass
from typing import Final

SHOWN: Final = 100
"""Characters of a name that a message repeats."""
MOST: Final = 600
"""Characters that a message quotes of stored bytes."""


class SaverError(Exception):
    """Any failure of the saver for a reason that it can name."""


class StoreConfigError(SaverError, ValueError):
    """An option or URL cannot work."""


class MissingDependencyError(SaverError, ImportError):
    """A feature's package is not installed."""

    def __init__(self, feature: str, package: str) -> None:
        self.package = package
        super().__init__(f"{feature} needs {package}: pip install {package}")


class StoreUnreachableError(SaverError, ConnectionError):
    """No server answers within the time for which operations are tried again."""

    def __init__(self, where: str, seconds: float, reason: object) -> None:
        self.where = where
        self.seconds = seconds
        super().__init__(
            f"Redis at {where} did not answer within {seconds:.1f} s ({reason}): "
            "start the server or correct the URL"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a server that answers does not do what it is asked."""

    reason: str
    """Follows the server's address."""
    remedy: str
    passes: bool = True
    """Whether it may pass by itself, so that operations are tried again."""


REFUSALS: Final = {
    "OOM": Refusal(
        "is full (it has reached its maxmemory)",
        "raise maxmemory, or delete runs that are no longer needed",
    ),
    "READONLY": Refusal(
        "is a read-only replica",
        "name its master, or its Sentinel by redis+sentinel://, in the URL",
    ),
    "LOADING": Refusal("is still loading its data after a start", "wait until it has loaded them"),
    "MISCONF": Refusal(
        "cannot save to its disk, so it takes no writes",
        "free some space on the server's disk, and look at its log",
    ),
    "NOREPLICAS": Refusal(
        "has fewer replicas than its min-replicas-to-write, so it takes no writes",
        "bring its replicas back",
    ),
    "MASTERDOWN": Refusal(
        "is a replica that has lost its master", "bring the master back, or name another server"
    ),
    "CLUSTERDOWN": Refusal(
        "is a cluster that does not serve all slots", "bring back the node that is missing"
    ),
    "TRYAGAIN": Refusal(
        "is a cluster that is moving this thread to another node", "wait until the slot has moved"
    ),
    "BUSY": Refusal("is busy with somebody's script", "wait for it, or end it by SCRIPT KILL"),
    "MAXCLIENTS": Refusal(
        "has as many connections as it allows", "raise maxclients, or close other clients"
    ),
    "NOPERM": Refusal(
        "does not allow this user a command or key that the saver needs",
        "grant it by ACL SETUSER",
        passes=False,
    ),
    "NOAUTH": Refusal(
        "refused the client: it wants a password",
        "put it into the URL, as in redis://:PASSWORD@HOST:PORT or redis://USER:PASSWORD@HOST:PORT",
        passes=False,
    ),
    "WRONGPASS": Refusal(
        "refused the client: user or password is wrong",
        "correct them in the URL, as in redis://:PASSWORD@HOST:PORT or redis://USER:PASSWORD@HOST:PORT",
        passes=False,
    ),
}
"""What servers answer instead of working, by the code with which the answer begins."""
OTHER_REFUSAL: Final = Refusal(
    "refuses a command that the saver needs", "it needs Redis 6.2 or later, or Valkey", passes=False
)
"""An answer of any other kind."""


class StoreRefusedError(SaverError, ConnectionError):
    """The server answers, and does not do what it is asked."""

    def __init__(self, where: str, code: str, reply: object) -> None:
        self.where = where
        self.code = code
        """The kind of refusal, a key of `REFUSALS`; ERR is any other."""
        self.reply = re.sub(r" script: (\w+, )?on @user_script.*", "", str(reply))
        """The server's answer, without the place in our script."""
        refusal = REFUSALS.get(code, OTHER_REFUSAL)
        # For all other codes, the reason says enough.
        shown = f" ({self.reply})" if code in {"ERR", "NOPERM"} else ""
        super().__init__(f"Redis at {where} {refusal.reason}{shown}: {refusal.remedy}")


class NotReplicatedError(SaverError, ConnectionError):
    """Fewer replicas confirmed a write than `wait_replicas` asks for."""

    def __init__(self, where: str, wanted: int, held: int, seconds: float) -> None:
        self.where = where
        self.wanted = wanted
        self.held = held
        super().__init__(
            f"Redis at {where}: {held} of {wanted} replicas confirmed a write within "
            f"{seconds:.1f} s, so a failover could lose it: bring the replicas back, "
            "or lower wait_replicas"
        )


class CheckpointLostError(SaverError, RuntimeError):
    """The server lost a checkpoint that it had acknowledged, and the next one needs it."""

    def __init__(self, thread_id: str, checkpoint_id: str, channels: str) -> None:
        self.thread_id = thread_id
        self.checkpoint_id = checkpoint_id
        super().__init__(
            f"checkpoint {checkpoint_id} of thread {thread_id!r} is no longer in the store, and "
            f"channels {channels} are rebuilt from it (a failover, a restart without an "
            "append-only file, or a deletion): run on from the latest checkpoint that is there"
        )


class ThreadNotFoundError(SaverError, LookupError):
    """A thread has no checkpoints."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"thread {thread_id!r} has no checkpoints")


class ThreadTakenError(SaverError, FileExistsError):
    """An import would overwrite a thread."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"thread {thread_id!r} already has checkpoints: delete it or name another thread"
        )


class ThreadBusyError(SaverError, RuntimeError):
    """Another process has the lease of a thread."""

    def __init__(self, thread_id: str, holder: str, expires_in_s: float) -> None:
        self.thread_id = thread_id
        self.holder = holder
        self.expires_in_s = expires_in_s
        super().__init__(
            f"thread {thread_id!r} is being run by {holder}: wait for it, or stop it and "
            f"try again in {expires_in_s:.0f} s, when its lease runs out"
        )


class LeaseLostError(SaverError, RuntimeError):
    """This process wrote under a lease that it no longer has."""

    def __init__(self, thread_id: str, token: int) -> None:
        self.thread_id = thread_id
        self.token = token
        super().__init__(
            f"lease {token} of thread {thread_id!r} ran out, was taken over or was lost by the "
            "server: this write was refused and nothing was stored"
        )


class ThreadContendedError(SaverError, RuntimeError):
    """A thread kept changing while it was rewritten."""

    def __init__(self, thread_id: str, tries: int) -> None:
        self.thread_id = thread_id
        self.tries = tries
        super().__init__(
            f"thread {thread_id!r} was written to during each of {tries} tries to rewrite it: "
            "wait until its run has ended"
        )


class CorruptCheckpointError(SaverError, ValueError):
    """Stored bytes are missing, cut or altered."""

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        # Whoever wrote the bytes chose the names in them.
        super().__init__(f"{_cut(what)} cannot be read: {_cut(why)}")


class FormatVersionError(CorruptCheckpointError):
    """A newer release wrote the bytes, in a format that this one does not know."""

    def __init__(self, what: str, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            what, f"it has format version {found}, this release reads {known}: upgrade pdr-graph"
        )


class UnknownSerializationError(CorruptCheckpointError):
    """The saver's serializer does not know how a value was serialised."""

    def __init__(self, what: str, kind: str, serializer: str) -> None:
        self.kind = kind
        self.serializer = serializer
        super().__init__(
            what,
            f"{serializer} does not know its serialisation type {kind!r}: open the saver with the "
            "serde that wrote it, or upgrade langgraph-checkpoint",
        )


class TypeNotAllowedError(CorruptCheckpointError):
    """A value names a type that the saver was not told to build; nothing of it was run."""

    def __init__(self, what: str, module: str, name: str) -> None:
        self.module = module
        self.name = name
        super().__init__(
            what,
            f"it holds an object of type {_shortened(f'{module}.{name}')}, which is not allowed: "
            "if the type is yours and you trust who wrote it, open the saver with "
            f"allowed=[({_shortened(module)}, {_shortened(name)})]",
        )


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]}…"


def _shortened(name: str) -> str:
    # Whoever wrote the bytes chose the name, and a terminal obeys what is not escaped.
    return ascii(name if len(name) <= SHOWN else f"{name[:SHOWN]}…")


class TooLargeError(CorruptCheckpointError):
    """Stored bytes would take more memory, once read, than `max_checkpoint_bytes` allows."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.size = size
        """Bytes that it takes, as far as was counted: it may be more."""
        self.limit = limit
        super().__init__(
            what,
            f"it takes {size:,} bytes of memory or more, and max_checkpoint_bytes allows "
            f"{limit:,}: if you trust who wrote it, raise max_checkpoint_bytes, on the command "
            "line --max-bytes",
        )


class DecryptionError(CorruptCheckpointError):
    """No key opens the bytes, or they were altered after encryption."""

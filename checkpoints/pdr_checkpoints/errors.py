"""Every error that the saver raises on purpose.

SaverError
├── StoreConfigError (ValueError)            an option or URL that cannot work
├── MissingDependencyError (ImportError)     an extra that is not installed
├── StoreUnreachableError (ConnectionError)  no server answers
├── ThreadNotFoundError (LookupError)        the thread has no checkpoints
├── ThreadTakenError (FileExistsError)       an import would overwrite a thread
├── ThreadBusyError (RuntimeError)           another process runs the thread
├── LeaseLostError (RuntimeError)            this process no longer has the thread's lease
├── ThreadContendedError (RuntimeError)      the thread kept changing while it was pruned
└── CorruptCheckpointError (ValueError)      stored bytes are missing, cut or altered
    ├── FormatVersionError                   a newer release wrote them
    ├── UnknownSerializationError            another serializer wrote them
    └── DecryptionError                      no key opens them
"""


class SaverError(Exception):
    """Any failure of the saver for a reason that it can name."""


class StoreConfigError(SaverError, ValueError):
    """An option or URL cannot work."""


class MissingDependencyError(SaverError, ImportError):
    """A feature's package is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.package = package
        super().__init__(f"{feature} needs {package}: pip install 'pdr-graph[{extra}]'")


class StoreUnreachableError(SaverError, ConnectionError):
    """No server answers within the time for which operations are tried again."""

    def __init__(self, where: str, seconds: float, reason: object) -> None:
        self.where = where
        self.seconds = seconds
        super().__init__(
            f"Redis at {where} did not answer within {seconds:.1f} s ({reason}): "
            "start the server or correct the URL"
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
            f"lease {token} of thread {thread_id!r} ran out or was taken over: "
            "this write was refused and nothing was stored"
        )


class ThreadContendedError(SaverError, RuntimeError):
    """A thread kept changing while it was pruned."""

    def __init__(self, thread_id: str, tries: int) -> None:
        self.thread_id = thread_id
        self.tries = tries
        super().__init__(
            f"thread {thread_id!r} was written to during each of {tries} tries to prune it: "
            "wait until its run has ended"
        )


class CorruptCheckpointError(SaverError, ValueError):
    """Stored bytes are missing, cut or altered."""

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(f"{what} cannot be read: {why}")


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


class DecryptionError(CorruptCheckpointError):
    """No key opens the bytes, or they were altered after encryption."""

"""Every error that the package raises on purpose, as one tree.

A leaf names the boundary that failed and carries its numbers as attributes. It also inherits the
standard type that it stands for, so that a caller may catch either. A leaf that only one part of
the package raises is defined there; its file is named behind it::

    PDRError
    ├── ConfigError (ValueError)             a request that cannot be carried out as asked
    │   └── ConfigChangedError               a resume asks for something else than the record
    ├── EndpointError (ConnectionError)      the model endpoint: dead, wrong key, no such model
    ├── CallError (RuntimeError)             one model call, after its retries
    │   └── ContextWindowError               prompt and completion do not fit the model's window
    ├── BadReplyError (RuntimeError)         a reply without an answer, before its call is retried
    │                                        (llm/failure.py)
    ├── QuorumError (RuntimeError)           too few drafts of a round succeeded
    ├── WorkspaceOverflowError (ValueError)  a workspace above kappa; always a defect of the package
    ├── UnknownThreadError (LookupError)     no run is recorded under this thread
    ├── OtherGraphError (ValueError)         the thread holds a run of another graph
    ├── ThreadExistsError (ValueError)       a run is already recorded under this thread
    ├── CheckpointError (ConnectionError)    the checkpoint store cannot be reached or read
    ├── LocalError (RuntimeError)            an embedded server or its weights
    ├── DrainedError (RuntimeError)          the run was asked to stop, and can be resumed
    ├── RefusalError                         a request that `serve` answers with an error object
    │                                        (serve/refusal.py)
    ├── ElsewhereError (RuntimeError)        another process works on a sample (eval/runner.py)
    ├── WorkersDiedError (RuntimeError)      the Ray workers of an evaluation died
    │                                        (eval/ray_cluster.py)
    ├── DriftError (RuntimeError)            the policy that draws differs from the model that is
    │                                        trained (train/steps.py)
    ├── PushError (ConnectionError)          the policy did not take new weights (train/push.py)
    ├── RankError (RuntimeError)             another process of a training run failed
    │                                        (train/launch.py)
    └── LostRankError (ConnectionError)      another process of a training run is gone
                                             (train/launch.py)
"""

from collections.abc import Sequence


class PDRError(Exception):
    """An error whose cause one sentence can name."""


class ConfigError(PDRError, ValueError):
    """A request that cannot be carried out as asked."""


class ConfigChangedError(ConfigError):
    """A run was resumed with a config other than the recorded one."""

    def __init__(self, thread_id: str, changed: Sequence[str]) -> None:
        self.thread_id = thread_id
        self.changed = tuple(changed)
        super().__init__(
            f"thread {thread_id!r} was started with another {', '.join(changed)}; resume it "
            "without these options, or start a new thread"
        )


class EndpointError(PDRError, ConnectionError):
    """The model endpoint cannot be used."""


class CallError(PDRError, RuntimeError):
    """One model call failed, after its retries."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        """HTTP status, None where no answer came."""
        super().__init__(message)


class ContextWindowError(CallError):
    """Prompt and completion together do not fit the model's context window."""


class QuorumError(PDRError, RuntimeError):
    """Too few drafts of a round succeeded for the round to go on."""

    def __init__(
        self, round_number: int, succeeded: int, needed: int, asked: int, why: str
    ) -> None:
        self.round_number = round_number
        self.succeeded = succeeded
        self.needed = needed
        self.asked = asked
        super().__init__(
            f"round {round_number}: {succeeded} of {asked} drafts succeeded, {needed} are needed "
            f"({why})"
        )


class WorkspaceOverflowError(PDRError, ValueError):
    """A workspace came out longer than kappa allows."""

    def __init__(self, tokens: int, kappa: int) -> None:
        self.tokens = tokens
        self.kappa = kappa
        super().__init__(f"workspace has {tokens} tokens, kappa allows {kappa}")


class UnknownThreadError(PDRError, LookupError):
    """No run is recorded under this thread."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"no run is recorded under thread {thread_id!r}; `pdr-graph threads` lists all"
        )


class OtherGraphError(PDRError, ValueError):
    """A thread holds a run of another graph."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"thread {thread_id!r} holds a run of another graph; to resume it, run that graph "
            "again with the input None"
        )


class ThreadExistsError(PDRError, ValueError):
    """A run is already recorded under this thread."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"thread {thread_id!r} already holds a run; `pdr-graph resume {thread_id}` continues "
            "it, another --thread starts a new one"
        )


class CheckpointError(PDRError, ConnectionError):
    """The checkpoint store cannot be reached or read."""


class LocalError(PDRError, RuntimeError):
    """An embedded server, or its weights, cannot be had."""


class DrainedError(PDRError, RuntimeError):
    """The run stopped at a super-step because it was asked to; it can be resumed."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"stopped; `pdr-graph resume {thread_id}` continues it")

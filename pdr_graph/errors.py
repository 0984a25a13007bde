"""Every error that the package raises on purpose, as one tree.

A leaf names the boundary that failed and carries its numbers as attributes. It also inherits the
standard type that it stands for, so that a caller may catch either. A leaf that only one part of
the package raises is defined there; its file is named behind it.

What may have passed when the same is tried again is a `TransientError`. LangGraph's `RetryPolicy()`
retries these, since it takes every ConnectionError, and none of the other errors that a run ends
with: it leaves out RuntimeError, ValueError and LookupError. `retry_on` is the same as a function::

    PDRError
    ├── ConfigError (ValueError)             a request that cannot be carried out as asked
    │   └── ConfigChangedError               a resume asks for something else than the record
    ├── TransientError (ConnectionError)     what may pass by itself
    ├── EndpointError (ConnectionError)      the model endpoint: wrong key, no such model
    │   └── EndpointAwayError (TransientError) nobody answers there
    ├── CallError (RuntimeError)             one model call, after its retries
    │   ├── ContextWindowError               prompt and completion do not fit the model's window
    │   └── CallLostError (TransientError)   no answer, or that of a server that is busy or broken
    ├── BadReplyError (RuntimeError)         a reply without an answer, before its call is retried
    │                                        (llm/retry.py)
    ├── QuorumError (RuntimeError)           too few drafts of a round succeeded
    │   └── QuorumLostError (TransientError) not all of them were refused for good
    ├── WorkspaceOverflowError (ValueError)  a workspace above kappa; always a defect of the package
    ├── UnknownThreadError (LookupError)     no run is recorded under this thread
    ├── OtherGraphError (ValueError)         the thread holds a run of another graph
    ├── DamagedRunError (ValueError)         what is stored of a run is none of its states
    ├── ThreadExistsError (ValueError)       a run is already recorded under this thread
    ├── CheckpointError (ConnectionError)    the checkpoint store cannot be reached or read
    ├── LocalError (RuntimeError)            an embedded server or its weights
    ├── DrainedError (RuntimeError)          the run was asked to stop, and can be resumed
    ├── WaitingError (RuntimeError)          the run waits for a person's answer
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


class TransientError(PDRError, ConnectionError):
    """What may have passed when the same is tried again."""


class EndpointError(PDRError, ConnectionError):
    """The model endpoint cannot be used."""


class EndpointAwayError(EndpointError, TransientError):
    """Nobody answers at the model endpoint."""


class CallError(PDRError, RuntimeError):
    """One model call failed, after its retries."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        """HTTP status, None where no answer came."""
        super().__init__(message)


class ContextWindowError(CallError):
    """Prompt and completion together do not fit the model's context window."""


class CallLostError(CallError, TransientError):
    """No answer came, or the endpoint is busy or broken: 408, 409, 425, 429 or 5xx."""


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


class QuorumLostError(QuorumError, TransientError):
    """Too few drafts of a round succeeded, and not all of them were refused for good."""


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


class DamagedRunError(PDRError, ValueError):
    """What is stored of a run has another form than a run's state."""

    def __init__(self, thread_id: str, why: str) -> None:
        self.thread_id = thread_id
        self.why = why
        """Which field, and what it should be."""
        super().__init__(
            f"the run of thread {thread_id!r} cannot be read: {why}; another program has written "
            "it, or a newer release, or it was altered; `pdr-graph threads --delete` removes it"
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


class WaitingError(PDRError, RuntimeError):
    """The run stopped to ask a person, or at a breakpoint; it can be resumed."""

    def __init__(
        self, thread_id: str, questions: Sequence[object] = (), next_nodes: Sequence[str] = ()
    ) -> None:
        self.thread_id = thread_id
        self.questions = tuple(questions)
        """What the run's `interrupt` calls ask for; empty at a breakpoint."""
        asks = "; ".join(map(str, questions))
        why = f"it asks: {asks}" if asks else f"breakpoint before {', '.join(next_nodes) or 'END'}"
        how = " --answer TEXT" if asks else ""
        super().__init__(f"the run waits ({why}); `pdr-graph resume {thread_id}{how}` continues it")


def retry_on(error: BaseException) -> bool:
    """Tell whether a node or tool that raised an error is worth calling again.

    Hand it to `RetryPolicy(retry_on=retry_on)` or `ToolRetryMiddleware(retry_on=retry_on)`. A node
    or tool of ours that is called again asks for nothing that it was answered before. Errors of
    others are judged as LangGraph does by default; its own signals, such as interrupts, are no
    errors.
    """
    if isinstance(error, PDRError):
        return isinstance(error, TransientError | CheckpointError)
    # Imported here, since every command imports the errors, and few of them LangGraph.
    from langgraph.errors import GraphBubbleUp
    from langgraph.types import RetryPolicy

    if not isinstance(error, Exception) or isinstance(error, GraphBubbleUp):
        return False
    judge = RetryPolicy().retry_on
    return callable(judge) and bool(judge(error))

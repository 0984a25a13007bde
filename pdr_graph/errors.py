"""Every error that the package raises on purpose, as one tree.

A leaf names the boundary that failed and carries its numbers as attributes. It also inherits the
standard type that it stands for, so that a caller may catch either. A leaf that only one part of
the package raises is defined there; its file is named behind it.

An error that may be gone on a second try is a `TransientError`. LangGraph's `RetryPolicy()` retries
it, as it does every ConnectionError. It does not retry the errors below that are a RuntimeError, a
ValueError or a LookupError. `retry_on` is a stricter choice as a function: of these errors it
accepts only `TransientError` and `CheckpointError`::

    PDRError
    ├── ConfigError (ValueError)             a request that cannot be carried out as asked
    │   └── ConfigChangedError               a resume asks for something else than the record
    ├── TransientError (ConnectionError)     an error that may pass by itself
    ├── EndpointError (ConnectionError)      the model endpoint: wrong key, no such model
    │   └── EndpointAwayError (TransientError) nobody answers there
    ├── CallError (RuntimeError)             one model call, after its retries
    │   ├── ContextWindowError               prompt and completion do not fit the model's window
    │   └── CallLostError (TransientError)   no answer, or that of a server that is busy or broken
    ├── BadReplyError (RuntimeError)         a reply without an answer, before its call is retried
    │                                        (llm/retry.py)
    ├── QuorumError (RuntimeError)           too few drafts of a round succeeded
    │   └── QuorumLostError (TransientError) not all of them were refused for good
    ├── StepError (RuntimeError)             a distiller, finish or verifier of the user's own
    │   └── StepLostError (TransientError)   it met an error that may pass
    ├── WorkspaceOverflowError (ValueError)  a workspace above kappa; always a defect of the package
    ├── UnknownThreadError (LookupError)     no run is recorded under this thread
    ├── OtherGraphError (ValueError)         the thread holds a run of another graph
    ├── DamagedRunError (ValueError)         what is stored of a run is none of its states
    ├── ThreadExistsError (ValueError)       a run is already recorded under this thread
    ├── CheckpointError (ConnectionError)    the checkpoint store cannot be reached or read
    ├── LocalError (RuntimeError)            an embedded server or its weights
    ├── DrainedError (RuntimeError)          the run was asked to stop, and can be resumed
    ├── WaitingError (RuntimeError)          the run waits for a person's answer
    ├── UnweighedError (LookupError)         a draft that no judge can weigh (judge/__init__.py)
    ├── RefusalError                         a request that `serve` answers with an error object
    │                                        (serve/refusal.py)
    ├── ElsewhereError (RuntimeError)        another process works on a sample (eval/runner.py)
    ├── WorkersDiedError (RuntimeError)      the Ray workers of an evaluation died
    │                                        (eval/ray_cluster.py)
    ├── DriftError (RuntimeError)            the policy that draws differs from the model that is
    │                                        trained (train/steps.py)
    ├── PushError (ConnectionError)          the policy did not take new weights (train/push.py)
    ├── RankError (RuntimeError)             another process of a training run failed
    │                                        (train/preparation.py)
    └── LostRankError (ConnectionError)      another process of a training run is gone
                                             (train/preparation.py)
"""

import base64
import html
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
"""Stands where a secret was."""
_SECRETS: set[str] = set()
"""Every form of the keys and passwords that this process was given. Of the process, since an error
of any part may quote the key of another."""
_SHORTEST = 4
"""Fewest characters of a secret that is hidden; a shorter one is part of too many words."""
_MOST_TEXT = 200_000
"""Characters of a text that are searched for secrets; the rest is cut."""

_SECRET_NAME = (
    r"(?:[\w-]{0,40}(?:password|passwd|secret|api[_-]?key|subscription[_-]?key|signature|credential)"
    r"[\w-]{0,40}|(?:access|auth|refresh|id|session|bearer)?[_-]?token|x-amz-signature|key|sig|pwd?)"
)
_PATTERNS = tuple(
    (re.compile(pattern, re.I), shown)
    for pattern, shown in (
        # In an address: its password, a lone name of an http address, which is a token, and
        # options of its query.
        (
            r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s/?#:@'\"<>]{0,500}:)(?!PASSWORD@)[^\s/?#'\"<>]{1,500}@",
            rf"\1{HIDDEN}@",
        ),
        (r"(\bhttps?://)[^\s/?#:@'\"<>]{8,500}@", rf"\1{HIDDEN}@"),
        (rf"([?&;]{_SECRET_NAME}=)[^&;\s'\"<>#]+", rf"\1{HIDDEN}"),
        # In a header, or beside its name.
        (
            r"(\b(?:proxy-)?authorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?)(?:(?:bearer|basic|token)\s+)?"
            r"[^\s'\",;<>&]{4,}",
            rf"\1{HIDDEN}",
        ),
        (
            r"(\b[\w-]{0,40}api[ _-]?key(?:\s(?:provided|is))?['\"]?\s{0,9}[:=]\s{0,9}['\"]?)"
            r"[^\s'\",;<>&]{4,}",
            rf"\1{HIDDEN}",
        ),
        (r"(\b(?:bearer|basic)\s+)(?=[^\s]{0,200}\d)[a-z0-9._~+/=*-]{8,}", rf"\1{HIDDEN}"),
        # By its form: the keys of known providers, and signed tokens.
        (
            r"\b((?:sk|pk|rk|gsk|csk|xai|pplx|nvapi|hf|ghp|gho|glpat|r8|fw|github_pat)[-_])"
            r"(?=[\w*-]{0,200}[\d*])[\w*.-]{8,}",
            rf"\1{HIDDEN}",
        ),
        (r"\b(AIza)[\w-]{20,}", rf"\1{HIDDEN}"),
        (r"\b(AKIA)[0-9A-Z]{12,}", rf"\1{HIDDEN}"),
        (r"\b(eyJ)[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?", rf"\1{HIDDEN}"),
    )
)


def keep_secret(*secrets: str) -> None:
    """Hide these keys and passwords in every error of this process; short words stay visible."""
    for secret in secrets:
        # "EMPTY" stands for no key, and a short one of letters alone is a word of many sentences.
        is_word = secret == "EMPTY" or (secret.isalpha() and len(secret) < 8)
        if len(secret) >= _SHORTEST and not is_word:
            _SECRETS.update((secret, quote(secret, safe=""), html.escape(secret)))
            _SECRETS.add(json.dumps(secret)[1:-1])


def keep_secrets_of(url: str) -> None:
    """Hide the password and the keys of an address in every error of this process."""
    keep_secret(*_secrets_of_url(url))


def _secrets_of_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        name, password = parts.username or "", parts.password or ""
    except ValueError:
        return []
    found = [password, unquote(password)]
    if parts.scheme in {"http", "https"} and name:
        both = f"{unquote(name)}:{unquote(password)}".encode()
        found += [base64.b64encode(both).decode()]
        found += [] if password else [name, unquote(name)]
    named = re.compile(_SECRET_NAME, re.I)
    return found + [text for each, text in parse_qsl(parts.query) if named.fullmatch(each)]


def redacted(text: str) -> str:
    """Return a text without keys and passwords: those of this process, and what looks like one.

    >>> redacted("Incorrect API key provided: sk-abc1234567890")
    'Incorrect API key provided: ***'
    """
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
    for secret in sorted(_SECRETS, key=len, reverse=True):
        if secret in text:
            # A short one only as a whole word: it may be part of innocent words.
            whole = re.escape(secret) if len(secret) >= 8 else rf"(?<!\w){re.escape(secret)}(?!\w)"
            text = re.sub(whole, HIDDEN, text)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 call, 2 calls, 1,024 calls."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextmanager
def raised_by(whose: str) -> Iterator[None]:
    """Add a note that names the user's code to an error that passes unchanged, to be caught."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by {whose}")
        raise


def enumerated(names: Sequence[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


IS_PUBLISHED = False
"""Whether a package index has the package. `.ci/published.py` changes it, and all documents."""


def install_command(extra: str) -> str:
    """Return the command that installs the package with an extra, for a sentence to name."""
    if IS_PUBLISHED:
        return f"pip install 'pdr-graph[{extra}]'"
    # Imported late: only a message about a missing package needs it.
    from importlib.metadata import metadata

    urls = dict(each.split(", ", 1) for each in metadata("pdr-graph").get_all("Project-URL") or [])
    return f"pip install 'pdr-graph[{extra}] @ git+{urls['Source']}'"


class PDRError(Exception):
    """An error whose cause one sentence can name; the sentence never holds a secret.

    What a server said, and every address, becomes a sentence here, so that this is the place where
    keys and passwords are taken out.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in args))


class ConfigError(PDRError, ValueError):
    """A request that cannot be carried out as asked."""


class ConfigChangedError(ConfigError):
    """A run was resumed with a config other than the recorded one."""

    def __init__(
        self, thread_id: str, changed: Sequence[str], left_out: Sequence[str] = ()
    ) -> None:
        """Name what differs.

        Args:
            thread_id: The run.
            changed: What the resume names, and the record has otherwise.
            left_out: What the record has, and the resume does not name.
        """
        self.thread_id = thread_id
        self.changed = (*changed, *left_out)
        if changed:
            remedy = f"another {', '.join(self.changed)}; resume it without these options"
        else:
            these = " and ".join(f"a {each} of its own" for each in left_out)
            remedy = f"{these}; resume it with the same"
        super().__init__(f"thread {thread_id!r} was started with {remedy}, or start a new thread")


class TransientError(PDRError, ConnectionError):
    """An error that may be gone when the same is tried again."""


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
            f"round {round_number}: {succeeded} of {counted(asked, 'draft')} succeeded, {needed} "
            f"{'is' if needed == 1 else 'are'} needed "
            f"({why})"
        )


class QuorumLostError(QuorumError, TransientError):
    """Too few drafts of a round succeeded, and not all of them were refused for good."""


class StepError(PDRError, RuntimeError):
    """A step of the user's own raised an error, or returned a value of the wrong form."""

    def __init__(self, kind: str, name: str, why: str) -> None:
        self.kind = kind
        """`distiller`, `finish` or `verifier`."""
        self.name = name
        self.why = why
        """What it did, and what was expected."""
        super().__init__(f"{kind} {name!r} {why}")


class StepLostError(StepError, TransientError):
    """A step of the user's own met an error that may pass, such as a lost connection."""


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
            f"thread {thread_id!r} already holds a run; "
            f"`pdr-graph resume {shlex.quote(thread_id)}` continues it, another --thread starts a "
            "new one"
        )


class CheckpointError(PDRError, ConnectionError):
    """The checkpoint store cannot be reached or read."""


class LocalError(PDRError, RuntimeError):
    """An embedded server cannot run, or its weights are not available."""


class DrainedError(PDRError, RuntimeError):
    """The run stopped at a super-step because it was asked to; it can be resumed."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(f"stopped; `pdr-graph resume {shlex.quote(thread_id)}` continues it")


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
        super().__init__(
            f"the run waits ({why}); `pdr-graph resume {shlex.quote(thread_id)}{how}` continues it"
        )


def retry_on(error: BaseException) -> bool:
    """Tell whether a node or tool that raised an error is worth calling again.

    Hand it to `RetryPolicy(retry_on=retry_on)` or `ToolRetryMiddleware(retry_on=retry_on)`. When a
    node or tool of this package is called again, it repeats no finished model call. Errors of other
    packages are judged by LangGraph's default. Its signals, such as interrupts, are no errors.
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

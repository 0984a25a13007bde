"""How a request is refused: an HTTP status and OpenAI's error object.

The status tells a client what is at fault: its own request (4xx), the model or the store behind
this server (502, 503), or a defect of the server (500).

Every refusal is counted and logged once, whichever layer makes it: the connection, the guard, the
application or the run. Of what a client sends, labels and log lines hold only its address, the
method, the path and the name of a field, all cut and escaped.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from time import monotonic
from typing import Literal

from fastapi.exceptions import RequestValidationError
from openai.types.shared import ErrorObject
from prometheus_client import CollectorRegistry, Counter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Message, Scope, Send

from pdr_graph.errors import (
    CallError,
    ConfigChangedError,
    ConfigError,
    ContextWindowError,
    DamagedRunError,
    DrainedError,
    EndpointError,
    PDRError,
    QuorumError,
    ThreadExistsError,
)
from pdr_graph.validation import Fault

logger = logging.getLogger(__name__)


class RefusalError(PDRError):
    """A request that is answered with an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.status = status
        """HTTP status."""
        self.param = param
        """The field of the request that is at fault; None if none is."""
        self.code = code
        """Kind of error, for programs; None where the status says enough."""
        self.retry_after_s = retry_after_s
        """Seconds until the client may try again; None if that would not help."""
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def naming(self, thread_id: str, place: str) -> "RefusalError":
        """Return the refusal with a thread's name in place of what it is called in the store."""
        if thread_id == place or place not in str(self):
            return self
        return RefusalError(
            self.status,
            str(self).replace(place, thread_id),
            param=self.param,
            code=self.code,
            retry_after_s=self.retry_after_s,
        )

    def body(self) -> dict[str, object]:
        """Return OpenAI's error object."""
        default = "invalid_request_error" if self.status < 500 else "api_error"
        error = ErrorObject(
            message=str(self),
            type=_TYPES.get(self.status, default),
            param=self.param,
            code=self.code,
        )
        return {"error": error.model_dump(exclude_unset=True)}

    @property
    def reason(self) -> str:
        """Kind of error for the metrics: the code, or what the status says."""
        return self.code or REASONS.get(self.status, "other")


REASONS = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "host_not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "body_too_large",
    415: "body_not_json",
    429: "server_busy",
    500: "defect",
    502: "model_failed",
    503: "unavailable",
    504: "out_of_time",
}
"""Reason of a refusal that has no code of its own, by status."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

RETRY_SOON_S = 5
"""Seconds after which a server that restarts, or a store that is down, may be back."""


def refusal_of(error: BaseException, thread_id: str | None = None) -> RefusalError:
    """Return the refusal that a client receives for an error; details are logged.

    Args:
        error: What ended the request.
        thread_id: Names the run if it can be resumed; None if it cannot.
    """
    way_on = f'; send the request again with metadata {{"thread_id": "{thread_id}"}} to go on'
    way_on = way_on if thread_id is not None else ""
    match error:
        case RefusalError():
            return error
        case ContextWindowError():
            return RefusalError(400, str(error), code="context_length_exceeded")
        case ConfigChangedError():
            changed = ", ".join(error.changed)
            return RefusalError(
                409,
                f"thread {error.thread_id!r} was started with another {changed}; ask for what it "
                "was started with, or name another thread",
                param="metadata.thread_id",
                code="thread_differs",
            )
        case ConfigError():
            return RefusalError(400, str(error), param="pdr", code="invalid_setting")
        case ThreadExistsError():
            return thread_busy(error.thread_id)
        case DamagedRunError():
            logger.warning("thread.unreadable error=%s", error)
            return thread_unreadable(error.thread_id)
        case DrainedError():
            return shutting_down(way_on)
        case QuorumError() | CallError() | EndpointError():
            return RefusalError(502, f"the model failed: {error}{way_on}", code="model_failed")
        case ConnectionError():
            logger.error("store.away error=%s", error)
            return RefusalError(
                503,
                f"the store of runs does not answer{way_on}",
                code="store_away",
                retry_after_s=RETRY_SOON_S,
            )
        case _:
            logger.error("request.defect error=%r", error, exc_info=error)
            return RefusalError(500, f"internal error; see the server's log{way_on}")


def shutting_down(way_on: str = "") -> RefusalError:
    """Return the refusal of a server that stops; `way_on` says how to go on with a run."""
    return RefusalError(
        503,
        f"the server is shutting down{way_on}",
        code="shutting_down",
        retry_after_s=RETRY_SOON_S,
    )


def thread_busy(thread_id: str) -> RefusalError:
    """Return the refusal of a thread that another request is running."""
    return RefusalError(
        409,
        f"thread {thread_id!r} is being run by another request; wait for its answer",
        param="metadata.thread_id",
        code="thread_busy",
    )


def thread_unreadable(thread_id: str) -> RefusalError:
    """Return the refusal of a thread whose stored state is damaged, or is not allowed to be read.

    A client learns no more: the reason names what the store holds.
    """
    return RefusalError(
        409,
        f"thread {thread_id!r} cannot be read, the server's log says why; name another thread",
        param="metadata.thread_id",
        code="thread_unreadable",
    )


# -------------------------------------------------------------------------------- the account

NOTE = "pdr_graph.refusal"
"""Key of a request's scope: a list in which its refusal is put, for whoever counts it."""
CLIENT_LEFT = 499
"""Status that counts a request whose client left; it is never sent."""
MOST_LINES = 50
"""Refusals that are logged in one second; the next line says how many were left out."""
GUESSES, GUESSING_S = 10, 60.0
"""A warning is logged after so many wrong keys from one address within so many seconds."""
_MOST_ADDRESSES = 1024
_LONGEST = 120
"""Most characters of a client's text that a log line shows for one field."""

KeyFault = Literal["missing", "not_bearer", "wrong"]
Closed = Literal["full", "displaced", "silent", "overdue", "stalled"]
"""Why a connection is closed without an answer: there are too many; it made room for another;
nothing came; it took longer than a request may; its client reads nothing."""


class RefusalLog:
    """Counts and logs the refusals of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the counters."""
        self._refusals = Counter(
            "pdr_refusals",
            "Refusals by HTTP status and reason; status 0 is a connection closed without an answer",
            ["status", "reason"],
            registry=registry,
        )
        self._failed_keys = Counter(
            "pdr_authentication_failures",
            "Requests without a valid API key: none sent, not as a bearer token, or a wrong one",
            ["reason"],
            registry=registry,
        )
        # Set to 0 at the start, so that the first failure shows as a rise.
        for each in ("missing", "not_bearer", "wrong"):
            self._failed_keys.labels(each)
        self._second, self._lines, self._left_out = 0, 0, 0
        self._guesses: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By address: since when wrong keys are counted, and how many came."""

    def note(self, refusal: RefusalError, scope: Scope | None = None) -> None:
        """Count and log a refusal; without a scope the request is unknown."""
        client, request = "-", "-"
        if scope is not None:
            client = (scope.get("client") or ("-",))[0]
            request = f"{scope.get('method', '-')} {scope.get('path', '-')}"
        self._count(refusal.status, refusal.reason, client, request, refusal.param)

    def refused_head(self, refusal: RefusalError, client: str) -> None:
        """Count and log the refusal of a request that was never read to the end of its head."""
        self._count(refusal.status, refusal.reason, client, "-", None)

    def closed(self, why: Closed, client: str) -> None:
        """Count and log a connection that is closed without an answer."""
        self._count(0, f"connection_{why}", client, "-", None)

    def failed_key(self, fault: KeyFault, client: str) -> None:
        """Count a request without a valid key; warn of many wrong keys from one address."""
        self._failed_keys.labels(fault).inc()
        if fault == "missing":
            return
        now = monotonic()
        since, number = self._guesses.pop(client, (now, 0))
        if now - since > GUESSING_S:
            since, number = now, 0
        self._guesses[client] = (since, number + 1)
        while len(self._guesses) > _MOST_ADDRESSES:
            self._guesses.popitem(last=False)
        if number + 1 == GUESSES:
            logger.warning(
                "key.guessing client=%s: %d wrong keys within %.0f s",
                client,
                GUESSES,
                max(1.0, now - since),
            )

    def watch(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that notes the refusal with which a request of this scope is answered."""
        noted: list[RefusalError] = []
        scope[NOTE] = noted

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._answered(scope, message["status"], noted)
            await send(message)

        return watched

    def _answered(self, scope: Scope, status: int, noted: list[RefusalError]) -> None:
        if status == CLIENT_LEFT or (status == 503 and not noted and scope["path"] == "/health"):
            return  # nobody was refused
        if noted:
            self.note(noted[-1], scope)
            return
        code = "cors_origin" if scope["method"] == "OPTIONS" and status == 400 else None
        self.note(RefusalError(status, "", code=code), scope)

    def _count(
        self, status: int, reason: str, client: str, request: str, field: str | None
    ) -> None:
        self._refusals.labels(status, reason).inc()
        second = int(monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > MOST_LINES:
            self._left_out += 1
            return
        fields: dict[str, object] = {"status": status, "reason": reason, "client": client}
        fields["request"] = _shown(request)
        if field is not None:
            fields["field"] = _shown(field)
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        logger.info("request.refused %s", said, extra={"fields": fields})


def _shown(text: str) -> str:
    """Return what a client chose as a log may show it: in quotes, on one line, cut."""
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def noted(scope: Scope, refusal: RefusalError) -> None:
    """Tell whoever counts the refusals of this request why it is refused."""
    scope.get(NOTE, []).append(refusal)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer a request that an error ended; a handler of Starlette's."""
    headers: Mapping[str, str] = {}
    if isinstance(error, RequestValidationError):
        fault = Fault.of(error)
        refusal = malformed(fault, fault.path[1:])  # without where it is sent
    elif isinstance(error, HTTPException):
        refusal = RefusalError(error.status_code, _sentence(request, error))
        headers = error.headers or {}
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_methods(request))}
    else:
        refusal = refusal_of(error)
    noted(request.scope, refusal)
    return JSONResponse(refusal.body(), refusal.status, {**refusal.headers, **headers})


def _methods(request: Request) -> list[str]:
    """Return what the path takes; Starlette names the methods of its first route alone."""
    routes = [each for each in request.app.routes if each.matches(request.scope)[0] != Match.NONE]
    return sorted(method for each in routes for method in each.methods or ())


def _sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is nothing at {request.url.path}"
    if error.status_code == 405:
        return f"{request.url.path} does not take {request.method}"
    return str(error.detail)


def malformed(fault: Fault, path: Sequence[str]) -> RefusalError:
    """Name the first field that does not fit, never its value: it may be a prompt."""
    if fault.kind == "json_invalid":
        return RefusalError(400, "the body is not valid JSON", code="invalid_json")
    # The path is cut before the member of a union that pydantic tried.
    field = ".".join(path[:3]) or "the body"
    return RefusalError(400, f"{field}: {fault.message}", param=field)

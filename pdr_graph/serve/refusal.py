"""How a request is refused: an HTTP status and OpenAI's error object.

The status tells a client what is at fault: its own request (4xx), the model or the store behind
this server (502, 503), or a defect of the server (500).
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from openai.types.shared import ErrorObject
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

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
    # Left out: the type that pydantic tried of a union.
    field = ".".join(path[:3]) or "the body"
    return RefusalError(400, f"{field}: {fault.message}", param=field)

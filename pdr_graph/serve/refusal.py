"""How a request is refused: an HTTP status and OpenAI's error object.

The status tells a client what is at fault: its own request (4xx), the model or the store behind
this server (502, 503), or a defect of the server (500).
"""

import logging
from http import HTTPStatus

from pdr_graph.errors import (
    CallError,
    ConfigChangedError,
    ConfigError,
    ContextWindowError,
    DrainedError,
    EndpointError,
    PDRError,
    QuorumError,
    ThreadExistsError,
)

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

    def body(self) -> dict[str, object]:
        """Return OpenAI's error object."""
        default = "invalid_request_error" if self.status < 500 else "api_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }


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

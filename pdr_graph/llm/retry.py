"""When a failed request is sent again, and after how long.

429, 5xx and lost connections are tried again, after the server's Retry-After where it names one.
Any other refusal would only be repeated. Waits and attempts are capped, so that a dead endpoint
ends in an error and not in silence.
"""

from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

import httpx2
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from pdr_graph.llm.failure import causes, is_connection_error, is_transient, status_of

__all__ = [
    "Retry",
    "is_connection_error",
    "is_transient",
    "never_sent",
    "retry_after_s",
    "status_of",
]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is tried, and how long it waits between attempts."""

    attempts: int = 4
    """Requests at most, the first included."""
    backoff_s: float = 0.5
    """Scale of the exponential wait between attempts, before jitter."""
    max_wait_s: float = 20.0
    """Longest wait before an attempt, whatever Retry-After says."""

    def controller(self) -> AsyncRetrying:
        """Return tenacity's loop over attempts, which raises the last error."""
        return AsyncRetrying(
            stop=stop_after_attempt(self.attempts),
            retry=retry_if_exception(is_transient),
            wait=self._wait,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        named = retry_after_s(error) if error else None
        if named is not None:
            return min(named, self.max_wait_s)
        return wait_random_exponential(multiplier=self.backoff_s, max=self.max_wait_s)(state)


def never_sent(error: BaseException) -> bool:
    """Tell whether the server never saw the request, which then cost nothing."""
    kinds = (ConnectionRefusedError, httpx2.ConnectError, httpx2.ConnectTimeout)
    return any(isinstance(link, kinds) for link in causes(error))


def retry_after_s(error: BaseException) -> float | None:
    """Return the seconds that the server asks to wait, None if it does not."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, OverflowError):
        return None

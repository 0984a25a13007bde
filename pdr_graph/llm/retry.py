"""When a failed request is sent again, and after how long.

429, 5xx and lost connections are tried again, after the server's Retry-After where it names one.
Any other refusal would only be repeated. Waits and attempts are capped, so that a dead endpoint
ends in an error and not in silence.
"""

from collections.abc import Iterator
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


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed later."""
    status = status_of(error)
    if status is not None:
        return status in {408, 409, 425, 429} or status >= 500
    return is_connection_error(error)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an SDK's error carries, None if no answer came."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_connection_error(error: BaseException) -> bool:
    """Tell whether the connection failed, before or after the request was sent."""
    return any(
        isinstance(link, (ConnectionError, TimeoutError, httpx2.TransportError))
        for link in _causes(error)
    )


def never_sent(error: BaseException) -> bool:
    """Tell whether the server never saw the request, which then cost nothing."""
    kinds = (ConnectionRefusedError, httpx2.ConnectError, httpx2.ConnectTimeout)
    return any(isinstance(link, kinds) for link in _causes(error))


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


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__

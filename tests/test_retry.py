"""Which failures are worth another request, and how long to wait for it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState

from pdr_graph.llm.retry import (
    Retry,
    is_connection_error,
    is_transient,
    never_sent,
    retry_after_s,
    status_of,
)


class SdkError(Exception):
    """An error as the SDKs raise it: a status and the response that bore it."""

    def __init__(self, status: int | None, retry_after: str | None = None) -> None:
        super().__init__(f"status {status}")
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self.status_code = status
        self.response = httpx2.Response(status or 200, headers=headers)


def wrapped(cause: BaseException) -> Exception:
    """Return an SDK's own error around what the HTTP library raised."""
    outer = RuntimeError("connection error")
    outer.__cause__ = cause
    return outer


async def attempts(retry: Retry, *errors: Exception) -> tuple[int, list[float], object]:
    """Make a call that fails with these errors in turn; return requests, waits and the outcome."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    controller = retry.controller()
    controller.sleep = sleep
    left, num, outcome = list(errors), 0, "done"
    try:
        async for attempt in controller:
            with attempt:
                num += 1
                if left:
                    raise left.pop(0)
    except Exception as error:  # noqa: BLE001  # whichever it was is the outcome
        outcome = error
    return num, waits, outcome


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
async def test_a_busy_or_broken_server_is_asked_again(status):
    """Once it recovers the call succeeds."""
    num, waits, outcome = await attempts(Retry(), SdkError(status))
    assert (num, len(waits), outcome) == (2, 1, "done")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_not_repeated(status):
    """The same request would be refused again."""
    error = SdkError(status)
    assert await attempts(Retry(), error) == (1, [], error)


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionResetError(),
        ConnectionRefusedError(),
        TimeoutError(),
        httpx2.ReadError("gone"),
        httpx2.RemoteProtocolError("gone"),
        httpx2.ConnectError("gone"),
        httpx2.ConnectTimeout("slow"),
    ],
)
async def test_a_lost_connection_is_tried_again(cause):
    """However deep in the SDK's error it is."""
    num, _, outcome = await attempts(Retry(), wrapped(wrapped(cause)))
    assert (num, outcome) == (2, "done")


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("choices"), wrapped(OSError("disk"))])
async def test_any_other_error_is_not_the_connections(error):
    """A bug is not papered over by asking again."""
    assert await attempts(Retry(), error) == (1, [], error)


@given(cap=st.integers(1, 6))
async def test_attempts_are_capped_and_the_last_error_is_raised(cap):
    """A dead server ends in its own error and not in silence."""
    errors = [SdkError(500 + n) for n in range(10)]
    num, waits, outcome = await attempts(Retry(attempts=cap), *errors)
    assert (num, len(waits), outcome) == (cap, cap - 1, errors[cap - 1])


async def test_retry_after_in_seconds_is_waited_for():
    """The server knows best when it will be free."""
    _, waits, _ = await attempts(Retry(), SdkError(429, "7"), SdkError(503, "0.25"))
    assert waits == [7.0, 0.25]


async def test_retry_after_as_a_date_is_waited_for():
    """HTTP allows a date in its place."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    _, (wait,), _ = await attempts(Retry(), SdkError(429, date))
    assert 8 < wait <= 10


@pytest.mark.parametrize("value", ["3600", "inf", "Fri, 31 Dec 2999 23:59:59 GMT"])
async def test_a_long_retry_after_is_capped(value):
    """No server keeps a run waiting for an hour."""
    _, waits, _ = await attempts(Retry(max_wait_s=20), SdkError(429, value))
    assert waits == [20]


@pytest.mark.parametrize("value", ["-5", "nan", "Thu, 01 Jan 2015 00:00:00 GMT"])
def test_a_retry_after_in_the_past_is_now(value):
    """A clock that differs does not make a negative wait."""
    assert retry_after_s(SdkError(429, value)) == 0


@given(value=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_a_retry_after_that_is_no_time_is_ignored(value):
    """Whatever a proxy writes there, reading it does not raise."""
    seconds = retry_after_s(SdkError(429, value))
    assert seconds is None or seconds >= 0


def test_a_retry_after_beyond_the_calendar_is_ignored():
    """A date with too many digits is no time either."""
    date = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    assert retry_after_s(SdkError(429, date)) is None


def test_without_retry_after_there_is_none():
    """Errors with no response, and responses without the header."""
    assert retry_after_s(SdkError(500)) is None
    assert retry_after_s(ValueError("x")) is None


@given(attempt=st.integers(1, 50), backoff_s=st.floats(0, 10), max_wait_s=st.floats(0, 60))
def test_the_backoff_grows_with_jitter_and_is_capped(attempt, backoff_s, max_wait_s):
    """Between nothing and the cap; drafts that failed together do not come back together."""
    retry = Retry(backoff_s=backoff_s, max_wait_s=max_wait_s)
    state = RetryCallState(retry.controller(), None, (), {})
    state.attempt_number = attempt
    assert 0 <= retry.controller().wait(state) <= max_wait_s


def test_a_status_is_read_off_the_error():
    """Only a number is a status."""
    assert status_of(SdkError(429)) == 429
    assert status_of(SdkError(None)) is None
    assert status_of(ValueError("x")) is None


@pytest.mark.parametrize(
    ("cause", "unsent"),
    [
        (ConnectionRefusedError(), True),
        (httpx2.ConnectError("no such host"), True),
        (httpx2.ConnectTimeout("slow"), True),
        (httpx2.ReadError("gone"), False),
        (ConnectionResetError(), False),
    ],
)
def test_a_request_that_never_left_costs_nothing(cause, unsent):
    """A refused connection is no lost reply."""
    assert never_sent(wrapped(cause)) is unsent
    assert is_connection_error(wrapped(cause))


def test_a_status_decides_over_a_cause():
    """An answered request is judged by its status, whatever the SDK met on the way."""
    error = SdkError(400)
    error.__cause__ = ConnectionResetError()
    assert not is_transient(error)

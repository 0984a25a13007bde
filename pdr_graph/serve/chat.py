"""Answers chat requests, and accounts for each: status, seconds, tokens, a line in the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pdr_graph.serve.asked import Asked, understand
from pdr_graph.serve.catalogue import Catalogue
from pdr_graph.serve.conversation import Conversation
from pdr_graph.serve.event_stream import EventStream
from pdr_graph.serve.presence import ClientGoneError, while_present
from pdr_graph.serve.protocol import ChatRequest
from pdr_graph.serve.refusal import RefusalError, refusal_of
from pdr_graph.serve.repeats import Repeats
from pdr_graph.serve.runner import Runner

logger = logging.getLogger(__name__)

THREAD_HEADER = "X-PDR-Thread-Id"
CLIENT_LEFT = 499
"""Status under which a request is counted whose client did not wait; never sent."""


@dataclass(slots=True)
class Account:
    """One request, as it will be counted."""

    model: str
    """The preset; `unknown` for any other name, so that clients cannot make up labels."""
    thread_id: str = "-"
    status: int = 200


@dataclass(slots=True)
class Chat:
    """The endpoint `/v1/chat/completions`."""

    runner: Runner
    catalogue: Catalogue
    repeats: Repeats
    timeout_s: float
    log_prompts: bool = False

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Answer one request.

        Raises:
            RefusalError: it gets no answer.
        """
        if body.stream:
            return _Streamed(self, body)
        with self._account(body) as account:
            asked = self._understand(body, account)
            conversation = Conversation(self.runner, asked)
            try:
                reply = await while_present(request.receive, conversation.whole(), self.timeout_s)
            except Exception as error:
                raise self._refusal(error, asked) from error
            self._observe(conversation)
            return JSONResponse(reply, headers={THREAD_HEADER: asked.thread_id})

    async def stream(self, body: ChatRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request by a stream.

        Raises:
            RefusalError: it gets no answer, and the stream has not begun.
        """
        with self._account(body) as account:
            asked = self._understand(body, account)
            conversation = Conversation(self.runner, asked)

            def failed(error: BaseException) -> RefusalError:
                refusal = self._refusal(error, asked)
                account.status = refusal.status
                return refusal

            stream = EventStream(
                conversation.chunks(),
                failed,
                headers={THREAD_HEADER: asked.thread_id},
                timeout_s=self.timeout_s,
            )
            try:
                await stream(scope, receive, send)
            except Exception as error:
                raise self._refusal(error, asked) from error
            self._observe(conversation)

    def _understand(self, body: ChatRequest, account: Account) -> Asked:
        try:
            asked = understand(body, self.catalogue, self.repeats)
        except Exception as error:
            raise refusal_of(error) from error
        account.thread_id = asked.thread_id
        if self.log_prompts:
            logger.info("request.prompt thread=%s text=%r", asked.thread_id, asked.problem)
        return asked

    def _refusal(self, error: BaseException, asked: Asked) -> RefusalError:
        if isinstance(error, ClientGoneError):
            return RefusalError(CLIENT_LEFT, "the client left")
        return refusal_of(error, asked.thread_id if self.runner.can_resume(asked) else None)

    def _observe(self, conversation: Conversation) -> None:
        result = conversation.result
        if result is not None:
            self.runner.metrics.b_seq.labels(result.config.preset).observe(result.ledger.b_seq)

    @contextmanager
    def _account(self, body: ChatRequest) -> Iterator[Account]:
        name = body.model.partition("?")[0]
        account = Account(name if name in self.catalogue.names else "unknown")
        began = perf_counter()
        try:
            yield account
        except RefusalError as error:
            account.status = error.status
            raise
        except BaseException:
            account.status = 503  # the server was told to stop at once
            raise
        finally:
            seconds = perf_counter() - began
            metrics = self.runner.metrics
            metrics.requests.labels(account.model, account.status).inc()
            metrics.seconds.labels(account.model).observe(seconds)
            logger.info(
                "request.done model=%s thread=%s status=%d seconds=%.2f stream=%s",
                account.model,
                account.thread_id,
                account.status,
                seconds,
                bool(body.stream),
            )


class _Streamed(Response):
    """A response that writes itself; only then does it know how it ends."""

    def __init__(self, chat: Chat, body: ChatRequest) -> None:
        super().__init__()
        self._chat = chat
        self._request = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._chat.stream(self._request, scope, receive, send)

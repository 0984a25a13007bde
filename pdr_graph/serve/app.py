"""The ASGI application: OpenAI's chat completions and responses, models, health and metrics.

Every request for an answer is accounted for: its status, its seconds and a line in the log. So is
every refusal, whichever layer makes it (`refusal.py`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from openai import BaseModel as ReplyObject
from openai.types import responses as openai_responses
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pdr_graph.config import PDRConfig
from pdr_graph.serve.chat import ChatRequest, Completion
from pdr_graph.serve.guard import Guard, HostNames, client_keys
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.protocol import (
    Error,
    HealthBody,
    Inquiry,
    PresetList,
    PresetModel,
    body_of,
    components_of,
    read_request,
)
from pdr_graph.serve.refusal import (
    CLIENT_LEFT,
    RefusalError,
    RefusalLog,
    answer_error,
    refusal_of,
)
from pdr_graph.serve.reply import (
    ClientGoneError,
    EventStream,
    RunReply,
    json_of,
    while_present,
)
from pdr_graph.serve.request import (
    SPACE,
    Catalogue,
    Repeats,
    ResponseId,
    SolveRequest,
    ThreadSpace,
    understand,
)
from pdr_graph.serve.response_form import DeletedResponse, RunResponse, stored_response
from pdr_graph.serve.responses import ResponsesRequest
from pdr_graph.serve.runner import SolveRunner, StoredRun

logger = logging.getLogger(__name__)

THREAD_HEADER = "X-PDR-Thread-Id"


@dataclass(slots=True)
class AnswerDesk:
    """Answers requests of either protocol, and keeps account of them."""

    runner: SolveRunner
    catalogue: Catalogue
    repeats: Repeats
    options: ServeOptions

    async def answer(
        self, kind: type[ChatRequest] | type[ResponsesRequest], request: Request
    ) -> Response:
        """Answer one request of a kind.

        Raises:
            RefusalError: it gets no answer.
        """
        body = await asyncio.to_thread(read_request, kind, await request.body())
        if body.stream:
            return _Streamed(self, body)
        async with self.accounted(body, request.scope[SPACE]) as reply:
            whole = await while_present(request.receive, reply.whole(), self.options.timeout_s)
        return _json(whole, {THREAD_HEADER: reply.asked.thread_id})

    @asynccontextmanager
    async def accounted(
        self, body: ChatRequest | ResponsesRequest, space: ThreadSpace
    ) -> AsyncIterator[RunReply]:
        """Understand a request, turn every error into a refusal, and count how it ends."""
        name = body.model.partition("?")[0]
        # Clients must not be able to make up labels.
        model = name if name in self.catalogue.names else "unknown"
        metrics, began = self.runner.metrics, perf_counter()
        asked: SolveRequest | None = None
        status = 200
        try:
            read = await self._inquiry(body, space)
            asked = await asyncio.to_thread(understand, read, self.catalogue, self.repeats, space)
            if self.options.log_prompts:
                logger.info("request.prompt thread=%s text=%r", asked.place, asked.problem)
            reply = RunReply(self.runner, asked, body.form(asked))
            yield reply
            if reply.refused is not None:
                status = reply.refused.status
            if (result := reply.result) is not None:
                metrics.b_seq.labels(result.config.label).observe(result.ledger.b_seq)
        except Exception as error:
            refused = self.refusal(error, asked)
            status = refused.status
            if refused is error:
                raise
            raise refused from error
        except BaseException:
            status = 503  # the server was told to stop at once
            raise
        finally:
            seconds = perf_counter() - began
            metrics.requests.labels(model, status).inc()
            metrics.seconds.labels(model).observe(seconds)
            logger.info(
                "request.done model=%s thread=%s status=%d seconds=%.2f stream=%s",
                model,
                asked.place if asked is not None else "-",
                status,
                seconds,
                bool(body.stream),
            )

    def refusal(self, error: BaseException, asked: SolveRequest | None) -> RefusalError:
        """Return how a request is refused for an error; a run that is kept can be resumed."""
        if isinstance(error, ClientGoneError):
            return RefusalError(CLIENT_LEFT, "the client left")
        if asked is None:
            return refusal_of(error)
        way_on = asked.thread_id if self.runner.can_resume(asked) else None
        return refusal_of(error, way_on).naming(asked.thread_id, asked.place)

    async def response(self, response_id: str, space: ThreadSpace) -> tuple[ResponseId, StoredRun]:
        """Return the run of a response to a client of one key.

        Raises:
            RefusalError: 404, there is none of this id.
        """
        name = ResponseId.read(response_id)
        run = None
        if name is not None:
            place = space.place(name.thread_id)
            with _refusing(name.thread_id, place):
                run = await self.runner.recall(name.thread_id, place)
        if name is None or run is None or not name.names(run.problem):
            raise RefusalError(
                404,
                f"no response {response_id[:600]!r} is kept here; runs are kept for a time, with "
                "`store: false` not at all, and in memory only under a metadata.thread_id",
                param="response_id",
                code="response_not_found",
            )
        return name, run

    async def cancelled(self, response_id: str, space: ThreadSpace) -> openai_responses.Response:
        """Cancel the run of a response; its drafts are kept, and it can be resumed.

        Raises:
            RefusalError: it has ended, or another server runs it.
        """
        name, run = await self.response(response_id, space)
        if run.result is not None:
            raise RefusalError(400, "the response is complete, and cannot be cancelled")
        place = space.place(name.thread_id)
        with _refusing(name.thread_id, place):
            await self.runner.call_off(place)
        return stored_response(name, run).model_copy(update={"status": "cancelled"})

    async def deleted(self, response_id: str, space: ThreadSpace) -> DeletedResponse:
        """Delete a response, and the run that it was.

        Raises:
            RefusalError: it is being run.
        """
        name, _ = await self.response(response_id, space)
        place = space.place(name.thread_id)
        with _refusing(name.thread_id, place):
            await self.runner.forget(place)
        return DeletedResponse(id=response_id, object="response", deleted=True)

    async def _inquiry(self, body: ChatRequest | ResponsesRequest, space: ThreadSpace) -> Inquiry:
        if isinstance(body, ChatRequest) or body.previous_response_id is None:
            return await asyncio.to_thread(body.inquiry)
        try:
            name, run = await self.response(body.previous_response_id, space)
        except RefusalError as refusal:
            raise RefusalError(
                400,
                f"previous_response_id: {refusal}; send the earlier turns as input instead",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None
        if run.result is None:
            raise RefusalError(
                400,
                f"previous_response_id: {str(name)!r} has no answer yet; finish it first",
                param="previous_response_id",
                code="previous_response_unfinished",
            )
        earlier = name.conversation(run.problem, run.result.solution)
        return await asyncio.to_thread(body.inquiry, earlier)


class _Streamed(Response):
    """A response that runs the request as it is sent: its status is known only then."""

    def __init__(self, desk: AnswerDesk, body: ChatRequest | ResponsesRequest) -> None:
        super().__init__()
        self._desk = desk
        self._request = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self._desk
        async with desk.accounted(self._request, scope[SPACE]) as reply:

            def failed(error: BaseException) -> bytes:
                reply.refused = desk.refusal(error, reply.asked)
                # Its status was sent before: the guard sees a reply of 200.
                if reply.refused.status != CLIENT_LEFT:
                    desk.runner.metrics.refusals.note(reply.refused, scope)
                return reply.form.failure(reply.refused)

            headers = {THREAD_HEADER: reply.asked.thread_id}
            stream = EventStream(reply.events(), failed, headers, desk.options.timeout_s)
            await stream(scope, receive, send)


def _json(reply: ReplyObject, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_of(reply), media_type="application/json", headers=headers)


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "The request cannot be carried out as asked",
        401: "No or wrong key",
        403: "A host is named that the server does not answer to",
        404: "No such model or response",
        408: "The body took too long",
        409: "The thread is busy, or holds another run",
        413: "The body is too large",
        415: "The body is not JSON",
        429: "Too many requests wait; Retry-After says when to try again",
        500: "A defect of this server",
        502: "The model behind this server failed",
        503: "Shutting down or full, or the store does not answer",
        504: "Out of time; the run can be resumed",
    }.items()
}

_STREAM: dict[str, Any] = {
    "description": "The reply; with `stream`, chunks of it as server-sent events",
    # Without a schema: tools differ on whether it is one of the stream or of each event.
    "content": {"text/event-stream": {}},
}

_LINKS = {
    name: {"operationId": name, "parameters": {"response_id": "$response.body#/id"}}
    for name in ("retrieveResponse", "cancelResponse", "deleteResponse")
}
"""What may be done with a new response."""


class _Guarded(FastAPI):
    """The application behind its guard, which sees every reply: failures of the server too."""

    def __init__(self, options: ServeOptions, refusals: RefusalLog) -> None:
        # FastAPI's pages of documentation load scripts from another site.
        super().__init__(
            title="pdr-graph", version=version("pdr-graph"), docs_url=None, redoc_url=None
        )
        self._options = options
        self._keys = client_keys(options)
        self._refusals = refusals

    def build_middleware_stack(self) -> ASGIApp:
        options, hosts = self._options, None
        # A page that reaches a server by a name of its own still lacks the key.
        if options.allowed_hosts or not self._keys:
            hosts = HostNames([*options.allowed_hosts, options.host], addresses=options.public)
        return Guard(
            super().build_middleware_stack(),
            keys=self._keys,
            max_body_bytes=options.max_body_bytes,
            body_s=options.body_s,
            hosts=hosts,
            refusals=self._refusals,
            origins=options.cors,
            exposed=(THREAD_HEADER, "Retry-After"),
        )


def create_app(runner: SolveRunner, catalogue: Catalogue, options: ServeOptions) -> FastAPI:
    """Return the application; the address and port of its options are for the server."""
    app = _Guarded(options, runner.metrics.refusals)
    desk = AnswerDesk(runner, catalogue, Repeats(repeatable=options.repeatable), options)
    _add_answers(app, desk)
    _add_rest(app, runner, catalogue)
    for kind in (RefusalError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer_error)
    app.openapi = lambda: _openapi(app, catalogue)  # type: ignore[method-assign]  # FastAPI's own way
    return app


def _add_answers(app: FastAPI, desk: AnswerDesk) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses={200: _STREAM, **_REFUSALS},
        openapi_extra=body_of(ChatRequest),
    )
    async def _chat(request: Request) -> Response:
        """Answer a conversation by a run; with `stream`, by server-sent events."""
        return await desk.answer(ChatRequest, request)

    @app.post(
        "/v1/responses",
        response_model=RunResponse,
        responses={200: {**_STREAM, "links": _LINKS}, **_REFUSALS},
        openapi_extra=body_of(ResponsesRequest),
    )
    async def _create(request: Request) -> Response:
        """Answer text or a list of items by a run; with `stream`, by server-sent events."""
        return await desk.answer(ResponsesRequest, request)

    path = "/v1/responses/{response_id}"
    refusals = _only(400, 401, 403, 404, 408, 409, 413, 415, 503)

    @app.get(path, response_model=RunResponse, responses=refusals, operation_id="retrieveResponse")
    async def _retrieve(request: Request, response_id: str, stream: bool = False) -> Response:
        """Return a response whose run is kept, without the progress that led to it."""
        if stream:
            raise RefusalError(
                400, "a kept response is not streamed; leave stream out", param="stream"
            )
        with _refusing():
            return _json(stored_response(*await desk.response(response_id, request.scope[SPACE])))

    @app.post(
        f"{path}/cancel",
        response_model=RunResponse,
        responses=refusals,
        operation_id="cancelResponse",
    )
    async def _cancel(request: Request, response_id: str) -> Response:
        """Cancel a response that this server is working on; its run can be resumed."""
        with _refusing():
            return _json(await desk.cancelled(response_id, request.scope[SPACE]))

    @app.delete(
        path, response_model=DeletedResponse, responses=refusals, operation_id="deleteResponse"
    )
    async def _delete(request: Request, response_id: str) -> Response:
        """Delete a response, and the run that it was."""
        with _refusing():
            return _json(await desk.deleted(response_id, request.scope[SPACE]))


@contextmanager
def _refusing(thread_id: str = "", place: str = "") -> Iterator[None]:
    """Turn every error into a refusal, which tells a thread by the name that its client knows."""
    try:
        yield
    except Exception as error:
        raise refusal_of(error).naming(thread_id, place) from error


def _add_rest(app: FastAPI, runner: SolveRunner, catalogue: Catalogue) -> None:
    created = int(time.time())

    def described(name: str, config: PDRConfig) -> PresetModel:
        return PresetModel(
            id=name,
            object="model",
            created=created,
            owned_by="pdr-graph",
            max_model_len=runner.model.window,
            pdr=config.model_dump(mode="json"),
        )

    @app.get("/v1/models", responses=_only(401, 403))
    async def _models() -> PresetList:
        """List the presets."""
        return PresetList(
            object="list",
            data=[described(name, catalogue.default(name)) for name in catalogue.names],
        )

    @app.get("/v1/models/{model}", responses=_only(400, 401, 403, 404))
    async def _model(model: str, request: Request) -> PresetModel:
        """Describe one preset, with the settings that its name may hold."""
        if query := request.url.query:
            model = f"{model}?{query}"
        config, _ = catalogue.resolve(model, {})
        return described(model, config)

    @app.get("/health", responses=_only(403))
    async def _health(response: Response) -> HealthBody:
        """Tell whether this server takes requests; 503 while it shuts down."""
        admission = runner.admission
        response.status_code = 503 if admission.closed else 200
        return HealthBody(
            status="draining" if admission.closed else "ok",
            model=runner.model.name,
            running=admission.running,
            waiting=admission.waiting,
        )

    @app.get("/metrics", response_class=Response, responses=_only(401, 403))
    async def _metrics() -> Response:
        """Return the counters in Prometheus' format."""
        return Response(runner.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _REFUSALS[status] for status in statuses}


def _openapi(app: FastAPI, catalogue: Catalogue) -> dict[str, Any]:
    """Return FastAPI's document with our models' names, and without 422, which is 400 here."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        names = "|".join(catalogue.names)
        for kind in (ChatRequest, ResponsesRequest):
            document["components"]["schemas"] |= components_of(kind)
            request = document["components"]["schemas"][kind.__name__]
            request["properties"]["model"]["pattern"] = rf"^({names})(\?.*)?$"
        app.openapi_schema = document
    return app.openapi_schema

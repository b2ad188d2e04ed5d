"""The HTTP interface of one replica, as a FastAPI app. It runs under Ray Serve, or any ASGI server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from zerogr_ray.decoding.job import Request as SearchOf
from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.rows import Hit
from zerogr_ray.serving.config import ServiceConfig
from zerogr_ray.serving.errors import Denied, NotFound, Overloaded, TooLarge, Unavailable
from zerogr_ray.serving.guard import Guard, problem
from zerogr_ray.serving.keys import Keys, Rates, Right
from zerogr_ray.serving.searcher import Searcher
from zerogr_ray.serving.watching import Metrics, RequestLog
from zerogr_ray.serving.wire import (
    DocumentAnswer,
    DocumentRequest,
    ErrorAnswer,
    Health,
    Indexes,
    IndexFacts,
    Name,
    SearchAnswer,
    SearchRequest,
    WireHit,
)

STATUS: list[tuple[type[ZeroGRError], int, str]] = [
    (NotFound, 404, "not_found"),
    (TooLarge, 413, "too_large"),
    (InputError, 400, "bad_request"),
    (Overloaded, 429, "overloaded"),
    (Unavailable, 503, "unavailable"),
]

CODES = {401: "no_key", 403: "no_right", 404: "not_found", 405: "bad_method", 400: "bad_request", 422: "bad_request"}

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)

bearer = HTTPBearer(auto_error=False, description="An API key.")


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """These answers, for the OpenAPI document."""
    return {code: {"model": ErrorAnswer} for code in codes}


def create_app(
    searcher: Searcher,
    cfg: ServiceConfig,
    keys: Keys,
    metrics: Metrics,
    requests: RequestLog | None = None,
    tell_trace: bool = True,
) -> FastAPI:
    """The app around a replica that has been started."""
    app = FastAPIOffline(
        redoc_url=None,
        title="zerogr_ray search",
        version="1",
        description="Generative retrieval: a language model answers a query with the docids of documents.",
        responses=errors(400, 401, 403, 413, 422, 429, 503),
    )
    rates = Rates(cfg.limits.rate, cfg.limits.burst)

    def allowed(right: Right) -> Any:
        async def check(
            request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
        ) -> None:
            key = keys.find(given.credentials if given else None)
            if key is None:
                raise Denied("give an API key of this service: Authorization: Bearer KEY", known=False)
            note(request, key=key.name)
            if right not in key.rights:
                raise Denied(f"this key has no right to {right}", known=True)
            if wait := rates.take(key.name, searcher.replicas):
                raise Overloaded(f"the key {key.name} asks more often than its rate allows", wait)

        return Depends(check)

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        text = files("zerogr_ray.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})

    @app.get("/healthz", responses=errors(503))
    async def healthz() -> Health:
        """Whether this replica is alive."""
        searcher.healthy()
        return Health()

    @app.get("/readyz", responses=errors(503))
    def readyz() -> Health:
        """Whether searches are answered."""
        searcher.ready()
        return Health()

    @app.get("/v1/indexes", dependencies=[allowed("search")])
    async def indexes() -> Indexes:
        """The indexes of this service, the default first."""
        return Indexes(indexes=[IndexFacts(**searcher.current[name].facts()) for name in cfg.indexes])

    @app.post(
        "/v1/search",
        dependencies=[allowed("search")],
        response_model=SearchAnswer,
        response_model_exclude_none=True,
        responses=errors(404) | {200: {"content": {"text/event-stream": {}}, "model": SearchAnswer}},
    )
    async def search(
        request: Request,
        asked: SearchRequest,
        stream: Annotated[bool, Query(description="Send each hit as it is drawn, as server-sent events.")] = False,
    ) -> Any:
        """Search. With `stream=true`: events `hit`, then one event `done` with the version and the seconds."""
        name = searcher.named(asked.index)
        try:
            wanted = asked.requests(cfg.limits, stream)
        except ValueError as error:
            raise InputError(str(error)) from None
        note(request, index=name, queries=len(wanted), k=asked.k, mode=asked.mode, stream=stream)
        if cfg.log_queries:
            note(request, texts=[one.query for one in wanted])
        if stream:
            if asked.query is None:
                raise InputError("one query can be streamed, several cannot; send them one by one")
            return await streamed(request, name, wanted)
        found = await searcher.search(name, wanted)
        answer = SearchAnswer.of(name, found, asked.query is not None)
        note(request, version=found.version, hits=sum(map(len, found.hits)), stages=answer.seconds.model_dump())
        return answer

    async def streamed(request: Request, name: str, wanted: list[SearchOf]) -> StreamingResponse:
        """The answer begins with its first event, so that a refusal still has a status of its own."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[str]()

        def on_hits(hits: list[Hit], titles: dict[str, str], version: str) -> None:
            for hit in hits:
                told = WireHit.of(hit, titles[hit.docno]).model_dump(exclude_none=True)
                loop.call_soon_threadsafe(events.put_nowait, event("hit", told))

        task = asyncio.create_task(searcher.search(name, wanted, on_hits))
        first = asyncio.create_task(events.get())
        await asyncio.wait({task, first}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and (failure := task.exception()) is not None and not first.done():
            first.cancel()
            raise failure

        async def body() -> AsyncIterator[str]:
            pending: asyncio.Task[str] = first
            try:
                while True:
                    await asyncio.wait({task, pending}, return_when=asyncio.FIRST_COMPLETED)
                    if pending.done():
                        yield pending.result()
                        pending = asyncio.create_task(events.get())
                    elif events.empty():
                        break
                yield event(*ending(request, name, task))
            finally:
                pending.cancel()
                task.cancel()

        return StreamingResponse(body(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @app.post("/v1/documents", dependencies=[allowed("change")], responses=errors(404))
    async def add(request: Request, asked: DocumentRequest) -> DocumentAnswer:
        """Add a document, or replace the one of this docno. The next search on every replica can find it."""
        name = searcher.named(asked.index)
        note(request, index=name)
        if (asked.docid is None) == (asked.text is None):
            raise InputError("give either a docid or the text to write one from")
        if asked.text is not None and len(asked.text) > cfg.limits.text_chars:
            raise TooLarge(f"a text of {len(asked.text)} characters; this service takes {cfg.limits.text_chars}")
        docid = await searcher.add(name, asked.docno, asked.docid, asked.text or "", asked.title)
        return DocumentAnswer(index=name, docno=asked.docno, docid=docid)

    @app.delete("/v1/documents/{docno:path}", dependencies=[allowed("change")], responses=errors(404))
    async def delete(request: Request, docno: str, index: Annotated[Name | None, Query()] = None) -> DocumentAnswer:
        """Delete a document. No search shows it from the moment this answers."""
        name = searcher.named(index)
        note(request, index=name)
        await searcher.delete(name, docno)
        return DocumentAnswer(index=name, docno=docno)

    @app.exception_handler(ZeroGRError)
    async def refused(request: Request, error: ZeroGRError) -> JSONResponse:
        headers = {}
        if isinstance(error, Denied):
            status, code = (403, "no_right") if error.known else (401, "no_key")
            headers = {} if error.known else {"www-authenticate": "Bearer"}
        else:
            status, code = next(((s, c) for kind, s, c in STATUS if isinstance(error, kind)), (500, "internal"))
        if isinstance(error, Overloaded):
            headers = {"retry-after": str(math.ceil(error.retry_after))}
        if status == 503:
            headers = {"retry-after": "1"}
        if status == 500:
            raise error  # the guard says it without a path
        return JSONResponse(problem(code, str(error), request.scope["zerogr.trace"]), status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        said = f"{where}: {first['msg']}"[:500].encode("ascii", "backslashreplace").decode()
        return JSONResponse(problem("bad_request", said, request.scope["zerogr.trace"]), 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        body = problem(CODES.get(error.status_code, "error"), str(error.detail), request.scope["zerogr.trace"])
        return JSONResponse(body, error.status_code, dict(error.headers or {}))

    app.add_middleware(
        Guard, body_bytes=cfg.limits.body_bytes, metrics=metrics, requests=requests, tell_trace=tell_trace
    )
    return app


def note(request: Request, **facts: Any) -> None:
    """Put facts into the request's line of the log."""
    request.scope["zerogr.log"].update(facts)


def event(kind: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n"


def ending(request: Request, name: str, task: asyncio.Task[Any]) -> tuple[str, dict[str, Any]]:
    """The last event of a stream: kind and data."""
    error = task.exception()
    if error is None:
        found = task.result()
        answer = SearchAnswer.of(name, found, single=True)
        note(request, version=found.version, hits=len(found.hits[0]), stages=answer.seconds.model_dump())
        return "done", {"index": name, "version": found.version, "seconds": answer.seconds.model_dump()}
    trace = request.scope["zerogr.trace"]
    for kind, _, code in STATUS:
        if isinstance(error, kind):
            return "error", problem(code, str(error), trace)
    return "error", problem("internal", "this is a defect of the service; its log has the trace", trace)

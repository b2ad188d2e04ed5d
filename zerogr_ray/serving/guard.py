"""Around every request: a trace id, a bound on its size, a line in the log, no stack trace in an answer."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zerogr_ray.serving.watching import Metrics, RequestLog

TRACE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What a caller may send as X-Request-ID."""

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

log = logging.getLogger("zerogr.serving")


class Guard:
    """The outermost part of the app."""

    def __init__(
        self, app: ASGIApp, body_bytes: int, metrics: Metrics, requests: RequestLog | None, tell_trace: bool = True
    ) -> None:
        """Not `tell_trace` where the server in front puts the X-Request-ID into answers itself, as Serve does."""
        self.app, self.body_bytes, self.metrics, self.requests = app, body_bytes, metrics, requests
        self.tell_trace = tell_trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        trace = _trace(scope)
        noted: dict[str, Any] = {}
        scope["zerogr.trace"], scope["zerogr.log"] = trace, noted

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), *HEADERS]
                headers += [(b"x-request-id", trace.encode())] if self.tell_trace else []
                message = {**message, "headers": headers}
            await send(message)

        try:
            body = await _body(scope, receive, self.body_bytes)
            if body is None:
                what = f"the request has more than the {self.body_bytes} bytes that this service takes"
                await _problem(sending, 413, "too_large", what, trace)
            else:
                await self.app(scope, _replayed(body, receive), sending)
        except Exception:
            log.error("request %s failed\n%s", trace, traceback.format_exc())
            if status:
                raise  # the answer had begun: all that is left is to cut it off
            what = "this is a defect of the service; its log has the trace"
            await _problem(sending, 500, "internal", what, trace)
        finally:
            self._note(scope, status, time.monotonic() - began, trace, noted)

    def _note(self, scope: Scope, status: int, seconds: float, trace: str, noted: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # not the path itself: it has no bound, and a docno
        self.metrics.record("zerogr_request_seconds", seconds, route=route, code=str(status))
        self.metrics.record("zerogr_requests", 1, route=route, code=str(status))
        if self.requests is not None:
            row = {"at": round(time.time(), 3), "trace": trace, "method": scope["method"], "route": route}
            self.requests.write({**row, "status": status, "seconds": round(seconds, 4), **noted})


def problem(code: str, message: str, trace: str) -> dict[str, Any]:
    """The body of every answer that is not 2xx."""
    return {"error": {"code": code, "message": message, "trace": trace}}


async def _problem(send: Callable[[Message], Any], status: int, code: str, message: str, trace: str) -> None:
    body = json.dumps(problem(code, message, trace)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _trace(scope: Scope) -> str:
    """The caller's X-Request-ID where it is a plain word, else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if TRACE.fullmatch(given) else uuid.uuid4().hex


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body; None where it is longer than `limit`."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if not said.isdigit() or int(said) > limit:
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""  # gone before it was whole
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the app receives: the body in one piece, then whatever comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

"""A small client: `Client("http://127.0.0.1:8000").search("reset my password")`. It loads httpx, and no torch."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.serving.errors import Overloaded, Unavailable

AGAIN = (408, 429, 502, 503, 504)
"""Statuses after which the same request may be answered; 408 is what Ray Serve says of one that it gave up."""


@dataclass(frozen=True, slots=True)
class RemoteHit:
    """One document found by a service; see rows.Hit."""

    docno: str
    docid: str
    title: str
    rank: int
    score: float
    draw: int
    temperature: float
    logprob: float
    docid_logprob: float | None = None
    rerank: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits for each query, all by one version of the index."""

    index: str
    version: str
    results: list[list[RemoteHit]]


class Client:
    """Asks a service. What was refused for want of room, or lost with a replica, is tried again.

    That is 429 and 503, after as long as the service asks for; and lost connections and what a proxy says of them.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 90.0, retries: int = 4) -> None:
        """`timeout` in seconds for one try; `retries` further tries. Close it, or use it in a `with` block."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise InputError(f"{url} is no address of a service; write it as http://127.0.0.1:8000")
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self.url, self.retries = url, retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(self, query: str, k: int = 10, index: str | None = None, **settings: Any) -> list[RemoteHit]:
        """The best `k` documents. `settings` are those of POST /v1/search: instruction, seed, mode, order, docnos, …

        Raises InputError for what the service refuses, Overloaded and Unavailable where it cannot answer now.
        """
        return self.search_many([query], k, index, **settings).results[0]

    def search_many(self, queries: Sequence[str], k: int = 10, index: str | None = None, **settings: Any) -> Answer:
        """Hits for each query. Raises as `search`."""
        asked = {"queries": list(queries), "k": k, **({"index": index} if index else {}), **settings}
        said = self._call("POST", "/v1/search", asked)
        return Answer(said["index"], said["version"], [[_hit(row) for row in rows] for rows in said["results"]])

    def stream(self, query: str, k: int = 10, index: str | None = None, **settings: Any) -> Iterator[RemoteHit]:
        """Each hit as it is drawn. A stream that has begun is not tried again. Raises as `search`."""
        asked = {"query": query, "k": k, **({"index": index} if index else {}), **settings}
        for attempt in range(self.retries + 1):
            begun = False
            try:
                with self._http.stream("POST", "/v1/search?stream=true", json=asked) as answer:
                    if begun := answer.status_code == 200:
                        yield from self._hits(answer)
                        return
                    answer.read()
            except httpx.TransportError as error:
                if begun:
                    raise Unavailable(f"{self.url}: the stream broke off ({error}); ask again") from None
                self._wait(attempt, error)
            else:
                self._wait(attempt, answer)

    def indexes(self) -> list[dict[str, Any]]:
        """The indexes of the service."""
        return list(self._call("GET", "/v1/indexes")["indexes"])

    def add(
        self, docno: str, docid: str | None = None, text: str | None = None, title: str = "", index: str | None = None
    ) -> str:
        """Add a document under `docid`, or under one that the service writes from `text`; returns the docid."""
        given = {"docno": docno, "docid": docid, "text": text, "title": title, "index": index}
        said = self._call("POST", "/v1/documents", {name: value for name, value in given.items() if value is not None})
        return str(said["docid"])

    def delete(self, docno: str, index: str | None = None) -> None:
        """Delete a document. Raises InputError where there is none."""
        where = f"/v1/documents/{quote(docno, safe='')}" + (f"?index={quote(index)}" if index else "")
        self._call("DELETE", where)

    def _hits(self, answer: httpx.Response) -> Iterator[RemoteHit]:
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind == "hit":
                yield _hit(json.loads(line[6:]))
            elif line.startswith("data: ") and kind == "error":
                raise Unavailable(json.loads(line[6:])["error"]["message"])
        if kind != "done":
            raise Unavailable(f"{self.url}: the stream broke off; ask again")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                self._wait(attempt, error)
                continue
            if answer.status_code < 300:
                return self._read(answer)
            if method == "DELETE" and answer.status_code == 404 and attempt:
                return {}  # the try before has deleted it, and its answer was lost
            self._wait(attempt, answer)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            said = answer.json()
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise InputError(f"{answer.request.url} answers, but not as a search service does; is the address right?")
        return said

    def _wait(self, attempt: int, what: httpx.Response | httpx.TransportError) -> None:
        """Wait before the next try; raises what the caller shall be told where there is none."""
        last, wait = attempt == self.retries, 0.25 * 2**attempt
        if isinstance(what, httpx.Response):
            if last or not _may_succeed(what):
                raise _refusal(what)
            asked = what.headers.get("retry-after", "")
            wait = float(asked) if asked.isdigit() else wait
        elif last:
            raise Unavailable(f"{self.url} does not answer ({what}); is it running? zerogr serve") from None
        time.sleep(min(30.0, wait) * random.uniform(1.0, 1.25))  # not all callers at the same moment


def _may_succeed(answer: httpx.Response) -> bool:
    """Whether the same request may be answered later. A 500 that is not in the service's own form is its proxy's."""
    lost = answer.status_code == 500 and not answer.headers.get("content-type", "").startswith("application/json")
    return answer.status_code in AGAIN or lost


def _refusal(answer: httpx.Response) -> ZeroGRError:
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"
    if answer.status_code == 429:
        return Overloaded(said, float(answer.headers.get("retry-after", "1")))
    return Unavailable(said) if answer.status_code >= 500 else InputError(said)


def _hit(row: dict[str, Any]) -> RemoteHit:
    return RemoteHit(**{field.name: row[field.name] for field in fields(RemoteHit) if field.name in row})

"""The client against a real server on a socket that refuses first and answers later."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.serving.ports import free_port
from zerogr_ray.errors import InputError
from zerogr_ray.serving.client import Client
from zerogr_ray.serving.errors import Overloaded, Unavailable

HIT = {"docno": "d1", "docid": "red fox", "title": "T", "rank": 1, "score": 1.0, "draw": 0, "temperature": 0.0}
ANSWER = {"index": "docs", "version": "v", "results": [[HIT | {"logprob": -1.0, "something_new": 1}]], "seconds": {}}


@contextmanager
def server(*answers):
    """(url, requests seen): each request gets the next of `answers`: (status, headers, body)."""
    seen, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append((self.path, dict(self.headers), json.loads(body or b"null")))
            status, headers, said = left.pop(0)
            text = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in ({"content-length": str(len(text))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_DELETE = do_POST

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", seen
        listening.shutdown()


def refusal(code, message):
    return {"error": {"code": code, "message": message, "trace": "t"}}


def test_a_busy_service_is_asked_again_until_it_answers():
    busy = (429, {"retry-after": "0"}, refusal("overloaded", "full"))
    away = (503, {"retry-after": "0"}, refusal("unavailable", "starting"))
    with server(busy, away, (200, {}, ANSWER)) as (url, seen), Client(url, key="zgr_x") as client:
        (hit,) = client.search("fox", k=3, index="docs", seed=5)
        assert (hit.docno, hit.logprob) == ("d1", -1.0)
    assert len(seen) == 3
    path, headers, body = seen[-1]
    assert path == "/v1/search"
    assert headers["authorization"] == "Bearer zgr_x"
    assert body == {"queries": ["fox"], "k": 3, "index": "docs", "seed": 5}


def test_what_stays_busy_and_what_is_refused_is_raised_in_the_services_words():
    busy = (429, {"retry-after": "0"}, refusal("overloaded", "full"))
    with server(busy, busy) as (url, seen), Client(url, retries=1) as client:
        with pytest.raises(Overloaded, match="full"):
            client.search("fox")
        assert len(seen) == 2
    with server((400, {}, refusal("bad_request", "no index 'x'"))) as (url, seen), Client(url) as client:
        with pytest.raises(InputError, match="no index 'x'"):
            client.search("fox")
        assert len(seen) == 1
    defect = (500, {"content-type": "application/json"}, refusal("internal", "a defect"))
    with server(defect) as (url, seen), Client(url) as client:
        with pytest.raises(Unavailable, match="a defect"):
            client.search("fox")
        assert len(seen) == 1


def test_what_was_lost_with_a_replica_is_asked_again():
    lost = (500, {"content-type": "text/plain"}, "Internal Server Error")
    with server(lost, (408, {}, "timed out"), (200, {}, ANSWER)) as (url, seen), Client(url) as client:
        assert client.search("fox")
        assert len(seen) == 3
    deleted = (404, {"content-type": "application/json"}, refusal("not_found", "no document"))
    with server(lost, deleted) as (url, _), Client(url) as client:
        client.delete("d1")
    with server(deleted) as (url, _), Client(url) as client, pytest.raises(InputError, match="no document"):
        client.delete("d1")


def test_an_address_of_something_else_is_said():
    with server((200, {}, "<html>")) as (url, _), Client(url) as client, pytest.raises(InputError, match="address"):
        client.search("fox")


def test_nobody_there_is_said_with_the_next_command():
    nobody = Client(f"http://127.0.0.1:{free_port()}", retries=0)
    with nobody as client, pytest.raises(Unavailable, match="zerogr serve"):
        client.search("fox")
    with Client(nobody.url, retries=0) as client, pytest.raises(Unavailable, match="zerogr serve"):
        list(client.stream("fox"))
    with pytest.raises(InputError, match="no address"):
        Client("http://[")


def test_a_stream_that_breaks_off_is_not_taken_for_an_answer():
    hit = "event: hit\ndata: " + json.dumps(HIT | {"logprob": -1.0}) + "\n\n"
    done = 'event: done\ndata: {"version": "v"}\n\n'
    busy = (429, {"retry-after": "0"}, refusal("overloaded", "full"))
    with server(busy, (200, {}, hit + done), (200, {}, hit)) as (url, seen), Client(url) as client:
        assert [one.docno for one in client.stream("fox")] == ["d1"]
        assert len(seen) == 2, "one that has not begun is asked again"
        with pytest.raises(Unavailable, match="broke off"):
            list(client.stream("fox"))

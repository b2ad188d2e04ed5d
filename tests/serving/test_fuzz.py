"""Random bad requests over a real socket: schemathesis on the OpenAPI document, and bytes changed at random.

No answer may be 5xx (429 and 413 are refusals), every refusal has the same form, and none may hang.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from tests.serving.service import served, tiny_index
from tests.serving.service import settings as service_settings
from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.serving.writer import DocidWriter

pytestmark = pytest.mark.model

MANY = 10_000
SECONDS = 30
"""An answer that takes longer counts as a hang."""

BODY = {
    "query": "red fox",
    "k": 5,
    "seed": 1,
    "mode": "reference",
    "docnos": ["d1", "d2", "d3"],
    "instruction": "Find it.",
    "t_max": 1.5,
    "order": "draw",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    index = tiny_index(tmp_path_factory.mktemp("fuzz"), count=30)
    writer = DocidWriter(
        DocIdConfig(max_new_tokens=4), LLMConfig(model=str(index / "model"), engine="transformers", dtype="float32")
    )

    async def write(docno, title, text):
        return await asyncio.to_thread(writer.write, docno, title, text)

    cfg = service_settings(index, tmp_path_factory.mktemp("state"), limits={"k": 50, "draws": 50, "seconds": SECONDS})
    with served(cfg, write=write) as (client, _):
        yield client


ODD = [b"\x00", b"\xff\xfe", b"1e999", b"-", b"[[[[", b'"', b"\\ud800", b"NaN"]


def check(status, text):
    assert status < 500, text
    if status >= 400:
        error = json.loads(text)["error"]
        assert set(error) == {"code", "message", "trace"}
        assert "Traceback" not in error["message"]
        assert "/tmp" not in error["message"]


def fuzz_the_document(client, examples):
    """`examples` requests to every operation of the OpenAPI document, half of them against its rules."""
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    quiet = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
    counted = 0
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in GenerationMode:
            if mode.is_negative and operation.path in ("/healthz", "/readyz", "/v1/indexes"):
                continue  # nothing in them can be wrong

            @settings(max_examples=max(1, examples // 2), **quiet)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                nonlocal counted
                counted += 1
                answer = case.call(timeout=SECONDS)
                check(answer.status_code, answer.text)

            ask()
    return counted


def fuzz_the_bytes(client, examples):
    """Whole HTTP requests with bytes of their body changed, dropped, doubled or cut off."""
    rng = random.Random(7)
    whole = json.dumps(BODY).encode()
    host, port = client.base_url.host, client.base_url.port
    for _ in range(examples):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(body))
            kind = rng.randrange(4)
            if kind == 0:
                body[place] = rng.randrange(256)
            elif kind == 1:
                del body[place : place + rng.randint(1, 4)]
            elif kind == 2:
                body[place:place] = body[place : place + 8] * rng.randint(1, 20)
            else:
                body[place:place] = rng.choice(
                    [b"\x00", b"\xff\xfe", b"1e999", b"-", b"[[[[", b'"', b"\\ud800", b"NaN"]
                )
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            connection.sendall(
                b"POST /v1/search HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), bytes(body))
            )
            said = b""
            while part := connection.recv(65536):
                said += part
        head, _, text = said.partition(b"\r\n\r\n")
        check(int(head.split()[1]), text)


def test_some_random_requests_get_an_answer_that_is_no_5xx(client):
    assert fuzz_the_document(client, 20) > 50
    fuzz_the_bytes(client, 200)


@pytest.mark.fault
@pytest.mark.timeout(3600)
def test_ten_thousand_random_requests_get_an_answer_that_is_no_5xx(client):
    counted = fuzz_the_document(client, MANY // 4)
    assert counted > MANY // 4
    fuzz_the_bytes(client, max(MANY // 4, MANY - counted))

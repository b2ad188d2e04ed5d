"""The service as users run it: `zerogr serve`, real Ray Serve, two replicas, real HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.serving.cluster import Load, running
from tests.serving.service import tiny_index, until
from zerogr_ray.serving.client import Client

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return [tiny_index(tmp_path_factory.mktemp(f"index{seed}"), seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def service(indexes, tmp_path_factory):
    state = tmp_path_factory.mktemp("serving")
    more = {"replicas": 2, "cpus": 0.5, "llm.model": indexes[0] / "model", "docids.max_new_tokens": 8}
    pairs = [part for name, value in more.items() for part in ("--set", f"{name}={value}")]
    with running(f"docs={indexes[0]}", *pairs, state=state) as service:
        yield service


@pytest.fixture
def client(service):
    with Client(service.url) as client:
        yield client


def zerogr(*arguments):
    command = [sys.executable, "-m", "zerogr_ray.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def all_versions(service, asks=40):
    """The versions that many searches are answered by, whichever replica gets them."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        return {client.post("/v1/search", json={"query": "fox", "k": 1}).json()["version"] for _ in range(asks)}


def test_both_replicas_answer_and_share_the_owners_trie(service, client):
    assert len(service.replicas()) == 2
    assert len(service.actors("TrieOwner")) == 1
    beats = service.state.alive()
    assert len(beats) == 2
    for beat in beats:
        maps = Path(f"/proc/{beat.pid}/maps").read_text()
        assert "plasma" in maps
        assert "/trie/" not in maps  # the index's own files are mapped only where the owner cannot be had
    first = client.search("red fox", k=5)
    assert [hit.rank for hit in first] == [1, 2, 3, 4, 5]
    assert client.search("red fox", k=5) == first
    streamed = list(client.stream("red fox", k=5))
    assert streamed == first


def test_a_deleted_document_is_never_found_again_on_any_replica(client):
    for docno in ("d1", "d2", "d3"):
        client.delete(docno)
        for _ in range(6):
            assert docno not in [hit.docno for hit in client.search("fox", k=100)]
    client.add("new", docid="red fox web hat", title="A new one")
    for _ in range(6):
        assert "new" in [hit.docno for hit in client.search("fox", k=100)]


def test_a_document_gets_its_docid_from_the_docid_model(client):
    """The tiny model in the place of the one that writes docids: whatever it writes becomes a docid."""
    docid = client.add("faq", text="The red fox wears a hat.", title="Foxes")
    assert 1 <= len(docid.split()) <= 8
    (hit,) = client.search("fox", docnos=["faq"])
    assert (hit.docid, hit.title) == (docid, "Foxes")
    assert client.add("faq", text="The red fox wears a hat.", title="Foxes") == docid


def test_the_command_line_searches_a_service(service, client):
    ran = zerogr("search", service.url, "red fox", "-k", "3")
    assert ran.returncode == 0, ran.stderr
    assert [line.split("\t")[1] for line in ran.stdout.splitlines()] == [h.docno for h in client.search("red fox", 3)]
    ran = zerogr("search", service.url, "red fox", "--name", "other")
    assert ran.returncode == 2
    assert "there is no index 'other'" in ran.stderr


def test_a_switch_under_load_fails_no_request_and_can_be_taken_back(service, indexes, tmp_path):
    before = all_versions(service)
    command = ["serve", f"docs={indexes[0]}", "--state", str(service.state.path)]
    with Load(service.url, clients=3, pause=0.05) as load:
        until(lambda: len(load.rows) > 10, 60)
        ran = zerogr(*command, "--activate", str(indexes[1]))
        assert ran.returncode == 0, ran.stderr
        switched = time.monotonic()
        until(lambda: len(load.statuses(switched)) > 10, 60)
    assert set(load.statuses()) == {200}
    version = ran.stdout.splitlines()[-1].split("\t")[2]
    assert {row[2] for row in load.rows} == before | {version}
    assert {row[2] for row in load.rows if row[0] > switched} == {version}
    refused = zerogr(*command, "--activate", str(tmp_path))
    assert refused.returncode == 2
    assert "is not an index" in refused.stderr
    assert all_versions(service) == {version}
    assert zerogr(*command, "--rollback").returncode == 0
    assert all_versions(service) == before


def test_prometheus_is_told_what_an_operator_wants(service, client):
    client.search("red fox")
    names = {
        "zerogr_request_seconds_bucket",
        "zerogr_stage_seconds_bucket",
        "zerogr_waves_per_round_bucket",
        "zerogr_tokens_per_query_bucket",
        "zerogr_round_queries_bucket",
        "zerogr_cache_share_bucket",
        "zerogr_documents",
        "zerogr_tombstones",
        "zerogr_index_info",
        "zerogr_requests_total",
    }

    def told():
        text = httpx.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
        return {re.sub(r"^ray_", "", name) for name in re.findall(r"^(\w*zerogr_\w+)", text, re.MULTILINE)}

    until(lambda: names <= told(), 60)


def test_the_log_has_a_line_for_every_request_by_its_trace(service):
    httpx.post(f"{service.url}/v1/search", json={"query": "secret"}, headers={"x-request-id": "trace-77"})
    lines = [line for file in (service.state.path / "logs").iterdir() for line in file.read_text().splitlines()]
    (found,) = [json.loads(line) for line in lines if "trace-77" in line]
    assert found["status"] == 200
    assert "secret" not in "".join(lines)


def test_nothing_listens_beyond_loopback_without_keys(indexes):
    ran = zerogr("serve", indexes[0], "--host", "0.0.0.0")
    assert ran.returncode == 2
    assert "has no keys" in ran.stderr


def test_the_service_ends_when_it_is_told_to(service):
    children = service.actors("ray::")
    service.process.terminate()
    assert service.process.wait(90) == 0
    until(lambda: not [child for child in children if child.is_running() and child.status() != "zombie"], 30)
    assert service.state.alive() == []

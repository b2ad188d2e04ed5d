"""The whole path with nothing replaced: real Ray, real vLLM, the real 135M model, a dozen documents, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from zerogr_ray.config import DEFAULT_MODEL
from zerogr_ray.models import find_model
from zerogr_ray.queries.filter import COUNTED

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(2400)]

DOCUMENTS = {
    "sorting": "Merge sort splits a list into halves, sorts each half and merges the two sorted halves.",
    "json": "json.dumps turns a Python object such as a dict into a JSON formatted string.",
    "foxes": "The red fox lives in forests and towns and hunts mice, voles and rabbits.",
    "bread": "Sourdough bread rises with wild yeast and bacteria instead of baker's yeast.",
    "moon": "The Moon orbits the Earth in about 27 days and always shows it the same side.",
    "chess": "In chess a player castles by moving the king two squares towards a rook.",
    "unicode": "UTF-8 写文字 תווים 🦊 encodes every character in one to four bytes.",
    "tea": "Green tea is made from leaves that were heated soon after picking, so they do not oxidise.",
    "tides": "Tides rise and fall because the gravity of Moon and Sun pulls on the oceans.",
    "glass": "Glass is made by melting sand with soda and lime at high temperature.",
    "bees": "Honey bees dance to tell their hive where flowers are.",
    "trains": "A train stays on the track because its wheels are slightly conical.",
}

SMALL = [
    "--set",
    "corpus.shard_rows=3",
    "--set",
    "queries.per_document=2",
    "--set",
    "queries.max_new_tokens=12",
    "--set",
    "queries.adapter=",  # so that one engine writes both
    "--set",
    "docids.adapter=",
    "--set",
    "docids.max_new_tokens=12",
    "--set",
    "training.epochs=4",
    "--set",
    "training.batch_examples=4",
    "--set",
    "training.checkpoint_seconds=0.5",
    "--set",
    "docids.distinct_rounds=0",
    "--set",
    "calibration.texts=2",
    "--instruction",
    "Given a question, retrieve the page that answers it.",
]


def start(folder, *more):
    """Begin `zerogr index` as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "zerogr_ray.cli",
        "index",
        folder / "corpus.jsonl",
        folder / "index",
        "--json",
        *SMALL,
        *more,
    ]
    # On disk, so that a killed run says what it said.
    with (folder / "stderr.txt").open("a") as log:
        return subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )


def finish(folder, *more):
    """Run `zerogr index` to its end; returns its report."""
    process = start(folder, *more)
    out, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, (folder / "stderr.txt").read_text()[-3000:]
    return json.loads(out)


def kill_when(process, condition):
    """kill -9 the command as soon as `condition` holds; what it started must end by itself."""
    children = []
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "what the kill waits for never came"
        # Ray's two agents look for their raylet only now and then; all others must end at once.
        family = psutil.Process(process.pid).children(recursive=True)
        children = [child for child in family if child.is_running() and not agent(child)]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def agent(process):
    """Whether this is one of Ray's per-node agents, which compute and write nothing of ours."""
    try:
        return "Agent" in process.name() or "agent" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def shards(folder, name):
    return sorted((folder / "index.work").glob(f"{name}-*/part-*.parquet"))


def written(folder, name):
    """Modification times of a stage's shards: a shard that is written again is a new file."""
    return {path: path.stat().st_mtime_ns for path in shards(folder, name)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index that was built in spite of kill -9 during generation and again during training."""
    find_model(DEFAULT_MODEL)
    folder = tmp_path_factory.mktemp("path")
    rows = [json.dumps({"_id": docno, "text": text}, ensure_ascii=False) for docno, text in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join([*rows, "not json"]) + "\n")

    kill_when(start(folder), lambda: len(shards(folder, "queries")) >= 2)
    kept = {**written(folder, "docids"), **written(folder, "queries")}
    assert not (folder / "index").exists()
    assert len(shards(folder, "queries")) < 4

    kill_when(start(folder), lambda: any((folder / "index.work").glob("training-*/checkpoint-*")))
    assert not (folder / "index").exists()
    after = {**written(folder, "docids"), **written(folder, "queries")}
    assert kept.items() <= after.items(), "a shard that was whole has been written again"

    [log] = (folder / "index.work").glob("training-*/log.jsonl")
    reached = max(int(path.name.rpartition("-")[2]) for path in log.parent.glob("checkpoint-*"))
    before = log.read_text().splitlines()[:reached]
    report = finish(folder)
    # They hold how long each step took: made again, they would differ.
    assert log.read_text().splitlines()[:reached] == before, "steps before the checkpoint have been made again"
    return folder, report


def test_a_build_that_was_killed_twice_ends_with_every_document_exactly_once(built):
    folder, report = built
    assert (report["documents"], report["rejected"], report["unchanged"]) == (12, 1, False)
    for name in ("docids", "queries"):
        docnos = [row["docno"] for path in shards(folder, name) for row in pq.read_table(path).to_pylist()]
        assert docnos == list(DOCUMENTS), name
    docids = [row for path in shards(folder, "docids") for row in pq.read_table(path).to_pylist()]
    assert all(row["docid"] for row in docids)
    assert sum(row["source"] == "lm" for row in docids) >= 10
    queries = [row["queries"] for path in shards(folder, "queries") for row in pq.read_table(path).to_pylist()]
    assert all(len(some) == 2 and all(some) for some in queries)
    counts = report["queries"]
    assert counts["written"] == 24 == sum(counts[name] for name in ("kept", *COUNTED))
    kept = [row["queries"] for path in shards(folder, "filtered") for row in pq.read_table(path).to_pylist()]
    assert sum(map(len, kept)) == counts["kept"]
    assert report["collisions"]["distinct_after"] == report["docids"] == 12  # no two documents are the same


def test_inspect_says_what_the_docids_cover_of_their_documents(built):
    from zerogr_ray.index.inspect import inspect_index

    facts = inspect_index(built[0] / "index")
    assert facts["docids"]["distinct_share"] == 1
    assert facts["coverage"]["documents"] == 12
    assert 0 < facts["coverage"]["tfidf_covered"] < facts["coverage"]["words_in_document"] <= 1
    assert facts["collisions"]["identical"] == 0


def test_training_went_on_from_its_checkpoint_and_learned(built):
    folder, _ = built
    log = next((folder / "index.work").glob("training-*/log.jsonl")).read_text().splitlines()
    steps = [json.loads(line) for line in log]
    assert [row["step"] for row in steps] == list(range(1, steps[-1]["steps"] + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    kept = [json.loads(line) for line in (folder / "index" / "training.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in kept] == [row["loss"] for row in steps]
    assert not any("second" in name for row in kept for name in row)


def test_the_rejected_row_is_kept_with_its_reason(built):
    _, report = built
    rows = [
        json.loads(line) for path in Path(report["rejects"]).glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    assert [(row["line"], row["row"]) for row in rows] == [(13, "not json")]


def test_the_same_command_again_does_nothing_and_says_so(built):
    folder, _ = built
    before = (folder / "index" / "manifest.json").stat().st_mtime_ns
    report = finish(folder)
    assert report["unchanged"]
    assert report["seconds"] == {}
    assert (folder / "index" / "manifest.json").stat().st_mtime_ns == before


def test_the_index_answers_with_every_document_once(built):
    from zerogr_ray import Retriever

    folder, _ = built
    retriever = Retriever.load(folder / "index")
    hits = retriever.search("how do bees tell each other where to find food", k=100)
    assert sorted(hit.docno for hit in hits) == sorted(DOCUMENTS)
    # Trained on it word for word: a passage of a document finds the document.
    found = retriever.search_many(list(DOCUMENTS.values()), k=3)
    assert sum(docno in {hit.docno for hit in some} for docno, some in zip(DOCUMENTS, found, strict=True)) >= 9

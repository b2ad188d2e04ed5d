"""What a fault costs: `zerogr index` on three Ray nodes and an S3 server, hit in each stage by each fault.

    python -m benchmarks.recovery --out benchmarks/results/recovery.json --minutes 9
    python -m benchmarks.recovery --out … --cells training/disk publish/store --again

stages   docids, queries, training, trie, publish
faults   actor    kill -9 the process that does the work
         node     kill -9 all processes of its node at once
         driver   kill -9 the command
         store    kill -9 the S3 server, which comes back a minute later
         disk     fill the disk of the node that works until no byte is left, make room when the command gives up

A fault comes when the stage has committed something and has more that is done but not yet committed: the worst moment,
and always the same, for the worker waits there (tests/recovery/watched.py). After a fault that ends the command it is
run again. The nodes are raylets with a disk and a cache of their own, on one machine; the head, where the command
runs, has no CPUs for Ray. The model is a tiny Llama with random weights, the documents are real. A cell that the file
has from the same code (the git tree of zerogr_ray) is not run again. Needs root, or another right to mount.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.recovery.cluster import Cluster, Node, cluster, end, may_mount
from tests.recovery.watched import WATCH
from tests.storage.server import OWNER, Server
from tests.tiny import save_tiny
from zerogr_ray.demo.stdlib import stdlib_documents
from zerogr_ray.errors import ZeroGRError
from zerogr_ray.index.bundle import open_index
from zerogr_ray.stage import Output, map_shards
from zerogr_ray.store import Folder

ROOT = Path(__file__).parent.parent
STAGES = ("docids", "queries", "training", "trie", "publish")
FAULTS = ("actor", "node", "driver", "store", "disk")
WRITTEN = ("docids + queries", "distinct", "pairs")
BEFORE = {"training": WRITTEN, "trie": (*WRITTEN, "training"), "publish": (*WRITTEN, "training")}
"""What the run of a cell finds done, as the undisturbed run has left it: it begins shortly before its stage."""

OUTPUTS = {"docids + queries": ("corpus", "docids", "queries", "terms"), "training": ("training", "shared")}
"""Folders of the work folder by stage, where they are not called as it is."""

AWAY = 60
"""Seconds that the store is away."""

DOCUMENTS = 48
SHARD = 8
TRIES = 4
"""Times that the command is run at most."""

LIMIT = 400
"""Seconds that one of them may take: more is a hang."""

SETTINGS = {
    "llm.engine": "transformers",
    "corpus.shard_rows": SHARD,
    "docids.examples": 0,
    "docids.max_new_tokens": 8,
    "docids.distinct_rounds": 0,
    "queries.examples": 0,
    "queries.per_document": 4,
    "queries.max_new_tokens": 8,
    "queries.filter.repeats": 0,
    "queries.filter.shared": "false",
    "queries.filter.round_trip": 0,
    "queries.passages": 4,
    "training.epochs": 2,
    "training.batch_examples": 4,
    "training.held_out": 0.2,
    "training.held_out_most": 24,
    "training.patience": 0,
    "training.checkpoint_seconds": 0.5,
    "postings": "docids",
    "calibration.texts": 2,
    "calibration.queries": 16,
}


@dataclass
class Bench:
    """The cluster, the store and what the cells share on it."""

    server: Server
    nodes: Cluster
    watch: Path
    wanted: int
    """Nodes that work when a cell begins."""
    settings: dict[str, Any]

    def start(self, name: str) -> subprocess.Popen[str]:
        """Begin the command of a cell."""
        settings = {"model": "s3://docs/tiny", "llm.model": "s3://docs/tiny", **self.settings}
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        arguments = ["-m", "tests.recovery.watched", "index", "s3://docs/corpus.jsonl", f"s3://docs/{name}/index"]
        with (self.watch / "stderr").open("ab") as log, (self.watch / "stdout").open("wb") as report:
            return self.nodes.command([*arguments, "--json", *chosen], stdout=report, stderr=log)

    def log(self) -> str:
        """What the command has said so far."""
        return (self.watch / "stderr").read_text(errors="replace").replace("\r", "\n")

    def said(self) -> str:
        """The last line of it."""
        lines = self.log().replace(str(self.nodes.folder), "").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")

    def begin(self, stage: str) -> None:
        """A new journal; the stage will be held."""
        for file in self.watch.iterdir():
            file.unlink()
        (self.watch / "hold").write_text(stage)
        self.nodes.grow(self.wanted)
        for node in (self.nodes.head, *self.nodes.nodes):
            node.make_room()
            node.forget()

    def held(self, process: subprocess.Popen[str]) -> int:
        """Wait until the stage is held; the process that stands there."""
        until = time.monotonic() + LIMIT
        while not (self.watch / "held").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the run never came to the moment of the fault: {self.said()}")
            time.sleep(0.02)
        return int((self.watch / "held").read_text())

    def redone(self) -> dict[str, int]:
        """Rows by stage that were begun more than once."""
        counted: dict[str, int] = {}
        seen = set()
        for line in (self.watch / "journal.jsonl").read_text().splitlines():
            row = json.loads(line)
            if (row["stage"], row["what"]) in seen:
                counted[row["stage"]] = counted.get(row["stage"], 0) + row["rows"]
            seen.add((row["stage"], row["what"]))
        return counted


@contextmanager
def store() -> Iterator[tuple[Server, Path]]:
    """An S3 server, with this process's environment for it, and a folder for a while."""
    with tempfile.TemporaryDirectory(prefix="recovery") as scratch, pytest.MonkeyPatch.context() as patch:
        folder = Path(scratch)
        server = Server(folder / "s3")
        server.start()
        try:
            server.wait()
            server.use(patch, *OWNER)
            patch.setenv("ZEROGR_CACHE", str(folder / "cache"))
            yield server, folder
        finally:
            server.kill()


@contextmanager
def bench(
    server: Server, folder: Path, settings: dict[str, Any] = SETTINGS, nodes: int = 2, mounted: bool = True
) -> Iterator[Bench]:
    """Corpus and model on the store, and a cluster of a head and `nodes` nodes that work."""
    rows = [{"_id": d.docno, "title": d.title, "text": d.text} for d in stdlib_documents(120)[:DOCUMENTS]]
    Folder("s3://docs").write("corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    Folder("s3://docs/tiny").upload(save_tiny(folder / "tiny"))
    watch = folder / "watch"
    watch.mkdir()
    with cluster({**os.environ, WATCH: str(watch), "HF_HUB_OFFLINE": "1"}, nodes, mounted) as found:
        yield Bench(server, found, watch, nodes, settings)


def outcome(name: str) -> dict[str, Any]:
    """What a run has left: the index, opened and verified, and what its stages wrote, by digests."""
    bundle = open_index(f"s3://docs/{name}/index")
    rows = sorted((row["docno"], row["docid"]) for row in bundle.documents.to_pylist())
    found: dict[str, Any] = {"documents": len(rows), "docnos": len({docno for docno, _ in rows}), "index": _sha(rows)}
    work = Folder(f"s3://docs/{name}/index.work")
    for stage in ("docids", "queries"):
        shards = [file for file in work.files() if file.startswith(f"{stage}-") and file.endswith(".parquet")]
        found[stage] = _sha([row for shard in shards for row in work.read_table(shard).to_pylist()])
    return {**found, "weights": bundle.manifest["model"]["fingerprint"], "decode": _sha(bundle.manifest.get("decode"))}


def undisturbed(on: Bench) -> dict[str, Any]:
    """The run that all others are compared with."""
    on.begin("none")
    began = time.monotonic()
    process = on.start("undisturbed")
    if process.wait(LIMIT):
        raise RuntimeError(f"the undisturbed run failed: {on.said()}")
    seconds = round(time.monotonic() - began, 1)
    left = outcome("undisturbed")
    if left["documents"] != DOCUMENTS or on.redone():
        raise RuntimeError(f"the undisturbed run is not as it should be: {left}, redone {on.redone()}")
    stages = json.loads((on.watch / "stdout").read_text())["seconds"]
    return {"seconds": seconds, "stages": stages, **left}


def seed(name: str, stage: str) -> None:
    """Give a cell what the stages before its own have left in the undisturbed run."""
    work = Folder("s3://docs/undisturbed/index.work")
    outputs = {output for done in BEFORE.get(stage, ()) for output in OUTPUTS.get(done, (done,))}
    for file in work.files():
        if re.split("[-/]", file)[0] in outputs:
            work.fs.copy(f"{work.path}/{file}", f"docs/{name}/index.work/{file}")


def hit(on: Bench, stage: str, fault: str, plain: dict[str, Any]) -> dict[str, Any]:
    """One cell: run, fault, run again until it ends well; what that cost, and how the end differs from `plain`.

    `seconds` are those of the undisturbed run from where this one begins.
    """
    name = f"{stage}-{fault}"
    # A publish has no worker of its own but the one that compares ways of decoding, just before the upload.
    moment = "judge" if stage == "publish" and fault in ("actor", "node", "disk") else stage
    on.begin(moment)
    seed(name, stage)
    skipped = sum(plain["stages"].get(done, 0.0) for done in BEFORE.get(stage, ()))
    began = time.monotonic()
    process = on.start(name)
    try:
        pid = on.held(process)
        full = _inject(on, fault, stage, pid, process)
        (on.watch / "go").touch()
        if fault == "store":
            time.sleep(AWAY)
            on.server.start()
            on.server.wait()
        tries, failures = 1, []
        while _ended(process) != 0:
            failures.append("killed" if process.returncode == -9 else f"{process.returncode}: {on.said()}")
            if full is not None:
                full.make_room()
            if tries == TRIES:
                break
            tries += 1
            process = on.start(name)
    finally:
        end(process)
    seconds = time.monotonic() - began
    cell: dict[str, Any] = {"stage": stage, "fault": fault, "runs": tries, "failures": failures}
    without = round(plain.get("seconds", 0.0) - skipped, 1)
    cell |= {"rows_redone": on.redone(), "seconds": without, "seconds_lost": round(seconds - without, 1)}
    if process.returncode != 0:
        return {**cell, "equal": False, "why": failures[-1]}
    try:
        left = outcome(name)
    except (ZeroGRError, OSError) as error:
        return {**cell, "equal": False, "why": str(error)}
    differing = [what for what, value in left.items() if value != plain.get(what, value)]
    return {**cell, "equal": not differing, **({"why": f"differs in {', '.join(differing)}"} if differing else {})}


def listing(objects: int) -> dict[str, Any]:
    """Seconds that a stage of so many shards, all of them done, takes to find that out."""
    stage = Output("docids", Folder("s3://docs/many/docids-0"))
    names = [f"part-{number:06d}.parquet" for number in range(objects)]
    began = time.monotonic()
    for start in range(0, objects, 10_000):
        stage.folder.fs.pipe({f"{stage.folder.path}/{name}": b"x" for name in names[start : start + 10_000]})
    written = time.monotonic()
    if (found := stage.shards()) != names:
        raise RuntimeError(f"{len(found)} of {objects} shards are listed")
    listed = time.monotonic()
    task: Any = None
    map_shards(stage, [(task, stage), (task, stage)], object, {}, {}, 1, lambda shard: 1, quiet=True)
    figures = {"seconds_to_write": written - began, "seconds_to_list": listed - written}
    figures["seconds_to_know"] = time.monotonic() - listed
    return {"objects": objects, **{name: round(value, 1) for name, value in figures.items()}}


def _inject(on: Bench, fault: str, stage: str, pid: int, process: subprocess.Popen[str]) -> Node | None:
    """Bring the fault about; the node whose disk is full now."""
    if fault == "actor":
        os.kill(pid, 9)
    elif fault == "driver":
        end(process)
    elif fault == "store":
        on.server.kill()
    elif fault == "node":
        node = on.nodes.node_of(pid)
        if node is on.nodes.head:
            raise RuntimeError(f"{stage} is held on the head, which no run survives")
        node.kill()
    else:
        # The trie and the index are written where the command runs.
        node = on.nodes.head if stage in ("trie", "publish") else on.nodes.node_of(pid)
        node.fill()
        return node
    return None


def _ended(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        end(process)
        return -9


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _code() -> str:
    """The git tree of the package; with a + where it was changed since."""
    tree = subprocess.run(["git", "rev-parse", "--short", "HEAD:zerogr_ray"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "zerogr_ray"], cwd=ROOT, capture_output=True, text=True)
    return tree.stdout.strip() + ("+" if changed.stdout.strip() else "")


def main() -> None:
    """Run the cells that are missing, write the file after each, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{stage}/{fault}" for stage in STAGES for fault in FAULTS]
    parser.add_argument("--cells", nargs="*", default=every, choices=every, metavar="STAGE/FAULT")
    parser.add_argument("--objects", type=int, help="also list a stage of so many shards")
    parser.add_argument("--again", action="store_true", help="also those that are in the file")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell later than this")
    parser.add_argument("--out", type=Path, help="JSON file that the cells are put into")
    given = parser.parse_args()
    if not may_mount():
        sys.exit("recovery: this needs the right to mount a tmpfs; run it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the nodes and the store end with it
    started, code = time.monotonic(), _code()
    before = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    cells: dict[str, Any] = before.get("cells", {})
    wanted = [
        cell
        for cell in given.cells
        if given.again or cell not in cells or cells[cell]["code"] != code or code.endswith("+")
    ]
    result = {"documents": DOCUMENTS, "shard_rows": SHARD, "date": date.today().isoformat(), **before}

    def save(**figures: Any) -> None:
        result.update(figures, date=date.today().isoformat())
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n")

    if given.objects:
        with store():
            save(listing=listing(given.objects))
    if wanted:
        with store() as (server, folder), bench(server, folder) as on:
            plain = undisturbed(on)  # each time anew: it is what the cells begin with, and the machine may be busier
            save(undisturbed={**plain, "code": code})
            for cell in wanted:
                if time.monotonic() - started > 60 * given.minutes:
                    break
                stage, fault = cell.split("/")
                try:
                    cells[cell] = {**hit(on, stage, fault, plain), "code": code}
                except RuntimeError as error:
                    print(f"{cell}: {error}\n{on.log()[-3000:]}", file=sys.stderr)
                    break
                print(json.dumps(cells[cell]), file=sys.stderr, flush=True)
                save(cells={name: cells[name] for name in every if name in cells})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

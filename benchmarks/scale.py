"""An index of N docids, step by step: time, peak memory, and how both grow from one size to the next.

    python -m benchmarks.scale --docs 400000 4000000 40000000 --out benchmarks/results/scale.json

Docids are two halves of real phrases put together anew: runs of four words of the Python documentation as installed.
They go through the steps of a build (zerogr_ray/index/), each in a process of its own: tokenised and sorted by a Ray of
this machine with an object store of STORE bytes, made into a trie, published, opened, and sent to three Ray nodes.
Sizes and steps that are not measured anew stay in the file as they were; --scratch keeps what the next step needs.

Tokens of two halves are those of the first and those of the second after a space, since the tokenizer never joins
words; so steps after the tokenising do not need it, and it may be measured at a smaller size (--tokenise).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.trie import machine
from zerogr_ray.index.bundle import DOCUMENTS, open_index, opened, write_index
from zerogr_ray.index.trie import ARRAYS, Trie
from zerogr_ray.index.trie_build import KEY, Keys, beyond_key, docid_rows, sort_words, sorted_arrays
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder, map_arrays, save_arrays

STORE = 200_000_000
"""Bytes of Ray's object store where documents are tokenised and sorted."""
SHARD = 1 << 14
"""Documents of a shard."""
WORDS = 4
"""Words of half a docid."""
NODES = 3


def main() -> None:
    """Measure, print one JSON object, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[400_000, 4_000_000], help="docids, N")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS), help="in this order")
    parser.add_argument("--tokenise", type=int, default=4_000_000, help="docids that are tokenised, at most")
    parser.add_argument("--out", type=Path, help="write the JSON here; what is there already is kept")
    parser.add_argument("--scratch", type=Path, help="folder for about 450 bytes per docid, kept; default: a new one")
    parser.add_argument("--beside", default="nothing", help="what else ran on the machine, for the record")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, folder = arguments.step
        print(json.dumps(STEPS[name](Path(folder))))
        return
    known = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {"steps": {}}
    for docs in arguments.docs:
        with tempfile.TemporaryDirectory() if arguments.scratch is None else _kept(arguments.scratch) as scratch:
            for step in arguments.steps:
                count = min(docs, arguments.tokenise) if step == "tokenise" else docs
                figures = measure(step, count, Path(scratch) / str(count), arguments.beside)
                if figures:
                    known["steps"].setdefault(step, {})[str(count)] = figures
                result = {"machine": machine(), "object_store_mb": STORE // 10**6, **report(known["steps"])}
                if arguments.out:
                    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


@contextmanager
def _kept(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def measure(step: str, docs: int, folder: Path, beside: str) -> dict[str, Any]:
    """The figures of one step in a fresh process."""
    folder.mkdir(exist_ok=True)
    (folder / "docs.json").write_text(str(docs))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--step", step, str(folder)]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
    figures = dict(json.loads(said))
    return figures and {**figures, "beside": beside, "date": date.today().isoformat()}


def report(steps: dict[str, Any]) -> dict[str, Any]:
    """The figures of every step by size, and the growth exponents of its time, work and memory between sizes."""
    growth: dict[str, Any] = {}
    for step, sizes in steps.items():
        counts = sorted(map(int, sizes))
        for small, large in itertools.pairwise(counts):
            a, b, ratio = sizes[str(small)], sizes[str(large)], math.log(large / small)
            both = [name for name in ("seconds", "cpu_seconds", "grown_mb") if a.get(name) and b.get(name)]
            exponents = {name: round(math.log(b[name] / a[name]) / ratio, 2) for name in both}
            growth.setdefault(step, {})[f"{small} to {large}"] = exponents
    return {"steps": {s: {n: steps[s][n] for n in sorted(steps[s], key=int)} for s in steps}, "growth": growth}


class Measured:
    """Time, work and memory of a block, of this process and of all those below it."""

    def __enter__(self) -> Measured:
        self.ended, self.workers = threading.Event(), 0
        self.before = self.anonymous = self.anonymous_now()
        self.load, self.cpu, self.started = os.getloadavg()[0], self._cpu(), time.perf_counter()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.started, self._cpu() - self.cpu
        self.ended.set()
        self.thread.join()
        self.anonymous = max(self.anonymous, self.anonymous_now())

    def figures(self) -> dict[str, Any]:
        """What was measured. What is not anonymous is of mapped files, which the system may drop; `grown_mb` leaves out
        what imports and what was read before take."""
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu, 2),
            "peak_mb": round(peak * 1024 / 1e6),
            "peak_anonymous_mb": round(self.anonymous / 1e6),
            "grown_mb": round((self.anonymous - self.before) / 1e6),
            **({"peak_largest_worker_mb": round(self.workers / 1e6)} if self.workers else {}),
            "load_before": round(self.load, 1),
        }

    @staticmethod
    def anonymous_now() -> int:
        """Bytes of this process that are of no file."""
        rss, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        return (rss - shared) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        for look in itertools.count():
            if self.ended.wait(0.05):
                return
            self.anonymous = max(self.anonymous, self.anonymous_now())
            if look % 10:
                continue
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        memory = process.memory_info()
                        self.workers = max(self.workers, memory.rss - memory.shared)
                except psutil.Error:
                    continue

    def _cpu(self) -> float:
        spent = time.process_time()
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                spent += times.user + times.system
            except psutil.Error:
                continue
        return spent


def corpus(folder: Path) -> dict[str, Any]:
    """Not measured: shards of documents with recombined docids and the tokens of these."""
    from zerogr_ray.demo.stdlib import stdlib_documents
    from zerogr_ray.docids.clean import words_of

    documents = outputs(folder)[2]
    if documents.done():
        return {}
    fmt, docs = prompt_format(), count_of(folder)
    runs = set()
    for document in stdlib_documents():
        words = [word for word in words_of(document.text) if any(map(str.isalpha, word))]
        runs |= {" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}
    heads = sorted(runs)
    tails = [f" {run}" for run in heads]
    texts = [pa.array(part) for part in (heads, tails)]
    tokens = [pa.array(fmt.docids(part), pa.list_(pa.uint32())) for part in (heads, tails)]
    there = set(documents.shards())
    for number, start in enumerate(range(0, docs, SHARD)):
        if (name := f"part-{number:06d}.parquet") in there:
            continue
        picked = np.random.default_rng(number).integers(len(heads), size=(2, min(SHARD, docs - start)))
        head, tail = (part.take(pa.array(some)) for part, some in zip(texts, picked, strict=True))
        docid = pc.binary_join_element_wise(head, tail, "")
        parts = [part.take(pa.array(some)) for part, some in zip(tokens, picked, strict=True)]
        lengths = np.sum([part.value_lengths().to_numpy() for part in parts], axis=0)
        # Each docid's own two parts side by side: even lists are heads, odd ones tails.
        mixed = pa.concat_arrays(parts).take(pa.array(np.arange(2 * len(docid)).reshape(2, -1).T.ravel()))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        both = pa.ListArray.from_arrays(offsets, mixed.flatten())
        if not number:
            assert both[:1000].to_pylist() == fmt.docids(docid[:1000].to_pylist()), "halves are not tokenised apart"
        docnos = pa.array([f"doc-{row:09d}" for row in range(start, start + len(docid))])
        documents.folder.write_table(name, pa.table([docnos, docid, both, head], schema=DOCUMENTS))
    documents.finish(docs)
    return {}


def tokenise(folder: Path) -> dict[str, Any]:
    """Docids into tokens, by actors of a Ray with a core each."""
    from zerogr_ray.cluster import ray_cluster, spare_cpus
    from zerogr_ray.index import dataset

    corpus(folder)
    source, docids, documents = outputs(folder)
    for shard in documents.shards():
        rows = documents.folder.read_table(shard, ["docno", "docid", "title"])
        source.folder.write_table(shard, rows.select(["docno", "title"]))
        docids.folder.write_table(shard, rows.select(["docno", "docid"]))
    task = dataset.Tokenise(source, docids, prompt_format())
    with ray_cluster(object_store=STORE), tempfile.TemporaryDirectory(dir=folder) as work:
        actors = min(spare_cpus(), os.cpu_count() or 1)
        with Measured() as measured:
            dataset.tokenise(task, Folder(work), "1", sizes_of(folder), actors, quiet=True)
    return {**measured.figures(), "actors": actors}


def sort(folder: Path) -> dict[str, Any]:
    """Packed tokens in order, by Ray Data; the result is gathered here."""
    from zerogr_ray.cluster import ray_cluster
    from zerogr_ray.index.dataset import sorted_keys

    corpus(folder)
    documents, end = outputs(folder)[2], end_of(folder)
    with ray_cluster(object_store=STORE), Measured() as measured:
        keys, order = sorted_keys(documents, sizes_of(folder), end, KEY, 16)
    save_arrays(folder / "sorted", {"order": order, **{f"word{n}": word for n, word in enumerate(keys.words)}})
    return measured.figures()


def sort_here(folder: Path) -> dict[str, Any]:
    """The same in this process, on one core; and that it is the same."""
    docids, end = documents_of(folder)["tokens"], end_of(folder)
    with Measured() as measured:
        keys = Keys.of(docid_rows(docids, end, KEY)[:, :KEY], 16)
        order = sort_words(keys.words)
    there = np.load(folder / "sorted" / "order.npy", mmap_mode="r")
    return {**measured.figures(), "same_as_sort": bool(np.array_equal(order, there))}


def trie(folder: Path) -> dict[str, Any]:
    """The trie's arrays of sorted docids."""
    names = sorted(path.stem for path in (folder / "sorted").glob("word*.npy"))
    words = [np.load(folder / "sorted" / f"{name}.npy") for name in names]
    order, end = np.load(folder / "sorted" / "order.npy"), end_of(folder)
    docids = documents_of(folder)["tokens"]
    with Measured() as measured:
        made, order = Trie.of_arrays(
            sorted_arrays(Keys(words, 16, KEY), order, np.dtype(np.uint16), end, beyond_key(docids, end))
        )
    made.save(folder / "trie")
    save_arrays(folder / "trie", {"order": order})
    size = sum(getattr(made, name).nbytes for name in ARRAYS)
    facts = {"distinct": made.leaves, "nodes": made.nodes, "bytes_per_docid": round(size / len(order), 2)}
    return {**measured.figures(), **facts}


def publish(folder: Path) -> dict[str, Any]:
    """An index folder of the documents and this trie: written, hashed and flushed. Without model and postings."""
    (folder / "none").mkdir(exist_ok=True)
    built = Trie.open(folder / "trie"), np.load(folder / "trie" / "order.npy")
    facts, end = {"key": "scale", "instruction": "", "model": {}}, end_of(folder)
    with Measured() as measured:
        manifest = write_index(folder / "index", shards_of(folder), end, folder / "none", facts, build=lambda *_: built)
    size = sum(file["size"] for file in manifest["files"].values())
    return {**measured.figures(), "bytes_per_docid": round(size / manifest["documents"], 1)}


def open_(folder: Path) -> dict[str, Any]:
    """Open the index: every file is read and its sha256 compared."""
    with Measured() as measured:
        bundle = open_index(folder / "index")
    started = time.perf_counter()
    opened(bundle.path, bundle.manifest)
    unverified = (time.perf_counter() - started) * 1e3
    started = time.perf_counter()
    asked = [f"doc-{row:09d}" for row in np.linspace(0, bundle.documents.num_rows - 1, 100).astype(int)]
    rows, unknown = bundle.rows_of(asked)
    found = (time.perf_counter() - started) * 1e3
    assert len(rows) == 100
    assert not unknown
    return {**measured.figures(), "unverified_ms": round(unverified, 1), "find_100_docnos_ms": round(found, 1)}


def broadcast(folder: Path) -> dict[str, Any]:
    """The trie's arrays from the object store of one Ray node to all NODES of them, on this machine."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    arrays = [np.array(array) for array in map_arrays(folder / "trie", ARRAYS).values()]
    size = sum(array.nbytes for array in arrays)
    each = {"num_cpus": 1, "object_store_memory": 2 * size + STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            cluster.add_node(**each)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        nodes = [node["NodeID"] for node in ray.nodes()]

        @ray.remote
        def arrives(held: list[Any]) -> int:
            return sum(int(array.nbytes) for array in ray.get(held))

        there = [
            arrives.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes
        ]
        ray.get([node.remote([]) for node in there])  # workers have started
        with Measured() as measured:
            held = [ray.put(array) for array in arrays]
            sizes = ray.get([node.remote(held) for node in there])
        assert sizes == [size] * NODES
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {**measured.figures(), "nodes": NODES, "megabytes": round(size / 1e6, 1)}


def clean(folder: Path) -> dict[str, Any]:
    """Not measured: remove what was made at this size."""
    import shutil

    shutil.rmtree(folder)
    return {}


def prompt_format() -> Any:
    from zerogr_ray.models import find_model, load_format

    return load_format(find_model("smollm2-135m-instruct"))


def end_of(folder: Path) -> int:
    """The end-of-turn token. Kept, for the tokenizer's library takes 300 MB and seconds to load."""
    file = folder / "end.json"
    if not file.exists():
        file.write_text(str(prompt_format().end))
    return int(file.read_text())


def count_of(folder: Path) -> int:
    return int((folder / "docs.json").read_text())


def sizes_of(folder: Path) -> dict[str, int]:
    docs = count_of(folder)
    return {f"part-{n:06d}.parquet": min(SHARD, docs - start) for n, start in enumerate(range(0, docs, SHARD))}


def outputs(folder: Path) -> tuple[Output, Output, Output]:
    """Documents, their docids, and what an index holds of both."""
    work = Folder(folder / "work")
    return Output.at(work, "corpus", "1"), Output.at(work, "docids", "1"), Output.at(work, "documents", "1")


def shards_of(folder: Path) -> Iterator[pa.Table]:
    documents = outputs(folder)[2]
    return (documents.folder.read_table(shard) for shard in documents.shards())


def documents_of(folder: Path) -> pa.Table:
    from zerogr_ray.index.table import spooled

    return spooled(shards_of(folder), DOCUMENTS, folder / "spooled.arrow")


STEPS = {
    "corpus": corpus,
    "tokenise": tokenise,
    "sort": sort,
    "sort_here": sort_here,
    "trie": trie,
    "publish": publish,
    "open": open_,
    "broadcast": broadcast,
    "clean": clean,
}

if __name__ == "__main__":
    main()

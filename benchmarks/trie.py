"""The prefix tree at scale: build time, memory and size at N docids, opening, and whether a step slows down with N.

    python benchmarks/trie.py --docs 40000000 --out benchmarks/results/trie.json

Docids are halves of real titles and phrases put together anew, 8 to 12 tokens each. Every measurement has a process
of its own on one core; peak memory is that of the build with its rows and nothing else. For comparison, a succinct
trie (marisa-trie) and a tree of dicts, at sizes that they can hold; these two keep whole docids, this trie keeps
their shortest distinguishing prefixes and where their documents are.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from zerogr_ray.index.trie import ARRAYS, Trie

SMALL = 10_000
"""Docids of the trie that children_ratio is relative to."""
COMPARED = {1_000_000: ["marisa-trie", "dicts"], 10_000_000: ["marisa-trie"]}
"""Structures to build beside this trie, by the number of docids that they can hold here."""
HALF = 6
"""Tokens that half a docid has at most."""


def main() -> None:
    """Measure, print one JSON object, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=1_000_000, help="docids, N")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--text", type=Path, default=Path("../shared/data"), help="folder with corpus.jsonl files")
    parser.add_argument("--scratch", type=Path, help="folder for about 35 bytes per docid while it runs")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, *values = arguments.step.split(",")
        print(json.dumps(STEPS[step](*values)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        result = measure(arguments.docs, arguments.text, Path(scratch))
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def measure(docs: int, text: Path, scratch: Path) -> dict[str, Any]:
    """All figures at `docs` docids."""
    run("phrases", text, scratch)
    built = {}
    for count in (SMALL, docs):
        run("rows", count, scratch)
        built[count] = run("build", scratch, scratch / f"trie-{count}")
    opened = sorted(run("open", scratch / f"trie-{docs}") for _ in range(5))[2]
    steps = {count: run("children", scratch / f"trie-{count}") for count in built}
    compared = []
    for count, structures in COMPARED.items():
        if count <= docs:
            run("rows", count, scratch)
            own = run("build", scratch, scratch / "trie-compared")
            compared.append({"structure": "this trie", **per_docid(count, own["bytes"], own["seconds"])})
            compared += [{"structure": structure, **run(structure, scratch)} for structure in structures]
    figures = built[docs]
    return {
        "docids": docs,
        "bytes_per_docid": round(figures["bytes"] / docs, 2),
        "build_seconds": round(figures["seconds"], 1),
        "peak_rss_gb": round(figures["peak"] / 1e9, 2),
        "open_ms": round(opened, 2),
        "children_ratio": round(steps[docs] / steps[SMALL], 2),
        "build_cpu_seconds": round(figures["cpu_seconds"], 1),
        "distinct_docids": figures["distinct"],
        "nodes": figures["nodes"],
        "children_us": {str(count): round(spent, 2) for count, spent in steps.items()},
        "compared": compared,
        "machine": machine(),
        "date": date.today().isoformat(),
    }


def run(step: str, *values: Any) -> Any:
    """The result of one step in a fresh process on one core."""
    command = [sys.executable, __file__, "--step", ",".join(map(str, (step, *values)))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def phrases(text: str, scratch: str) -> int:
    """Save the token arrays of real titles and phrases that have 8 to 12 tokens; returns their number."""
    from zerogr_ray.models import find_model, load_format

    prompt_format = load_format(find_model("smollm2-135m-instruct"))
    found = sorted({phrase for file in sorted(Path(text).glob("*/corpus.jsonl")) for phrase in phrases_of(file)})
    if not found:
        raise SystemExit(f"{text} has no */corpus.jsonl with text; name a folder of corpora with --text")
    tokens = [ids for ids in prompt_format.docids(found) if 8 <= len(ids) <= 2 * HALF]
    rows = np.full((len(tokens), 2 * HALF), prompt_format.end, dtype=np.uint16)
    for row, ids in zip(rows, tokens, strict=True):
        row[: len(ids)] = ids
    np.savez(Path(scratch) / "phrases.npz", rows=rows, end=prompt_format.end)
    return len(rows)


def phrases_of(file: Path, words: int = 8) -> Iterator[str]:
    """The title of every document, and its text cut into phrases."""
    for line in file.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        text = document["text"].split()
        yield document.get("title", "")
        yield from (" ".join(text[start : start + words]) for start in range(0, len(text), words))


def rows(docs: str, scratch: str) -> None:
    """Save `docs` docids as rows: the first half of one phrase, the second half of another, drawn with a fixed seed."""
    stored = np.load(Path(scratch) / "phrases.npz")
    source, end = stored["rows"], stored["end"]
    lengths = (source != end).sum(axis=1)
    cut = lengths // 2
    tails = np.full((len(source), HALF), end, dtype=np.uint16)
    for row, phrase, first, last in zip(tails, source, cut, lengths, strict=True):
        row[: last - first] = phrase[first:last]
    made = np.full((int(docs), 2 * HALF + 1), end, dtype=np.uint16)
    rng = np.random.default_rng(0)
    for start in range(0, len(made), 1 << 18):
        part = made[start : start + (1 << 18)]
        head, tail = rng.integers(len(source), size=(2, len(part)))
        part[:, :HALF] = source[head, :HALF]
        for first in range(4, HALF + 1):
            some = np.flatnonzero(cut[head] == first)
            part[some, first : first + HALF] = tails[tail[some]]
    np.save(Path(scratch) / "rows.npy", made)


def build(scratch: str, folder: str) -> dict[str, Any]:
    """Build and save the trie of the saved rows."""
    docids = np.load(Path(scratch) / "rows.npy")
    started, started_cpu = time.perf_counter(), time.process_time()
    trie, _ = Trie.from_rows(docids)
    spent, spent_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trie.save(Path(folder))
    size = sum(getattr(trie, name).nbytes for name in ARRAYS)
    return {
        "seconds": spent,
        "cpu_seconds": spent_cpu,
        "peak": peak,
        "bytes": size,
        "nodes": trie.nodes,
        "distinct": trie.leaves,
    }


def open_ms(folder: str) -> float:
    """Milliseconds to open the trie saved in `folder`."""
    started = time.perf_counter()
    Trie.open(Path(folder))
    return (time.perf_counter() - started) * 1e3


def children_us(folder: str, nodes: int = 1000, repeats: int = 100) -> float:
    """Microseconds of one trie.children, median over repeats of 1,000 nodes each that random walks visit."""
    trie, rng, spent = Trie.open(Path(folder)), np.random.default_rng(0), []
    for _ in range(repeats + 1):
        visited: list[int] = []
        while len(visited) < nodes:
            node = 0
            while len(visited) < nodes and (span := trie.children(node))[0] < span[1]:
                visited.append(node)
                node = int(rng.integers(*span))
        started = time.perf_counter()
        for node in visited:
            trie.children(node)
        spent.append((time.perf_counter() - started) / nodes * 1e6)
    return float(np.median(spent[1:]))


def marisa(scratch: str) -> dict[str, Any]:
    """The saved rows in a marisa-trie, whole docids, two bytes per token."""
    import marisa_trie

    docids = np.load(Path(scratch) / "rows.npy")
    lengths = (docids != docids[:, -1:]).sum(axis=1).tolist()
    wide, data = docids.shape[1] * 2, docids.astype(">u2").tobytes()
    keys = [data[i * wide : i * wide + 2 * length] for i, length in enumerate(lengths)]
    started = time.perf_counter()
    trie = marisa_trie.BinaryTrie(keys)
    spent = time.perf_counter() - started
    trie.save(str(Path(scratch) / "marisa"))
    return per_docid(len(keys), (Path(scratch) / "marisa").stat().st_size, spent)


def dicts(scratch: str) -> dict[str, Any]:
    """The saved rows as nested dicts, whole docids."""
    docids = np.load(Path(scratch) / "rows.npy", mmap_mode="r")
    end, before, spent = int(docids[0, -1]), resident(), 0.0
    root: dict[int, Any] = {}
    for start in range(0, len(docids), 100_000):
        part = docids[start : start + 100_000].tolist()
        started = time.perf_counter()
        for docid in part:
            node = root
            for token in docid:
                node = node.setdefault(token, {})
                if token == end:
                    break
        spent += time.perf_counter() - started
    del part
    gc.collect()
    return per_docid(len(docids), resident() - before, spent)


def per_docid(docids: int, size: float, seconds: float) -> dict[str, Any]:
    """The figures of a structure that is compared."""
    return {"docids": docids, "bytes_per_docid": round(size / docids, 2), "build_seconds": round(seconds, 1)}


def resident() -> int:
    """Bytes of this process in memory, files that it maps left out."""
    _, whole, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (whole - shared) * resource.getpagesize()


def machine() -> str:
    """What it ran on: cores, vector instructions, memory."""
    flags = Path("/proc/cpuinfo").read_text()
    vector = next((name.upper() for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores, {vector}, {memory:.0f} GB"


STEPS = {
    "phrases": phrases,
    "rows": rows,
    "build": build,
    "open": open_ms,
    "children": children_us,
    "marisa-trie": marisa,
    "dicts": dicts,
}

if __name__ == "__main__":
    main()

"""Planning ahead at scale: what the postings take, how long a query takes, and what reading only some of them loses.

    python benchmarks/plan.py --docs 10000 1000000 40000000 --out benchmarks/results/plan.json

Docids are halves of real titles and phrases put together anew, about 11 distinct tokens each. Gains are those of real
queries: next-token log-probabilities of SmolLM2-135M-Instruct behind the prompt, less their mean over 8 passages of the
queries' corpus. Every size has a process of its own. Times are medians over the queries, postings mapped and in
memory, one thread; the CPU time beside the wall time says how busy the machine was with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr_ray.decoding.plan import plan_ahead
from zerogr_ray.index.postings import ARRAYS, Postings

BEST = 200
"""Documents planned for, n."""
HALF = 8
"""Tokens that half a docid has at most."""
CHUNK = 1 << 16
"""Documents in a record batch, as in the index."""
ALL = 1 << 60
"""Postings to read at most where the answer must be exact."""


def main() -> None:
    """Measure, print one JSON object, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 1_000_000], help="docids, one size or several")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--text", type=Path, default=Path("../shared/data"), help="folder of corpora in BEIR layout")
    parser.add_argument("--scratch", type=Path, help="folder for 80 bytes per docid while it runs")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, *values = arguments.step
        print(json.dumps({"prepare": prepare, "measure": measure}[step](*values)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        vocab = run("prepare", arguments.text, scratch)
        sizes = [run("measure", scratch, docs, vocab) for docs in arguments.docs]
    result = {"n": BEST, "sizes": sizes, "machine": machine(), "date": date.today().isoformat()}
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def run(step: str, *values: Any) -> Any:
    """The result of one step in a fresh process on one core."""
    command = [sys.executable, __file__, "--step", step, *map(str, values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def prepare(text: str, scratch: str) -> int:
    """Save the halves of real docids, and the gains of two queries of every corpus; returns V."""
    from zerogr_ray.corpus.text import passages, truncate_words
    from zerogr_ray.models import find_model, hush, load_format, load_model

    hush()
    folder = find_model("smollm2-135m-instruct")
    prompt_format, model = load_format(folder), load_model(folder, "float32", "cpu")
    phrases: set[str] = set()
    gains = []
    for corpus in sorted(Path(text).glob("*/corpus.jsonl")):
        documents = rows_of(corpus)
        for document in documents:
            phrases |= {truncate_words(document["title"], 10), *passages(document["text"], HALF, 8)}
        calibration = [passage for d in documents[:8] for passage in passages(d["text"], 14, 1)]
        queries = [row["text"] for row in rows_of(corpus.with_name("queries.jsonl"))[:2]]
        instruction = corpus.with_name("instruction.txt").read_text(encoding="utf-8").strip()
        z = logprobs(model, prompt_format.prompts(instruction, calibration + queries, 64))
        gains.append(z[len(calibration) :] - z[: len(calibration)].mean(axis=0))
    if not gains:
        raise SystemExit(f"{text} has no */corpus.jsonl; name a folder of corpora with --text")
    docids = [ids for ids in prompt_format.docids(sorted(phrases)) if 4 <= len(ids) <= 2 * HALF]
    left = np.full((len(docids), HALF), -1)
    right = left.copy()
    for row, ids in enumerate(docids):
        half = (len(ids) + 1) // 2
        left[row, :half], right[row, : len(ids) - half] = ids[:half], ids[half:]
    left = left[np.lexsort(left.T[::-1])]
    np.savez(Path(scratch) / "prepared.npz", left=left, right=right, gains=np.concatenate(gains))
    return int(gains[0].shape[1])


def rows_of(file: Path) -> list[Any]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def logprobs(model: Any, prompts: list[list[int]]) -> Any:
    """Next-token log-probabilities behind each prompt, shape (prompts, vocabulary)."""
    import torch

    with torch.inference_mode():
        ends = [model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1] for prompt in prompts]
        return torch.stack(ends).log_softmax(-1).numpy()


def docids(left: Any, right: Any, count: int) -> pa.ChunkedArray:
    """`count` docids as the index stores them: any first half with any second half, first halves in order."""
    rng = np.random.default_rng(0)
    heads = np.sort(rng.integers(len(left), size=count, dtype=np.int32))
    chunks = []
    for start in range(0, count, CHUNK):
        head = heads[start : start + CHUNK]
        tokens = np.concatenate([left[head], right[rng.integers(len(right), size=len(head))]], axis=1)
        ends = np.concatenate([[0], np.cumsum((tokens >= 0).sum(axis=1))]).astype(np.int32)
        chunks.append(pa.ListArray.from_arrays(ends, tokens[tokens >= 0].astype(np.uint32)))
    return pa.chunked_array(chunks)


def measure(scratch: str, docs: str, vocab: str) -> dict[str, Any]:
    """All figures at `docs` docids."""
    prepared = np.load(Path(scratch) / "prepared.npz")
    made = docids(prepared["left"], prepared["right"], int(docs))
    folder, given = Path(scratch) / "postings", made.nbytes
    started = time.perf_counter(), time.process_time()
    built = Postings.build(made, int(vocab))
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = {name: getattr(built, name).nbytes / int(docs) for name in ARRAYS}
    built.save(folder)
    del built, made
    postings = Postings.open(folder)
    gains = prepared["gains"]
    for name in ARRAYS:
        getattr(postings, name).max()  # into memory
    planned, ms, cpu_ms = timed(postings, gains)
    exact, ms_exact, cpu_ms_exact = timed(postings, gains, read=ALL)
    recalls = [len(np.intersect1d(some, best)) / BEST for some, best in zip(planned, exact, strict=True)]
    return {
        "docids": int(docs),
        "tokens_per_docid": round(len(postings.tokens) / int(docs), 2),
        "bytes_per_docid": round(sum(size.values()), 1),
        "bytes_per_docid_by_array": {name: round(value, 1) for name, value in size.items()},
        "build_seconds": round(seconds, 1),
        "build_cpu_seconds": round(cpu, 1),
        "peak_rss_gb": round(peak / 1e9, 2),
        "of_that_input_gb": round(given / 1e9, 2),
        "queries": len(gains),
        "ms_per_query": round(ms, 1),
        "cpu_ms_per_query": round(cpu_ms, 1),
        "recall_of_exact": round(float(np.mean(recalls)), 4),
        "recall_of_exact_worst_query": round(min(recalls), 4),
        "ms_per_query_exact": round(ms_exact, 1),
        "cpu_ms_per_query_exact": round(cpu_ms_exact, 1),
    }


def timed(postings: Postings, gains: Any, **limits: int) -> tuple[list[Any], float, float]:
    """The plan of every query, and the median wall and CPU milliseconds of one."""
    plan_ahead(postings, gains[0], BEST, **limits)
    planned, spent = [], []
    for gain in gains:
        started = time.perf_counter(), time.process_time()
        planned.append(plan_ahead(postings, gain, BEST, **limits))
        spent.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, cpu = np.median(spent, axis=0) * 1e3
    return planned, float(wall), float(cpu)


def machine() -> str:
    """What it ran on: cores, vector instructions, memory."""
    flags = Path("/proc/cpuinfo").read_text()
    vector = next((name.upper() for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores, {vector}, {memory:.0f} GB"


if __name__ == "__main__":
    main()

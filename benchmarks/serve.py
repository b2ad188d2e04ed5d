"""What serving costs over the bare decoder, and what happens under too much load, during a switch, and to memory.

    python benchmarks/serve.py [--index demo/index] [--parts idle,saturation,overload,swap,haproxy,sharing]

Prints one JSON object; with --out FILE its parts are put into that file. Clients run in a process of their own; load
is open loop: requests leave at their times, whether or not earlier ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent
WORDS = "open read write json file parse command line flags socket thread process random list sort copy path".split()


def queries(count: int, seed: int = 0) -> list[str]:
    """Queries of three to six words; the same for the same seed."""
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, rng.randint(3, 6))) for _ in range(count)]


# --- the index, where none is given: an untrained model, which is as fast as a trained one


def untrained_index(folder: Path) -> Path:
    """The packaged model over this Python's documentation."""
    import pyarrow as pa

    from zerogr_ray.config import DEFAULT_MODEL
    from zerogr_ray.demo.stdlib import stdlib_documents
    from zerogr_ray.docids.clean import clean_docid
    from zerogr_ray.index.bundle import DOCUMENTS, write_index
    from zerogr_ray.models import find_model, fingerprint, load_format

    model = find_model(DEFAULT_MODEL)
    fmt = load_format(model)
    rows = [(d.docno, clean_docid("", d.title, d.text, d.docno, 8)[0], d.title) for d in stdlib_documents()]
    docnos, docids, titles = (list(column) for column in zip(*rows, strict=True))
    table = pa.table([docnos, docids, fmt.docids(docids), titles], schema=DOCUMENTS)
    about = {"fingerprint": fingerprint(model), "trained_from": DEFAULT_MODEL}
    facts = {"instruction": "Retrieve.", "prompt_format": fmt.fingerprint, "key": "untrained", "model": about}
    write_index(folder / "index", table, fmt.end, model, facts)
    return folder / "index"


# --- the bare decoder


class Bare:
    """The bare decoder in a process of its own, which rests until it is asked."""

    def __init__(self, index: str, batch: int, threads: int) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "--bare", index, str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> Bare:
        self.single("warm up")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def single(self, query: str) -> float:
        """Seconds of one query alone."""
        return float(self._ask({"single": query})["seconds"])

    def batches(self, seconds: float) -> tuple[int, float]:
        """Queries that full batches answered, and seconds that it took: the first batch end after `seconds`."""
        said = self._ask({"batches": seconds})
        return said["queries"], said["seconds"]

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


def run_bare(index: str, batch: int) -> None:
    """The other side of Bare."""
    from zerogr_ray.config import CacheConfig
    from zerogr_ray.decoding.job import Request
    from zerogr_ray.decoding.retriever import Retriever

    retriever = Retriever.load(index, cache=CacheConfig(batch=batch))
    asked, done = queries(100_000, seed=1), 0
    for line in sys.stdin:
        what, before = json.loads(line), done
        began = time.perf_counter()
        if "single" in what:
            retriever.answer([Request(what["single"])])
        else:
            while time.perf_counter() - began < what["batches"]:
                retriever.answer([Request(query) for query in asked[done : done + batch]])
                done += batch
        print(json.dumps({"queries": done - before, "seconds": time.perf_counter() - began}), flush=True)


# --- the service, and its clients in a process of their own


class Service:
    """`zerogr serve` for the length of a block."""

    def __init__(self, indexes: list[str], state: Path, *settings: str, env: dict[str, str] | None = None) -> None:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url, self.state = f"http://127.0.0.1:{self.port}", state
        self.indexes = indexes
        command = [sys.executable, "-m", "zerogr_ray.cli", "serve", *indexes, "--state", str(state)]
        command += ["--port", str(self.port), *(part for one in settings for part in ("--set", one))]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        )

    def __enter__(self) -> Service:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("ready"):
                return self
        raise SystemExit(f"the service did not start, it ended with {self.process.wait()}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(120)

    def client(self, **how: Any) -> dict[str, Any]:
        """Run the clients; see run_client."""
        command = [sys.executable, __file__, "--client", self.url, json.dumps(how)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict(json.loads(said.splitlines()[-1]))

    def processes(self) -> list[psutil.Process]:
        """Everything that the service runs in."""
        return psutil.Process(self.process.pid).children(recursive=True)


async def run_client(url: str, rate: float, seconds: float, clients: int, count: int) -> dict[str, Any]:
    """With `rate` (per second) an open loop of `seconds`; else `clients` that ask one after the other.

    A closed loop ends after `seconds`, or after `count` requests where that is not 0. 429 counts as refused.
    """
    rows: list[tuple[float, float, int]] = []
    asked = iter(queries(1_000_000 if not count else count + clients, seed=3))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def ask() -> int:
            start = time.perf_counter()
            try:
                answer = await client.post("/v1/search", json={"query": next(asked)})
                status = answer.status_code
            except httpx.HTTPError:
                status = 599
            rows.append((start, time.perf_counter() - start, status))
            return status

        began = time.perf_counter()
        if rate:
            rng, tasks, due = random.Random(5), [], 0.0
            while due < seconds:
                await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                tasks.append(asyncio.create_task(ask()))
                due += rng.expovariate(rate)
            await asyncio.gather(*tasks)
        else:

            async def one() -> None:
                while (len(rows) < count) if count else (time.perf_counter() - began < seconds):
                    if await ask() == 429:
                        await asyncio.sleep(0.05)

            await asyncio.gather(*(one() for _ in range(clients)))
        wall = time.perf_counter() - began
    good = sorted(spent for _, spent, status in rows if status == 200)
    refused = sorted(spent for _, spent, status in rows if status == 429)
    # The first round finds an empty queue: what is sustained begins after it.
    steady = [start + spent - began for start, spent, status in rows if status == 200]
    return {
        "offered": len(rows),
        "answered": len(good),
        "refused": len(refused),
        "failed": len(rows) - len(good) - len(refused),
        "qps": len(good) / wall,
        "steady_qps": sum(t > wall * 0.15 for t in steady) / (max(steady) - wall * 0.15) if good else 0.0,
        **{f"p{p}": quantile(good, p / 100) for p in (50, 95, 99)},
        "refused_p95": quantile(refused, 0.95),
    }


def quantile(ordered: list[float], share: float) -> float | None:
    """Of ascending values; None where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


# --- the parts


def speed(index: str, parts: set[str], batch: int, seconds: float, threads: int) -> dict[str, Any]:
    """Idle, saturation, overload and swap of one replica, by turns with the bare decoder.

    By turns, query by query and slice by slice: what else the machine does meanwhile meets both alike.
    """
    figures: dict[str, Any] = {"batch": batch, "threads": threads, "cores": os.cpu_count()}
    figures["load_average_before"] = os.getloadavg()[0]
    settings = (f"cache.batch={batch}", f"threads={threads}")
    with tempfile.TemporaryDirectory() as state:
        with Service([f"docs={index}"], Path(state), *settings) as service, Bare(index, batch, threads) as bare:
            service.client(rate=0, seconds=0, clients=1, count=3)
            if "idle" in parts:
                figures |= idle(service, bare)
            if parts & {"saturation", "overload", "swap"}:
                figures |= saturation(service, bare, batch, seconds)
            if "overload" in parts:
                sustained = figures["saturation"]["qps"]
                figures["rates"] = {
                    f"{share:g}": service.client(rate=share * sustained, seconds=seconds, clients=0, count=0)
                    for share in (0.4, 0.8, 3.0)
                }
                calm, storm = (figures["rates"][share]["p95"] for share in ("0.8", "3"))
                figures["overload_p95_ratio"] = round(storm / calm, 2)
            if "swap" in parts:
                figures["swap"] = swap(service, index, figures["saturation"]["qps"])
                figures["swap_failed_requests"] = figures["swap"]["failed"]
        if "haproxy" in parts:
            how = Service([f"docs={index}"], Path(state), *settings, env={"RAY_SERVE_ENABLE_HA_PROXY": "1"})
            with how as service, Bare(index, batch, threads) as bare:
                service.client(rate=0, seconds=0, clients=1, count=3)
                figures["haproxy"] = idle(service, bare) | saturation(service, bare, batch, seconds)
    return figures


def idle(service: Service, bare: Bare, count: int = 60) -> dict[str, Any]:
    """Single queries, one at a time, each asked of both, of each first every other time."""
    alone, served = [], []
    with httpx.Client(base_url=service.url, timeout=120) as client:

        def ask(query: str) -> float:
            start = time.perf_counter()
            client.post("/v1/search", json={"query": query}).raise_for_status()
            return time.perf_counter() - start

        for number, query in enumerate(queries(count, seed=2)):
            if number % 2:
                served.append(ask(query))
            alone.append(bare.single(query))
            if not number % 2:
                served.append(ask(query))
    difference = statistics.median(b - a for a, b in zip(alone, served, strict=True))
    return {
        "idle": {"bare_p50": statistics.median(alone), "served_p50": statistics.median(served), "queries": count},
        "idle_p50_overhead_ms": round(1000 * (statistics.median(served) - statistics.median(alone)), 1),
        "idle_paired_overhead_ms": round(1000 * difference, 1),
    }


def saturation(service: Service, bare: Bare, batch: int, seconds: float, turns: int = 3) -> dict[str, Any]:
    """Full batches without a pause, and twice a batch of clients that ask without a pause, by turns."""
    runs: list[dict[str, Any]] = []
    alone: list[float] = []
    for _ in range(turns):
        done, took = bare.batches(seconds / turns)
        alone.append(done / took)
        runs.append(service.client(rate=0, seconds=seconds / turns, clients=2 * batch, count=0))
    shares = [run["steady_qps"] / rate for run, rate in zip(runs, alone, strict=True)]
    served = statistics.median(run["steady_qps"] for run in runs)
    return {
        "saturation": {"qps": served, "bare_qps": statistics.median(alone), "shares": shares, "runs": runs},
        "saturation_share": round(statistics.median(shares), 3),
    }


def swap(service: Service, index: str, rate: float) -> dict[str, Any]:
    """Activate another version and roll back, under 0.6 of the sustained rate."""
    import shutil

    from zerogr_ray.decoding.retriever import Retriever

    with tempfile.TemporaryDirectory() as folder:
        retriever = Retriever.load(index)
        retriever.remove([retriever.bundle.documents["docno"][0].as_py()])
        retriever.compact(Path(folder) / "v2")
        del retriever
        result: dict[str, Any] = {}
        loading = threading.Thread(
            target=lambda: result.update(service.client(rate=0.6 * rate, seconds=60, clients=0, count=0))
        )
        loading.start()
        time.sleep(5)
        command = [sys.executable, "-m", "zerogr_ray.cli", "serve", *service.indexes, "--state", str(service.state)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        subprocess.run([*command, "--activate", f"{folder}/v2"], check=True, env=env, capture_output=True)
        switched = time.monotonic() - began
        subprocess.run([*command, "--rollback"], check=True, env=env, capture_output=True)
        loading.join()
        shutil.rmtree(Path(folder) / "v2")
        return {**result, "activate_seconds": round(switched, 1)}


def sharing(megabytes: int = 500, replicas: int = 4) -> dict[str, Any]:
    """Memory that all processes of a service hold of one trie, by their shares (PSS), and private copies."""
    from benchmarks.shared_trie import held_of_trie, large_index
    from tests.tiny import save_tiny

    with tempfile.TemporaryDirectory() as folder:
        index = large_index(Path(folder), save_tiny(Path(folder) / "model"), megabytes)
        size = sum(file.stat().st_size for file in (index / "trie").iterdir())
        settings = (f"replicas={replicas}", "cpus=0.1", "threads=1")
        with Service([f"docs={index}"], Path(folder) / "state", *settings) as service:
            service.client(rate=0, seconds=0, clients=4, count=12)
            shares = [held_of_trie(process.pid) for process in service.processes()]
            beats = len(list((Path(folder) / "state" / "replicas").glob("*.json")))
            return {
                "trie_mb": round(size / 1e6, 1),
                "replicas": beats,
                "shared_trie_pss_mb": round(sum(share["pss"] for share in shares) / 1e6, 1),
                "largest_private_mapping_mb": round(max(share["private"] for share in shares) / 1e6, 1),
            }


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--bare"]:
        run_bare(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--client"]:
        print(json.dumps(asyncio.run(run_client(sys.argv[2], **json.loads(sys.argv[3])))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", help="folder of an index; without, an untrained one is made")
    parser.add_argument("--parts", default="idle,saturation,overload,swap,haproxy,sharing")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    parser.add_argument("--out", type=Path, help="JSON file that the figures are put into")
    given = parser.parse_args()
    parts, figures = set(given.parts.split(",")), dict[str, Any]()
    if parts - {"sharing"}:
        with tempfile.TemporaryDirectory() as folder:
            index = given.index or str(untrained_index(Path(folder)))
            figures |= speed(index, parts, given.batch, given.seconds, given.threads)
    if "sharing" in parts:
        figures |= sharing()
    if given.out:
        before = json.loads(given.out.read_text()) if given.out.exists() else {}
        given.out.write_text(json.dumps(before | figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

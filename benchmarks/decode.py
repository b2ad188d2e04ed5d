"""Claim: our decoder gives the published algorithm's hits in a fraction of its time. Prints one JSON object.

    python benchmarks/decode.py [--dtypes float32 bfloat16]     2 CPU cores: about 30 minutes
    python benchmarks/decode.py --cuda-only                     the figures of a GPU alone: 5 minutes

identical_share   share of queries whose K hits equal, in order, those of drawing one after the other with the same seed
speedup           seconds per query of the published algorithm (published.py) / ours, one query at a time
token_ratio       tokens that we forward / prompt and path tokens that drawing one after the other cannot do without,
                  nothing kept from earlier queries (token_ratio_warm: with the instruction's cache kept, as in use)
waves_over_depth  forwards after the prompt's, less the depth of the trie, at most
forward_share     share of our wall time that is spent in the model
batch16_gain      queries per second with 16 in a batch / one at a time

What is compared runs in one process, in turns, on the same queries. On a busy machine look at
speedup_in_processor_seconds and use --threads 1: torch's threads wait for each other thousands of times per generate,
and where a core is taken away that inflates the published algorithm's wall time more than ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.decode_cuda import cuda_figures
from benchmarks.measure import depth_of, forward_clock, made
from benchmarks.published import dict_tree, draw_published
from tests.decoding.oracle import draw_one_by_one
from zerogr_ray.config import CacheConfig, DecodeConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.decoding.forward import TreeForward
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.schedule import temperatures
from zerogr_ray.decoding.search import Search
from zerogr_ray.docids.clean import clean_docid
from zerogr_ray.errors import ZeroGRError
from zerogr_ray.index.bundle import DOCUMENTS, write_index
from zerogr_ray.index.trie import Trie
from zerogr_ray.models import find_model, fingerprint, hush, load_format
from zerogr_ray.rows import Hit

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
WORDS = 8
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", default="../shared/data/scifact", help="folder with corpus.jsonl and queries")
    parser.add_argument("--docids", type=int, default=5000, help="distinct docids of the index")
    parser.add_argument("--queries", type=int, default=8, help="queries decoded by us and by the sequential oracle")
    parser.add_argument("--published-queries", type=int, default=2, help="of these, decoded by the published algorithm")
    parser.add_argument("--draws", type=int, default=100, help="K")
    parser.add_argument("--repeats", type=int, default=5, help="times that batch and single are measured in turns")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads; fewer than cores where others use the machine")
    parser.add_argument("--cuda-only", action="store_true", help="only the figures of cuda_figures()")
    parser.add_argument("--cuda-seconds", type=float, default=240, help="time that cuda_figures() measures for")
    parser.add_argument("--cuda-dry-run", action="store_true", help="run cuda_figures() with a tiny model on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/decode.json")
    args = parser.parse_args()
    hush()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    result: dict[str, Any] = {}
    if not (args.cuda_only or args.cuda_dry_run):
        try:
            result = decode_figures(args)
        except ZeroGRError as error:
            parser.error(str(error))
    if args.cuda_only or args.cuda_dry_run or torch.cuda.is_available():
        result["cuda"] = cuda_figures(args.cuda_dry_run, args.cuda_seconds)
    result |= {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    text = json.dumps(rounded(result), indent=1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
    print(text)


def decode_figures(args: argparse.Namespace) -> dict[str, Any]:
    """All figures on the collection: those of the first dtype, those of each other dtype under its name."""
    collection = read_collection(args.collection)
    queries = [query.text for query in collection.queries[: max(args.queries, BATCH)]]
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "index", Path(args.collection), collection.instruction, args.docids)
        first, *others = (
            figures(
                Retriever.load(Path(folder) / "index", args.device, dtype, CacheConfig(batch=BATCH)),
                queries,
                dtype,
                args,
            )
            for dtype in args.dtypes
        )
    return first | {other["dtype"]: other for other in others}


def build(out: Path, collection: Path, instruction: str, docids: int) -> None:
    """An index of the first documents that have `docids` different docids: the titles' first words, cleaned."""
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    with (collection / "corpus.jsonl").open() as lines:
        for row in map(json.loads, lines):
            docid, _ = clean_docid(row["title"], row["title"], row["text"], row["_id"], WORDS)
            rows.append({"docno": row["_id"], "docid": docid, "title": row["title"]})
            seen.add(docid)
            if len(seen) == docids:
                break
        else:
            raise ZeroGRError(f"{collection} gives {len(seen)} different docids; ask for at most that many: --docids")
    model = find_model(MODEL)
    fmt = load_format(model)
    tokens = fmt.docids([row["docid"] for row in rows])
    facts = {
        "key": "benchmark",
        "instruction": instruction,
        "model": {"trained_from": MODEL, "fingerprint": fingerprint(model)},
        "prompt_format": fmt.fingerprint,
    }
    docnos, texts, titles = ([row[name] for row in rows] for name in ("docno", "docid", "title"))
    write_index(out, pa.table([docnos, texts, tokens, titles], schema=DOCUMENTS), fmt.end, model, facts)


def figures(retriever: Retriever, queries: list[str], dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one loaded retriever."""
    trie, documents, K = retriever.bundle.trie, retriever.bundle.documents, args.draws
    cfg = DecodeConfig(draws=K, mode="reference", order="draw")
    T_K = temperatures(cfg, K)
    tokens = documents["tokens"].to_pylist()
    tree, longest = dict_tree(tokens, retriever.format.end), max(map(len, tokens))
    docnos, leaf_of, depth = documents["docno"].to_pylist(), leaves_by_row(trie), depth_of(trie)
    row_of = {docno: row for row, docno in enumerate(docnos)}
    bar = tqdm(total=args.queries + args.published_queries + args.repeats, desc=dtype, file=sys.stderr)

    seconds: list[float] = []
    processor: list[float] = []
    inside: list[float] = []

    def ours(query: str) -> tuple[list[Hit], float]:
        with forward_clock(retriever.model) as clock:
            started, began = time.perf_counter(), time.process_time()
            hits = retriever.search(query, k=K, config=cfg)
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - began)
        inside.append(sum(clock))
        return hits, seconds[-1]

    for query in queries[:2]:  # the first calls pay for allocations and for reading the index
        ours(query)
    for kept_times in (seconds, processor, inside):
        kept_times.clear()

    same: list[bool] = []
    ratios: list[float] = []
    warm: list[float] = []
    over: list[int] = []
    gains: list[float] = []
    processor_gains: list[float] = []
    published: list[float] = []
    copying: list[float] = []
    for number, query in enumerate(queries[: args.queries]):
        prompt = retriever.format.prompts(retriever.bundle.manifest["instruction"], [query], cfg.query_tokens)[0]
        hits, spent = ours(query)
        drawn = list(dict.fromkeys(leaf_of[row_of[hit.docno]] for hit in hits))
        needed = len(prompt) + tokens_needed(trie, drawn)
        fresh = Retriever(retriever.bundle, retriever.model, retriever.format, retriever.cache)
        for searcher, kept in ((fresh, ratios), (retriever, warm)):
            with made(Search, TreeForward) as new:
                searcher.search(query, k=K, config=cfg)
            searches = [x for x in new if isinstance(x, Search)]
            forwards = [x for x in new if isinstance(x, TreeForward)]
            assert len(searches) == len(forwards) == 1, "one query is one search and one key-value cache"
            kept.append(forwards[0].tokens_forwarded / needed)
            over.append(searches[0].waves - depth)
        if number < args.published_queries:
            before = processor[-1]
            started, began = time.perf_counter(), time.process_time()
            _, copied = draw_published(retriever.model, tree, prompt, T_K, retriever.format.end, longest)
            published.append(time.perf_counter() - started)
            worked = time.process_time() - began
            copying.append(copied)
            gains.append(published[-1] / (0.5 * (spent + ours(query)[1])))  # ours before and after
            processor_gains.append(worked / (0.5 * (before + processor[-1])))
            bar.update()
        leaves = draw_one_by_one(trie, Sequential(retriever.model, prompt), T_K, cfg.seed)
        expected = [docnos[row] for leaf in leaves for row in trie.documents_of(leaf)][:K]
        same.append([hit.docno for hit in hits] == expected)
        bar.update()

    batch_gains: list[float] = []
    retriever.search_many(queries[:BATCH], k=K, config=cfg)  # as the first calls above
    for _ in range(args.repeats):
        started = time.perf_counter()
        retriever.search_many(queries[:BATCH], k=K, config=cfg)
        together = time.perf_counter() - started
        batch_gains.append(sum(ours(query)[1] for query in queries[:BATCH]) / together)
        bar.update()
    bar.close()
    return {
        "identical_share": sum(same) / len(same),
        "speedup": median(gains) if gains else None,
        "token_ratio": sum(ratios) / len(ratios),
        "waves_over_depth": max(over),
        "forward_share": sum(inside) / sum(seconds),
        "batch16_gain": median(batch_gains),
        "p50_seconds": median(seconds),
        "published_seconds": median(published) if published else None,
        "published_copy_seconds": median(copying) if copying else None,
        "token_ratio_warm": sum(warm) / len(warm),
        "speedup_in_processor_seconds": median(processor_gains) if processor_gains else None,
        "speedups": gains,
        "batch16_gains": batch_gains,
        "depth": depth,
        "dtype": dtype,
        "device": str(retriever.model.device),
        "docids": trie.leaves,
        "queries": args.queries,
        "published_queries": len(published),
        "K": K,
    }


class Sequential:
    """Logits of one query as plain decoding computes them: one token after the other behind the prompt's cache."""

    def __init__(self, model: Any, prompt: Sequence[int]) -> None:
        from transformers import DynamicCache

        self.model, self.prompt_tokens = model, len(prompt)
        self.cache, self.path = DynamicCache(), tuple[int, ...]()
        self.known: dict[tuple[int, ...], torch.Tensor] = {(): self._forward(prompt)}

    def __call__(self, path: tuple[int, ...], tokens: list[int]) -> NDArray[np.float32]:
        """Logits of `tokens` after prompt + path. They depend on the path alone, so each is computed once."""
        if path not in self.known:
            kept = next((n for n, (a, b) in enumerate(zip(path, self.path, strict=False)) if a != b), len(self.path))
            self.cache.crop(self.prompt_tokens + kept)
            for n in range(kept, len(path)):
                self.known[path[: n + 1]] = self._forward(path[n : n + 1])
            self.path = path
        return self.known[path][tokens].float().cpu().numpy()

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        logits: torch.Tensor = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1]


def leaves_by_row(trie: Trie) -> dict[int, int]:
    """Document number -> its leaf."""
    leaves = np.flatnonzero(np.diff(trie.first_child.astype(np.int64)) == 0).tolist()
    return {row: leaf for leaf in leaves for row in trie.documents_of(leaf)}


def tokens_needed(trie: Trie, leaves: Sequence[int]) -> int:
    """Path tokens that no way of drawing `leaves` in this order can leave out.

    These are the nodes at which a draw had to choose among two or more children that were left, and their ancestors.
    """
    needed: set[int] = set()
    lost: dict[int, int] = {}  # node -> children removed
    for leaf in leaves:
        path = [leaf]
        while path[-1]:
            path.append(trie.parent(path[-1]))

        def left(node: int) -> int:
            first, last = trie.children(node)
            return last - first - lost.get(node, 0)

        choices = [n for n, node in enumerate(path) if left(node) > 1]
        needed.update(path[min(choices) :] if choices else [])
        for node in path[1:]:
            lost[node] = lost.get(node, 0) + 1
            if left(node):
                break
    return len(needed - {0})


def machine() -> str:
    """Cores, vector instructions and memory, as the system gives them."""
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}, {gib:.0f} GB"


def rounded(value: Any) -> Any:
    """`value` with every number in it to four digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()

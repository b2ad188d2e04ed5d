"""How an index is best searched, and what the parts of its plans count: decided by its own pseudo-queries."""

from __future__ import annotations

from dataclasses import asdict, replace
from heapq import nsmallest
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from zerogr_ray.cache import here
from zerogr_ray.config import DecodeConfig, IndexConfig
from zerogr_ray.corpus.bags import BAG, Bags, taken_off
from zerogr_ray.corpus.draw import draw_places
from zerogr_ray.decoding.choose import PLAN_WEIGHTS, WEIGHTS, Floats, choose, gains, usual, ways, weighed
from zerogr_ray.decoding.gists import GistModel, query_prompts
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.weights import fit_weights, plan_scores
from zerogr_ray.index.bundle import Bundle, opened
from zerogr_ray.index.postings import Postings
from zerogr_ray.models import hush
from zerogr_ray.stage import Output, progress, sample_shards
from zerogr_ray.store import hash64
from zerogr_ray.training.validation import FEWEST, is_held_out

if TYPE_CHECKING:
    from zerogr_ray.publish import Left

RESTARTS = 3
"""Deaths of the process that compares ways of decoding that one build survives."""


def held_queries(pairs: Output, most: int) -> list[tuple[str, str]]:
    """At most `most` (query, docid) that training was not shown: those with the lowest hashes.

    None where there are fewer than FEWEST: what so few say is chance.
    """
    rows: list[tuple[str, str]] = []
    for name in pairs.folder.names("held-", ".parquet"):
        table = pairs.folder.read_table(name).to_pydict()
        rows += zip(table["query"], table["docid"], strict=True)
        rows = nsmallest(most, rows, key=lambda row: (hash64(*row), row))
    return rows if len(rows) >= min(most, FEWEST) else []


class Trial(NamedTuple):
    """Some documents with their gists, and queries that were written for them."""

    postings: Postings
    """Of the documents' words and gists; what queries are expected to say is not in them."""
    queries: list[str]
    right: list[int]
    """Number of the document that each query is for."""


def draw_trial(
    left: Left, bags: Bags, gists: Output, cfg: IndexConfig, sizes: dict[str, int], most: int = 1000
) -> Trial | None:
    """At most `most` documents and cfg.calibration.weighed_by of their queries, by their hashes; none held back.

    `bags` are the index's, `gists` what add_gists has written. None where there are fewer than FEWEST queries.
    """
    if left.queries is None or left.bags is None or not cfg.calibration.weighed_by:
        return None
    # Of a large corpus a few shards: what a document has is spread over four outputs, and a shard is read whole.
    some = sample_shards(sizes, 50 * most)
    found = [place for _, place in draw_places(left.source, most, cfg.seed, some)]
    rows = zip(left.source.rows_at(found, ["docno"]), left.queries.rows_at(found, ["queries"]), strict=True)
    asked = [
        (hash64(query, row["docno"]), query, number)
        for number, (row, written) in enumerate(rows)
        for query in written["queries"]
        if not is_held_out(left.held, row["docno"], query)
    ]
    if len(asked) < FEWEST:
        return None
    asked = nsmallest(cfg.calibration.weighed_by, asked)
    alone = pa.Table.from_pylist(gists.rows_at(found), schema=BAG)
    if left.expected is not None:
        alone = taken_off(alone, pa.Table.from_pylist(left.expected.rows_at(found), schema=BAG))
    starts = dict(zip(sorted(sizes), accumulate((sizes[shard] for shard in sorted(sizes)), initial=0), strict=False))
    own = left.bags.take(np.array([starts[shard] + row for shard, row in found]))
    assert bags.prior is not None
    postings = Postings.of_bags(own.with_gists([alone], bags.prior))
    return Trial(postings, [query for _, query, _ in asked], [number for *_, number in asked])


class Judge:
    """Ray actor: the index that is being built, searched as each way of decoding would."""

    def __init__(self, place: str, manifest: dict[str, Any], queries: list[tuple[str, str]], device: str) -> None:
        hush()
        self.retriever = Retriever.open(opened(here(place), manifest), device)
        self.queries = queries

    def measure(self, cfg: DecodeConfig) -> Floats:
        """Its nDCG@10 on each of the held-back queries."""
        return gains(self.retriever, self.queries, cfg)

    def weigh(self, trial: Trial) -> dict[str, float]:
        """What the parts of its plans count, by the queries of the trial."""
        asked = GistModel(self.retriever.model, self.retriever.format)
        manifest = self.retriever.bundle.manifest
        tokens = query_prompts(asked.format, manifest["instruction"], trial.queries, DecodeConfig().query_tokens)
        return fit_weights(plan_scores(asked.logprobs(tokens), trial.queries, trial.postings), trial.right)


def choose_decoding(
    bundle: Bundle,
    place: str,
    queries: list[tuple[str, str]],
    trial: Trial | None,
    resources: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """What the manifest says of the choice: `decode`, and `decode_tried` with the figure of every way.

    `place` is where any node finds the index's files.
    """
    import ray

    device = "cuda" if resources["num_gpus"] else "cpu"
    # Measured anew on another process or node where this one dies: what it says depends on nothing else. Ray counts
    # every refused connection to a lost node as a try, and it takes a while to hear of the loss: so the restarts count.
    lasting = {"max_restarts": RESTARTS, "max_task_retries": -1}
    judge: Any = ray.remote(**resources, **lasting)(Judge).remote(place, bundle.manifest, queries, device)
    try:
        learned = {PLAN_WEIGHTS: ray.get(judge.weigh.remote(trial))} if trial is not None else {}
        bundle = replace(bundle, manifest={**bundle.manifest, **learned})
        plain = usual(bundle)
        if not queries:
            return learned | {"decode": plain.model_dump()}
        among = list(ways(bundle))
        most = len(among) + (len(WEIGHTS) - 1 if bundle.priors is not None else 0)
        with progress("decoding", most, unit="ways", quiet=quiet) as bar:

            def measure(cfg: DecodeConfig) -> Floats:
                found: Floats = ray.get(judge.measure.remote(cfg))
                bar.update()
                return found

            choice = choose(among, plain, measure, lambda best: weighed(best, bundle))
    finally:
        ray.kill(judge)
    return learned | {"decode": choice.best.model_dump(), "decode_tried": asdict(choice)["tried"]}

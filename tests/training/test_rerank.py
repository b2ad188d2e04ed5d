import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_batches import VOCAB, tokens
from tests.training.test_loop import CFG, StoppedError, assert_same
from zerogr_ray.chat import PromptFormat
from zerogr_ray.errors import BuildError, ModelError
from zerogr_ray.models import load_format, load_model
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder
from zerogr_ray.training.batches import pack
from zerogr_ray.training.examples import Example, ExampleStream
from zerogr_ray.training.loop import train
from zerogr_ray.training.losses import pack_losses, ranknet
from zerogr_ray.training.rerank import rerank_token, write_candidates
from zerogr_ray.training.tasks import Retrieve

pytestmark = pytest.mark.model

RESERVED = VOCAB - 1
RANKING = CFG.model_copy(update={"rerank_every": 2, "rerank_candidates": 4})


@st.composite
def ranked_batches(draw):
    """Examples with and without wrong answers, behind a shared beginning."""
    prefix = draw(st.lists(st.integers(0, VOCAB - 1), max_size=5))
    own = draw(st.lists(st.tuples(tokens, tokens, st.lists(tokens, max_size=3)), min_size=1, max_size=4))
    return [Example(prefix + prompt, answer, f"q{i}", tuple(wrong)) for i, (prompt, answer, wrong) in enumerate(own)]


def plain_losses(model, examples):
    """One forward per prompt and answer, nothing packed: (cross-entropy, RankNet)."""
    answers, ranking = torch.zeros(()), torch.zeros(())
    for e in examples:
        logits = model(torch.tensor([e.prompt + e.answer])).logits[0].log_softmax(-1)
        for at, token in enumerate(e.answer):
            answers = answers - logits[len(e.prompt) + at - 1, token]
        if e.wrong:
            right, *wrong = (model(torch.tensor([e.prompt + a])).logits[0, -1, RESERVED] for a in (e.answer, *e.wrong))
            ranking = ranking + sum(torch.log1p(torch.exp(s - right)) for s in wrong) / len(wrong)
    return answers, ranking


@settings(max_examples=25, deadline=None)
@given(ranked_batches(), st.integers(8, 64))
def test_losses_and_gradients_of_the_tree_are_those_of_every_answer_alone(examples, pack_tokens):
    model = tiny_model(VOCAB)
    answers, ranking = plain_losses(model, examples)
    (answers + ranking).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = [pack_losses(model, one, RESERVED) for one in pack(examples, pack_tokens)]
    total = sum(losses.answers + (losses.ranking if losses.ranking is not None else 0) for losses in found)
    total.backward()
    assert float(sum(losses.answers for losses in found).detach()) == pytest.approx(float(answers.detach()), rel=1e-5)
    ranked = sum(float(losses.ranking.detach()) for losses in found if losses.ranking is not None)
    assert ranked == pytest.approx(float(ranking.detach()), rel=1e-4, abs=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-5 * max(1.0, largest))


def test_ranknet_by_hand():
    scores = torch.tensor([1.0, 0.0, 3.0, 0.5, 0.5])
    query, right = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, False, False, True, False])
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2 + math.log(2)
    assert float(ranknet(scores, query, right)) == pytest.approx(wanted)


def test_the_reserved_token_is_one_that_nothing_writes():
    tokenizer = tiny_tokenizer()
    fmt = PromptFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(rerank_token(fmt)) == "<|endoftext|>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "<|reserved_special_token_3|>"]})
    assert tokenizer.convert_ids_to_tokens(rerank_token(PromptFormat(tokenizer))) == "<|reserved_special_token_3|>"


def test_a_tokenizer_without_a_spare_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    with pytest.raises(ModelError, match=r"no special token to spare .*rerank_every=0"):
        rerank_token(PromptFormat(tokenizer))


def candidates_beside(folder, shards, wrong=3):
    folder.mkdir()
    for shard in shards:
        rows = pq.read_table(shard).to_pylist()
        lists = [[f"d{(int(row['docid'][1:]) + n) % 24}" for n in range(1, wrong + 1)] for row in rows]
        pq.write_table(pa.table({"wrong": lists}), folder / shard.name)
    return sorted(folder.iterdir())


@pytest.fixture
def ranked_run(source, shards, tmp_path):
    """`run(folder, stop_after=None, **settings)`: a training with candidates; (weights, rows reported)."""
    beside = candidates_beside(tmp_path / "beside", shards)

    def run(folder, stop_after=None, **settings):
        seen = []

        def report(row):
            seen.append(row)
            if row["step"] == stop_after:
                raise StoppedError

        cfg = RANKING.model_copy(update=settings)
        model = load_model(source, "float32", "cpu")
        stream = ExampleStream(shards, Retrieve("Retrieve.", 96), load_format(source), cfg, beside, buffer_rows=8)
        train(model, stream, cfg, folder, report, fingerprint="f")
        return {name: p.detach().clone() for name, p in model.named_parameters()}, seen

    return run


def test_every_nth_step_ranks_the_right_docid_above_the_wrong_ones(ranked_run, tmp_path):
    _, rows = ranked_run(tmp_path / "out", epochs=30.0, learning_rate=1e-2, rerank_weight=5.0)
    ranked = [row["rerank_loss"] for row in rows if "rerank_loss" in row]
    assert [row["step"] for row in rows if "rerank_loss" in row] == list(range(2, 121, 2))
    assert sum(ranked[-3:]) < 0.7 * sum(ranked[:3])


def test_a_stream_reads_each_rows_own_candidates(source, shards, tmp_path):
    beside = candidates_beside(tmp_path / "beside", shards)
    fmt = load_format(source)
    stream = ExampleStream(shards, Retrieve("Retrieve.", 96), fmt, RANKING, beside, buffer_rows=8)
    for step, examples in enumerate(stream.step_batches(), start=1):
        for e in examples:
            right = int(fmt.tokenizer.decode(e.answer[:-1])[1:])
            wrong = [fmt.tokenizer.decode(docid[:-1]) for docid in e.wrong]
            assert wrong == ([f"d{(right + n) % 24}" for n in (1, 2, 3)] if step % 2 == 0 else [])
            assert all(docid[-1] == fmt.end for docid in e.wrong)


def test_a_wrong_docid_without_tokens_is_refused_before_the_first_step(ranked_run, tmp_path):
    path = tmp_path / "beside" / "part-0001.parquet"
    lists = pq.read_table(path)["wrong"].to_pylist()
    pq.write_table(pa.table({"wrong": [*lists[:-1], ["d1", ""]]}), path)
    with pytest.raises(BuildError, match=r"the wrong docid '' in .*part-0001.parquet to nothing"):
        ranked_run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_ranking_run_ends_with_the_weights_of_an_undisturbed_one(ranked_run, tmp_path, monkeypatch):
    monkeypatch.setattr("zerogr_ray.training.loop.WRITING_SHARE", math.inf)
    undisturbed, _ = ranked_run(tmp_path / "whole")
    for step in (3, 6):
        with pytest.raises(StoppedError):
            ranked_run(tmp_path / "broken", stop_after=step)
    assert_same(undisturbed, ranked_run(tmp_path / "broken")[0])


def test_candidates_are_the_docids_of_bm25s_best_wrong_documents(tmp_path):
    work = Folder(tmp_path)
    texts = ["red fox", "red fox den", "red hat", "json file", "web browser", "red fox twin"]
    docids = ["fox", "fox den", "hat", "json", "web", "fox"]  # the last shares the first's docid
    parts = {name: Output.at(work, name, "k") for name in ("corpus", "docids", "pairs", "candidates")}
    for number, at in enumerate((0, 3)):
        shard = f"part-{number:05d}.parquet"
        some = slice(at, at + 3)
        parts["corpus"].folder.write_table(shard, pa.table({"title": [""] * 3, "text": texts[some]}))
        parts["docids"].folder.write_table(shard, pa.table({"docid": docids[some]}))
    rows = {"query": ["red fox", "zzz"], "docid": ["fox", "json"]}
    parts["pairs"].folder.write_table("part-00000.parquet", pa.table(rows))
    parts["pairs"].finish(2)
    made = write_candidates(*parts.values(), wrong=2, seed=1, quiet=True)
    assert made["rows"] == 2
    first, second = parts["candidates"].folder.read_table("part-00000.parquet")["wrong"].to_pylist()
    assert first == ["fox den", "hat"]
    assert len(set(second)) == len(second) <= 2  # nothing found: drawn from the corpus, by the seed
    assert "json" not in second
    assert set(second) <= set(docids)
    again = Output.at(work, "candidates", "again")
    write_candidates(*list(parts.values())[:3], again, wrong=2, seed=1, quiet=True)
    assert again.folder.read("part-00000.parquet") == parts["candidates"].folder.read("part-00000.parquet")

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_tokenizer
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import BuildError
from zerogr_ray.training.examples import ExampleStream
from zerogr_ray.training.tasks import Retrieve

pytestmark = pytest.mark.model

FMT = PromptFormat(tiny_tokenizer())


def write_shards(folder: Path, sizes: list[int]) -> list[Path]:
    """Shards whose queries are "q0", "q1", ... and whose docids are "d0", "d1", ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for number, size in enumerate(sizes):
        paths.append(folder / f"part-{number:04d}.parquet")
        rows = range(first, first + size)
        pq.write_table(pa.table({"query": [f"q{i}" for i in rows], "docid": [f"d{i}" for i in rows]}), paths[-1])
        first += size
    return paths


def stream(shards: list[Path], buffer_rows: int = 8, **settings: object) -> ExampleStream:
    return ExampleStream(shards, Retrieve("Retrieve.", 96), FMT, TrainingConfig(**settings), buffer_rows=buffer_rows)


def test_every_epoch_reads_every_example_once_in_an_order_of_its_own(tmp_path):
    examples = stream(write_shards(tmp_path, [3, 5, 1, 7, 4]), epochs=3)
    rows = list(examples.rows())
    epochs = [rows[at : at + 20] for at in (0, 20, 40)]
    assert all(sorted(epoch) == sorted((f"q{i}", f"d{i}") for i in range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed_alone(tmp_path):
    shards = write_shards(tmp_path, [5, 5, 5])
    assert list(stream(shards, seed=1).rows()) == list(stream(shards, seed=1).rows())
    assert list(stream(shards, seed=1).rows()) != list(stream(shards, seed=2).rows())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    epochs=st.floats(0.1, 2.5),
    buffer_rows=st.integers(1, 12),
    data=st.data(),
)
def test_starting_anywhere_gives_the_rest_of_the_same_sequence(tmp_path_factory, sizes, epochs, buffer_rows, data):
    shards = write_shards(tmp_path_factory.mktemp("shards"), sizes)
    examples = stream(shards, buffer_rows, epochs=epochs)
    whole = list(examples.rows())
    start = data.draw(st.integers(0, examples.total))
    assert len(whole) == examples.total
    assert list(examples.rows(start)) == whole[start:]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_steps_are_the_same_whatever_the_number_of_workers(tmp_path, world):
    examples = stream(write_shards(tmp_path, [9, 14]), epochs=1.4, batch_examples=6)
    steps = [[e.query for e in step] for step in examples.step_batches()]
    shares = [[[e.query for e in step] for step in examples.step_batches(0, rank, world)] for rank in range(world)]
    assert len(steps) == examples.steps == 6
    for number, step in enumerate(steps):
        assert [shares[rank][number] for rank in range(world)] == [step[rank::world] for rank in range(world)]


def test_a_resumed_stream_begins_at_its_step_and_skips_shards_before_it(tmp_path, monkeypatch):
    examples = stream(write_shards(tmp_path, [8] * 10), batch_examples=8, epochs=1)
    whole = list(examples.step_batches())
    opened = []
    real = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path, *rest, **more: opened.append(path) or real(path, *rest, **more))
    assert list(examples.step_batches(first=8)) == whole[8:]
    assert len(opened) == 2


def test_an_answer_is_the_docid_and_the_end_of_turn(tmp_path):
    example = next(iter(stream(write_shards(tmp_path, [1])).step_batches()))[0]
    assert FMT.tokenizer.decode(example.prompt).endswith("q0<|im_end|>\n<|im_start|>assistant\n")
    assert FMT.tokenizer.decode(example.answer) == "d0<|im_end|>"


def test_an_empty_docid_and_an_empty_set_are_refused(tmp_path):
    with pytest.raises(BuildError, match="the docid '' of the query 'red'"):
        stream([]).encode([("red", "")])
    with pytest.raises(BuildError, match="lacks its query"):
        stream([]).encode([(None, "x")])
    with pytest.raises(BuildError, match="training set is empty"):
        list(stream(write_shards(tmp_path, [0])).rows())


def test_an_answer_without_tokens_is_found_before_the_step_that_asks_for_it(tmp_path):
    paths = write_shards(tmp_path, [40, 40])
    rows = pq.read_table(paths[1]).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, {"query": "red", "docid": ""}]), tmp_path / "part-0002.parquet")
    examples = stream([*paths, tmp_path / "part-0002.parquet"])
    with pytest.raises(
        BuildError, match=r"docid '' of the query 'red' in .*part-0002.parquet to nothing; .*--set model"
    ):
        examples.check()
    stream(paths).check()
    examples.check(rank=1, world=2)  # of three shards the second
    beside = [tmp_path / f"beside-{number}.parquet" for number in range(2)]
    for path, wrong in zip(beside, (["d1", "d2"], ["d3", ""]), strict=True):
        pq.write_table(pa.table({"wrong": [["d9"]] * 39 + [wrong]}), path)
    ranked = ExampleStream(paths, Retrieve("Retrieve.", 96), FMT, TrainingConfig(), beside)
    with pytest.raises(BuildError, match=r"the wrong docid '' in .*beside-1.parquet to nothing"):
        ranked.check()

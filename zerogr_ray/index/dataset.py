"""The rows of the trie from a Ray Dataset: tokenised by the cluster and gathered into one array.

rows = trie_rows(ray.data.read_parquet("s3://bucket/docids/"), prompt_format.docids, prompt_format.end)
trie, order = Trie.from_rows(rows)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from zerogr_ray.index.trie_build import Ints, docid_rows

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset

Tokenise = Callable[[Sequence[str]], Sequence[Sequence[int]]]

DOCIDS = 1 << 16
"""Docids that a task tokenises at a time: some 10 MB as Python objects, 1.5 MB as it sends them."""


def trie_rows(docids: Dataset, tokens: Tokenise, end: int) -> Ints:
    """Tokens of the column "docid", shape (documents, longest + 1), each row filled up with the token `end`.

    Row i is row i of `docids` in the order of its blocks. `tokens` turns texts into tokens (PromptFormat.docids) and
    travels to the workers. The packed tokens of all docids pass through the object store, about 25 bytes each.
    Raises ValueError for no docids, an empty docid, and a docid that holds `end`.
    """

    def pack(batch: pa.Table) -> pa.Table:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core; the tokenizer would take them all
        rows = docid_rows(tokens(batch["docid"].to_pylist()), end)
        packed = pa.array([rows.tobytes()], pa.large_binary())
        return pa.table({"rows": [len(rows)], "width": [rows.shape[1]], "type": [rows.dtype.name], "tokens": packed})

    with _in_order(docids.context):
        # Materialised, since neither the number of docids nor the longest is known before all are tokenised.
        packed = (
            docids.select_columns(["docid"])
            .map_batches(pack, batch_size=DOCIDS, batch_format="pyarrow", zero_copy_batch=True)
            .materialize()
        )
        shapes = packed.select_columns(["rows", "width", "type"]).take_all()
        if not shapes:
            raise ValueError("a trie needs at least one docid")
        width, dtype = max(shape["width"] for shape in shapes), np.result_type(*(shape["type"] for shape in shapes))
        rows = np.full((sum(shape["rows"] for shape in shapes), width), end, dtype=dtype)
        start = 0
        for part in packed.iter_rows():
            past = start + part["rows"]
            rows[start:past, : part["width"]] = np.frombuffer(part["tokens"], part["type"]).reshape(part["rows"], -1)
            start = past
    return rows


@contextmanager
def _in_order(context: DataContext) -> Iterator[None]:
    """Ray Data keeps the order of rows, and a worker's own error reaches the caller, until the block ends."""
    options: Any = context.execution_options
    before = options.preserve_order, context.raise_original_map_exception
    try:
        options.preserve_order = context.raise_original_map_exception = True
        yield
    finally:
        options.preserve_order, context.raise_original_map_exception = before

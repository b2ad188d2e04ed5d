"""Arrow tables of more documents than fit into memory as Python objects: laid down in chunks, read back by row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK = 1 << 18
"""Rows of a chunk, or a few more: a chunk for every small shard would slow every access."""


def spooled(tables: Iterable[pa.Table], schema: pa.Schema, file: Path) -> pa.Table:
    """These tables as one, memory-mapped from `file`, whose name is gone then: its space is free when the table is."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= CHUNK:
                writer.write_table(pa.concat_tables(held).cast(schema).combine_chunks())
                held.clear()
        writer.write_table(pa.concat_tables([schema.empty_table(), *held]).cast(schema).combine_chunks())
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    file.unlink()
    return table


def take(table: pa.Table, rows: NDArray[Any]) -> pa.Table:
    """The given rows of a table, in their order, as one chunk.

    Table.take joins all chunks of a column before it takes a row: it reads the whole column, and fails on one of
    more than 2 GiB. This reads what it returns, and looks at every chunk: there should be few.
    """
    batches = table.to_batches()
    if len(batches) == 1:
        return pa.Table.from_batches([batches[0].take(pa.array(np.asarray(rows).astype(np.int64)))])
    ends = np.cumsum([batch.num_rows for batch in batches])
    order = np.argsort(rows, kind="stable")
    ascending = np.asarray(rows)[order].astype(np.int64)
    cuts = [0, *np.searchsorted(ascending, ends)]
    parts = [
        batch.take(pa.array(ascending[first:past] - (end - batch.num_rows)))
        for batch, end, first, past in zip(batches, ends, cuts[:-1], cuts[1:], strict=True)
        if first < past
    ]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return pa.Table.from_batches(parts, table.schema).combine_chunks().take(pa.array(place))

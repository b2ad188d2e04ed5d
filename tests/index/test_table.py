"""A table that lies on the disk is the one that was laid down."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from zerogr_ray.index import table
from zerogr_ray.index.table import spooled, take

SCHEMA = pa.schema([("docno", pa.string()), ("tokens", pa.list_(pa.uint32()))])


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_tables_become_one_in_chunks_and_leave_no_file(tmp_path, chunk):
    rows = pa.table([[f"d{row}" for row in range(10)], [[row] * (row % 3) for row in range(10)]], schema=SCHEMA)
    parts = [rows.slice(start, 3) for start in range(0, 10, 3)]
    with mock.patch.object(table, "CHUNK", chunk):
        laid = spooled(iter(parts), SCHEMA, tmp_path / "rows.arrow")
    assert laid.equals(rows)
    assert list(tmp_path.iterdir()) == []
    assert take(laid, np.array([7, 0, 7]))["docno"].to_pylist() == ["d7", "d0", "d7"]


def test_no_tables_become_an_empty_one(tmp_path):
    assert spooled([], SCHEMA, tmp_path / "rows.arrow").num_rows == 0

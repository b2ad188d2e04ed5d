"""What is looked at before a corpus is worked on: some of its documents, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from zerogr_ray.corpus.documents import corpus_files, read_documents
from zerogr_ray.corpus.files import Source, lines
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document

FILES = 16
"""Files of a corpus that a sample is taken from, spread evenly over it."""


@dataclass(frozen=True)
class Sample:
    """The first documents of some of a corpus's files."""

    documents: list[Document]
    total: int
    """Documents of the corpus, or those that were said to be there."""


def read_sample(corpus: str, text_chars: int, wanted: int, total: int | None = None) -> Sample:
    """`wanted` documents of `corpus` or all of them; the corpus is counted unless `total` says how many there are.

    Rows are counted: parquet by its footers, jsonl by its lines. What share of the sample's rows is no document is
    taken off. Raises InputError for a corpus that cannot be read, or in whose sample there is no document.
    """
    files = corpus_files(corpus)
    chosen = [files[i * len(files) // min(FILES, len(files))] for i in range(min(FILES, len(files)))]
    each = -(-wanted // len(chosen))
    rows = [row for file in chosen for row in islice(read_documents(file.shown, text_chars), each)]
    documents = [row for row in rows if isinstance(row, Document)]
    if not documents:
        raise InputError(f"{corpus}: none of the first {len(rows)} rows is a document; zerogr index says why")
    if total is None:
        total = round(sum(map(_rows, files)) * len(documents) / len(rows))
    return Sample(documents, max(1, total))


def _rows(file: Source) -> int:
    if file.name.lower().endswith(".parquet"):
        import pyarrow.parquet as pq

        with file.reading() as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)
    return sum(1 for _ in lines(file))

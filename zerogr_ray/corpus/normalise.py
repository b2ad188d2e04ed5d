"""The first stage: any corpus becomes shards of clean documents, in the order in which it lists them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from zerogr_ray.config import CorpusConfig
from zerogr_ray.corpus.documents import file_stamps, read_documents, refuse_changed, stamp_of
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document, Rejected, document_schema
from zerogr_ray.stage import Output, progress
from zerogr_ray.store import Folder, key_of


def normalise(corpus: str, work: Folder, cfg: CorpusConfig, quiet: bool = False) -> tuple[Output, dict[str, Any]]:
    """Read `corpus` into shards under `work`, unless that was done and the files have not changed since.

    Returns the output and its manifest: rows, rejected, the fingerprint of the documents' contents, and the rows of
    each shard. Rows that cannot be taken go to rejected/ beside the shards' folder.
    Raises InputError where nothing can be taken at all, and where a file changes while it is read.
    """
    stamps = file_stamps(corpus)
    output = _output(stamps, work, cfg)
    if (manifest := output.done()) is not None:
        return output, manifest
    digest, rejected = hashlib.sha256(), 0
    sizes: dict[str, int] = {}
    first_reason, rejects = "", Rejects(work / "rejected", output.folder.path.rsplit("/", 1)[-1])
    shard: list[Document] = []

    def commit() -> None:
        name = f"part-{len(sizes):06d}.parquet"
        sizes[name] = len(shard)
        output.folder.write_table(name, _table(shard))
        shard.clear()

    with progress("corpus", None, quiet=quiet) as bar:
        for row in read_documents(corpus, cfg.text_chars):
            if isinstance(row, Rejected):
                rejected += 1
                first_reason = first_reason or f"{row.file}, line {row.line}: {row.reason}"
                rejects.add(row)
                continue
            digest.update(json.dumps([row.docno, row.title, row.text]).encode())
            shard.append(row)
            bar.update()
            if len(shard) == cfg.shard_rows:
                commit()
        if shard:
            commit()
    rejects.close()
    try:
        refuse_changed(corpus, stamps)
    except InputError:
        output.folder.delete()  # its name promises the state of before
        raise
    if not sizes:
        raise InputError(f"{corpus}: none of its {rejected} rows is a document; the first: {first_reason}")
    facts = {"rejected": rejected, "rejects": str(rejects), "sizes": sizes, "fingerprint": digest.hexdigest()[:16]}
    return output, output.finish(sum(sizes.values()), **facts)


def normalised(corpus: str, work: Folder, cfg: CorpusConfig) -> bool:
    """Whether `normalise` would find its work done."""
    return _output(file_stamps(corpus), work, cfg).done() is not None


def _output(stamps: dict[str, tuple[str, int, str]], work: Folder, cfg: CorpusConfig) -> Output:
    return Output.at(work, "corpus", key_of("corpus", 1, stamp_of(stamps), cfg.model_dump()))


class Rejects:
    """Rows that were not taken, written in parts so that a corpus full of them needs no memory."""

    PART = 10_000

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[Rejected] = []
        self.parts = 0

    def __str__(self) -> str:
        return self.folder.url_of(self.name) if self.parts else ""

    def add(self, row: Rejected) -> None:
        """Take one more."""
        self.rows.append(row)
        if len(self.rows) == self.PART:
            self.close()

    def close(self) -> None:
        """Write what has been taken since the last part."""
        if self.rows:
            lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)
            self.folder.write(f"{self.name}/part-{self.parts:05d}.jsonl", lines.encode())
            self.parts += 1
            self.rows.clear()


def _table(documents: list[Document]) -> Any:
    import pyarrow as pa

    columns = [[d.docno for d in documents], [d.title for d in documents], [d.text for d in documents]]
    return pa.table(columns, schema=document_schema())

"""Documents of a corpus, streamed: jsonl and parquet, one file or a folder of shards, BEIR and MAIR folders."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator

from zerogr_ray.corpus.fields import RowError, clean, identifier, parse_object, pick, text
from zerogr_ray.corpus.files import SUFFIXES, Source, first_file, lines, locate, parquet_batches
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document, Rejected
from zerogr_ray.s3 import reaching
from zerogr_ray.store import hash64

DOCNO_FIELDS = ("_id", "id", "docno", "doc_id", "docid")
TEXT_FIELDS = ("text", "doc", "contents", "content", "body")
TITLE_FIELD = "title"
CORPUS_STEMS = ("corpus", "docs")
ROW_CHARS = 500

Outcome = tuple[Document | RowError, int, str]
"""What became of a row, its line (row of a parquet file) from 1, and how it begins."""


def read_documents(path: str, text_chars: int) -> Iterator[Document | Rejected]:
    """Every row of a corpus, in order, as a Document or as Rejected with the reason.

    `path` is local or a URL such as s3://: one .jsonl, .ndjson (both also .gz) or .parquet file, a folder of such
    shards, or a BEIR or MAIR folder. Blank lines are no rows. Cleaning: in docno, title and text, control characters
    other than newline and tab become a space and lone surrogates U+FFFD; a docno also loses its newlines, tabs and
    outer space; title and text are cut to `text_chars` characters.

    Memory holds one batch of rows and a digest of every docno (see Seen).

    Raises InputError for a path that is missing or holds nothing readable (at once), and for a damaged file or a
    corpus without rows (when the reading gets there).
    """
    return _read(corpus_files(path), path, text_chars)


def source_stamp(path: str) -> str:
    """sha256 over the name, size and date (or etag) of each corpus file: it changes when the corpus does.

    Only names inside the corpus count, so a copy that keeps its dates keeps its stamp. Raises InputError.
    """
    return stamp_of(file_stamps(path))


def file_stamps(path: str) -> dict[str, tuple[str, int, str]]:
    """Each corpus file -> (its name inside the corpus, size, date or etag). Raises InputError."""
    stamps = {}
    for source in corpus_files(path):
        with reaching(source.shown):
            info = source.fs.info(source.name)
        date = next((info[key] for key in ("ETag", "mtime", "LastModified", "created") if info.get(key)), "")
        stamps[source.shown] = (source.name.rsplit("/", 1)[-1], info["size"], str(date))
    return stamps


def stamp_of(stamps: dict[str, tuple[str, int, str]]) -> str:
    """The stamp of a corpus of these files."""
    return hashlib.sha256(b"".join(json.dumps(stamp).encode() for stamp in stamps.values())).hexdigest()


def refuse_changed(path: str, before: dict[str, tuple[str, int, str]]) -> None:
    """Raises InputError if a corpus file is not what `file_stamps` said before: rows of two states may be mixed."""
    now = file_stamps(path)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = "changed" if name in before and name in now else "appeared" if name in now else "vanished"
            raise InputError(
                f"{name} {what} while the corpus was read; run the same command again when nobody writes to {path}"
            )


def corpus_files(path: str) -> list[Source]:
    """The files that hold a corpus, sorted by name. Raises InputError, naming what was found instead."""
    root = locate(path)
    readable = ", ".join(SUFFIXES)
    if not root.is_folder():
        if not root.name.lower().endswith(SUFFIXES):
            raise InputError(f"{path} is not a corpus file; files that can be read end in {readable}")
        return [root]
    found = [name for name in root.children() if not name.startswith((".", "_"))]
    if "qrels/" in found or any(name.startswith("queries.") for name in found):
        # A test collection: its queries have ids and text as well, and must not be read as documents.
        corpus = first_file(root, [stem + suffix for stem in CORPUS_STEMS for suffix in SUFFIXES])
        if corpus is None:
            raise InputError(f"{path} holds queries but no corpus.jsonl (BEIR) or docs.jsonl (MAIR); add the corpus")
        return [corpus]
    shards = [root / name for name in found if name.lower().endswith(SUFFIXES)]
    if not shards:
        others = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise InputError(f"the folder {path} holds {others or 'nothing'}; files that can be read end in {readable}")
    return shards


def _read(sources: list[Source], path: str, text_chars: int) -> Iterator[Document | Rejected]:
    rows = 0
    seen = Seen()
    for source in sources:
        parquet = source.name.lower().endswith(".parquet")
        for taken, line, excerpt in _parquet(source, text_chars) if parquet else _jsonl(source, text_chars):
            rows += 1
            if isinstance(taken, Document):
                if seen.is_new(taken.docno):
                    yield taken
                    continue
                taken = RowError(f"docno {taken.docno[:80]!r} was there before; the first row with it is kept")
            yield Rejected(source.shown, line, str(taken), excerpt[:ROW_CHARS])
    if not rows:
        raise InputError(f"{path} has no rows; a corpus needs at least one document")


class Seen:
    """The docnos so far, by a digest each: an open hash table of 16 to 32 bytes a docno, where a set takes 100."""

    def __init__(self) -> None:
        self.slots = array("Q", bytes(8 << 10))
        self.taken = 0

    def is_new(self, docno: str) -> bool:
        """Whether `docno` has not been there before; from now on it has."""
        if not self._put(hash64(docno) or 1):  # 0 is a free slot
            return False
        self.taken += 1
        if 2 * self.taken > len(self.slots):
            before, self.slots = self.slots, array("Q", bytes(16 * len(self.slots)))
            for digest in filter(None, before):
                self._put(digest)
        return True

    def _put(self, digest: int) -> bool:
        slots, last = self.slots, len(self.slots) - 1
        slot = digest & last
        while slots[slot]:
            if slots[slot] == digest:
                return False
            slot = (slot + 1) & last
        slots[slot] = digest
        return True


def _jsonl(source: Source, text_chars: int) -> Iterator[Outcome]:
    for number, raw in lines(source):
        excerpt = raw[: 4 * ROW_CHARS].decode("utf-8", "replace")
        try:
            yield _document(parse_object(raw), None, text_chars), number, excerpt
        except RowError as error:
            yield error, number, excerpt


def _parquet(source: Source, text_chars: int) -> Iterator[Outcome]:
    number = 0
    for names, batch in parquet_batches(source, (*DOCNO_FIELDS, *TEXT_FIELDS, TITLE_FIELD)):
        for index in range(batch.num_rows):
            number += 1
            row: dict[str, object] = {}
            try:
                # Column by column: a string that is not UTF-8 costs its own row, not the batch.
                for name in batch.schema.names:
                    row[name] = _value(name, batch.column(name)[index])
                yield _document(row, names, text_chars), number, _excerpt(row)
            except RowError as error:
                yield error, number, _excerpt(row)


def _value(name: str, scalar: object) -> object:
    try:
        return scalar.as_py()  # type: ignore[attr-defined]
    except UnicodeDecodeError:
        raise RowError(f"field {name!r} is not UTF-8") from None


def _excerpt(row: dict[str, object]) -> str:
    short = {name: value[:ROW_CHARS] if isinstance(value, (str, bytes)) else value for name, value in row.items()}
    return json.dumps(short, ensure_ascii=False, default=str)


def _document(row: dict[str, object], present: list[str] | None, text_chars: int) -> Document:
    docno = identifier(*pick(row, DOCNO_FIELDS, present))
    body = clean(text(*pick(row, TEXT_FIELDS, present))[:text_chars])
    title = clean(text(TITLE_FIELD, row.get(TITLE_FIELD))[:text_chars])
    if not body.strip() and not title.strip():
        raise RowError(f"document {docno[:80]!r} is empty: it has neither title nor text")
    return Document(docno=docno, text=body, title=title)

"""One loaded version of an index, kept in step with the journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import InputError
from zerogr_ray.index.manifest import pinned, read_manifest
from zerogr_ray.serving.journal import Change, Journal
from zerogr_ray.serving.state import VersionRef

if TYPE_CHECKING:
    from zerogr_ray.decoding.job import Request
    from zerogr_ray.decoding.retriever import Retriever


class Version:
    """A retriever that has the journal's changes in it. One thread calls everything but `facts`."""

    def __init__(self, name: str, ref: VersionRef, retriever: Retriever, journal: Journal) -> None:
        self.name, self.ref, self.retriever, self.journal = name, ref, retriever, journal
        self.label = label_of(retriever.bundle.manifest)
        self.position = journal.position_of(ref.folded)
        self.skipped = 0
        """Additions that this version's tokenizer cannot write."""

    def catch_up(self) -> None:
        """Apply what the journal holds by now. Raises IndexRefused where the journal is damaged."""
        changes, position = self.journal.since(self.position)
        for run in runs(changes):
            if run[0].op == "delete":
                self.retriever.remove(list(self.titles([change.docno for change in run])))
            else:
                self._add(run)
        self.position = position

    def titles(self, docnos: Sequence[str]) -> dict[str, str]:
        """docno -> title of those of these documents that may be shown."""
        return self.retriever.live.titles(docnos)

    def check_docid(self, docid: str) -> None:
        """Raises InputError for a docid that the model cannot write."""
        tokens = self.retriever.format.docids([docid])[0]
        if not tokens or self.retriever.format.end in tokens:
            raise InputError(f"the docid {docid!r} cannot be written by the model of {self.name}; choose other words")

    def exhausted(self, request: Request) -> int:
        """Docids that mode exhaustive would score for it; 0 where it does not ask for that mode."""
        if request.settings.get("mode") != "exhaustive":
            return 0
        every = self.retriever.live.counts["living"] if request.docnos is None else len(request.docnos)
        planned: int = request.settings.get("plan_ahead", self.retriever.bundle.decode.plan_ahead)
        return min(every, planned) if planned else every

    def facts(self) -> dict[str, Any]:
        """What a caller may know of it."""
        manifest = self.retriever.bundle.manifest
        return {
            "name": self.name,
            "version": self.label,
            "instruction": manifest["instruction"],
            "model": str(manifest.get("model", {}).get("trained_from", "")).rpartition("/")[2],
            "rerank": manifest.get("rerank_token") is not None,
            "plan_ahead": self.retriever.bundle.postings is not None,
            "documents": self.retriever.live.counts["living"],
            "added": self.retriever.live.counts["added"],
            "removed": self.retriever.live.counts["removed"],
        }

    def _add(self, run: Sequence[Change]) -> None:
        try:
            self._add_all(run)
        except InputError:  # written under another version's tokenizer
            for change in run:
                try:
                    self._add_all([change])
                except InputError:
                    self.skipped += 1

    def _add_all(self, run: Sequence[Change]) -> None:
        self.retriever.add(*([getattr(change, field) for change in run] for field in ("docno", "docid", "title")))


def runs(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Changes of one kind to different documents, in their order: applied together they leave what one by one would.

    Every replica numbers added documents alike, whatever it reads at a time, and so draws alike.
    """
    run: list[Change] = []
    docnos: set[str] = set()
    for change in changes:
        if run and (change.op != run[0].op or change.docno in docnos):
            yield run
            run, docnos = [], set()
        run.append(change)
        docnos.add(change.docno)
    if run:
        yield run


def label_of(manifest: dict[str, Any]) -> str:
    """What tells a version from every other: the first digits of its manifest's digest."""
    return str(manifest["sha256"])[:12]


def ref_of(path: str | Path) -> VersionRef:
    """The index that is in a folder now. Raises IndexRefused."""
    place = pinned(path)
    return VersionRef(place, label_of(read_manifest(place)))

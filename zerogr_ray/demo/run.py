"""The demo: the whole path on the standard library's own documentation, on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from zerogr_ray.config import IndexConfig, read_config
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.demo.collection import INSTRUCTION, write_stdlib_collection
from zerogr_ray.rows import Hit

DOCUMENTS = 120
"""Sized so that two CPU cores finish in ten minutes."""

SAMPLES = ("turn a dict into a JSON string", "run a command and capture its output", "pick a random item from a list")


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured and answered."""

    index: str
    documents: int
    queries: int
    figures: dict[str, dict[str, float]]
    seconds: float
    answers: dict[str, list[Hit]]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def as_text(self) -> str:
        """For people."""
        from zerogr_ray.evaluation.report import table

        parts = [
            f"{self.documents} documents, {self.queries} hand-written queries that training never saw, "
            f"{self.seconds:.0f} s in all",
            "",
            table(self.figures),
        ]
        for query, hits in self.answers.items():
            parts += ["", query, *(f"  {hit.rank}  {hit.docno:<28} {hit.docid}" for hit in hits)]
        parts += ["", f'Ask it something: zerogr search {self.index} "your question"']
        return "\n".join(parts)


def run_demo(folder: Path, quiet: bool = False) -> DemoReport:
    """Write the collection, build the index (finished stages are found again), evaluate, answer three queries."""
    from zerogr_ray.build import build_index
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.evaluation.evaluate import evaluate_index
    from zerogr_ray.models import hush

    started = time.monotonic()
    corpus, index = folder / "stdlib", folder / "index"
    write_stdlib_collection(corpus, DOCUMENTS)
    run_file = Path(str(files("zerogr_ray.demo") / "run.toml"))
    report = build_index(
        str(corpus), index, read_config(run_file, IndexConfig, {"instruction": INSTRUCTION}), quiet=quiet
    )
    hush()
    retriever = Retriever.load(index)
    result = evaluate_index(retriever, read_collection(str(corpus)), None, quiet=quiet)
    answers = dict(zip(SAMPLES, retriever.search_many(SAMPLES, k=3), strict=True))
    spent = time.monotonic() - started
    return DemoReport(str(index), report.documents, result.queries, result.figures, spent, answers)

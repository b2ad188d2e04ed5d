"""Docids for documents that are added to a running service, by the stage that wrote those of the index."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.docids.generate import WriteDocIds

if TYPE_CHECKING:
    from zerogr_ray.generation.engine import Engine


class DocidWriter:
    """Writes one docid at a time. The model, with its adapter, is loaded when the first is asked for."""

    def __init__(self, cfg: DocIdConfig, llm: LLMConfig) -> None:
        self.cfg, self.llm = cfg, llm
        self._loaded: tuple[WriteDocIds, Engine] | None = None
        self._one = threading.Lock()

    def write(self, docno: str, title: str, text: str) -> str:
        """The docid of a document. Raises ModelError where the model cannot be had."""
        import pyarrow as pa

        from zerogr_ray.adapters import find_writer
        from zerogr_ray.generation.engine import open_engine

        with self._one:
            if self._loaded is None:
                model, cfg = find_writer(self.cfg, self.llm.model, "docids")
                self._loaded = WriteDocIds(cfg), open_engine(self.llm, model)
            stage, engine = self._loaded
            row = pa.table({"docno": [docno], "title": [title], "text": [text]})
            return str(stage(row, engine)["docid"][0].as_py())

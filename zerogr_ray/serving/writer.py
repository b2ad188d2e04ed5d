"""Docids for documents that are added to a running service, by the stage that wrote those of the index."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.docids.generate import WriteDocIds

if TYPE_CHECKING:
    from zerogr_ray.generation.engine import Engine


class DocidWriter:
    """Writes one docid at a time. The model is loaded when the first is asked for."""

    def __init__(self, cfg: DocIdConfig, llm: LLMConfig) -> None:
        self.stage, self.llm = WriteDocIds(cfg), llm
        self._engine: Engine | None = None
        self._one = threading.Lock()

    def write(self, docno: str, title: str, text: str) -> str:
        """The docid of a document. Raises ModelError where the model cannot be had."""
        import pyarrow as pa

        from zerogr_ray.generation.engine import open_engine
        from zerogr_ray.models import find_model

        with self._one:
            if self._engine is None:
                self._engine = open_engine(self.llm, find_model(self.llm.model))
            row = pa.table({"docno": [docno], "title": [title], "text": [text]})
            return str(self.stage(row, self._engine)["docid"][0].as_py())

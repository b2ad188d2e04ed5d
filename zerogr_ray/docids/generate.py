"""Write one docid per document: greedy, short, from general to specific (ZeroGR, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DocIdConfig
from zerogr_ray.docids.clean import clean_docid
from zerogr_ray.generation.engine import Engine, Sampling
from zerogr_ray.rows import docid_schema
from zerogr_ray.store import key_of

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = (
    (
        "Title: Photosynthesis\nPlants, algae and some bacteria turn light into chemical energy. Chlorophyll absorbs "
        "the light, water is split, and carbon dioxide becomes sugar.",
        "photosynthesis plants light energy chlorophyll sugar",
    ),
    (
        "Title: merge_sort(items)\nSort a list by splitting it into halves, sorting each half and merging the two. "
        "Stable, needs O(n log n) comparisons.",
        "sorting list merge sort stable halves",
    ),
)
"""Two worked turns show a small LM the form; they are not from any collection that is evaluated."""


@dataclass(frozen=True)
class WriteDocIds:
    """Add one docid to every document of a shard."""

    cfg: DocIdConfig
    name: str = "docids"

    def key(self, corpus: str, model: str) -> str:
        """Changes with whatever changes a docid: corpus, model, settings, the prompt and the cleaning rule (v1)."""
        return key_of("docids", 1, corpus, model, self.cfg.model_dump(), EXAMPLES)

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """Rows of docid_schema, one per document, in order."""
        import pyarrow as pa

        rows = documents.to_pylist()
        texts = [docid_prompt(engine.format, self.cfg, row["title"], row["text"]) for row in rows]
        written = engine.generate(engine.format.tokens(texts), Sampling(self.cfg.max_new_tokens), seed=0)
        cleaned = [
            clean_docid(answers[0], row["title"], row["text"], row["docno"], self.cfg.max_words)
            for row, answers in zip(rows, written, strict=True)
        ]
        columns = [[row["docno"] for row in rows], [docid for docid, _ in cleaned], [source for _, source in cleaned]]
        return pa.table(columns, schema=docid_schema())


def docid_prompt(fmt: PromptFormat, cfg: DocIdConfig, title: str, text: str) -> str:
    """What the LM is asked, whether it writes the docid or learns to."""
    return fmt.render(cfg.prompt, show(title, text, fmt, cfg.doc_tokens), EXAMPLES if cfg.examples else ())


def show(title: str, text: str, fmt: PromptFormat, tokens: int) -> str:
    """The document as a prompt shows it: its title, then as much of its text as `tokens` allow."""
    head = f"Title: {title}\n" if title else ""
    return fmt.shorten(head + text, tokens)

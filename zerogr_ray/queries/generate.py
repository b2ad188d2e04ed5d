"""Write n queries per document that a person might ask and the document answers (ZeroGR, section 3.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import QueryConfig
from zerogr_ray.corpus.text import passages
from zerogr_ray.docids.generate import show
from zerogr_ray.generation.engine import Engine, Sampling
from zerogr_ray.queries.clean import clean_queries
from zerogr_ray.rows import query_schema
from zerogr_ray.store import key_of

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = (
    (
        "Title: Photosynthesis\nPlants, algae and some bacteria turn light into chemical energy. Chlorophyll absorbs "
        "the light, water is split, and carbon dioxide becomes sugar.",
        "how do plants make sugar from sunlight",
    ),
    (
        "Title: merge_sort(items)\nSort a list by splitting it into halves, sorting each half and merging the two. "
        "Stable, needs O(n log n) comparisons.",
        "sort a list without changing the order of equal items",
    ),
)
"""Two worked turns show a small LM the form; they are not from any collection that is evaluated."""


@dataclass(frozen=True)
class WriteQueries:
    """Add n pseudo-queries to every document of a shard."""

    cfg: QueryConfig
    instruction: str
    seed: int
    name: str = "queries"

    def key(self, corpus: str, model: str) -> str:
        """Changes with whatever changes a query; the document's own passages are added later and do not."""
        settings = self.cfg.model_dump(exclude={"passages", "passage_words"})
        return key_of("queries", 1, corpus, model, settings, self.instruction, self.seed, EXAMPLES)

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """Rows of query_schema, one per document, in order."""
        import pyarrow as pa

        rows = documents.to_pylist()
        written: list[list[str]] = [[] for _ in rows]
        if rows and self.cfg.per_document:
            texts = [query_prompt(engine.format, self.cfg, self.instruction, row["title"], row["text"]) for row in rows]
            how = Sampling(self.cfg.max_new_tokens, n=self.cfg.per_document, temperature=self.cfg.temperature)
            written = engine.generate(engine.format.tokens(texts), how, seed_of(self.seed, rows[0]["docno"]))
        queries = [
            clean_queries(answers, stand_ins(row["docno"], row["title"], row["text"], self.cfg), self.cfg.max_words)
            for row, answers in zip(rows, written, strict=True)
        ]
        return pa.table([[row["docno"] for row in rows], queries], schema=query_schema())


def query_prompt(fmt: PromptFormat, cfg: QueryConfig, instruction: str, title: str, text: str) -> str:
    """What the LM is asked, whether it writes the query or learns to."""
    asked = f"{cfg.prompt} The retrieval task: {instruction}"
    return fmt.render(asked, show(title, text, fmt, cfg.doc_tokens), EXAMPLES if cfg.examples else ())


def stand_ins(docno: str, title: str, text: str, cfg: QueryConfig) -> list[str]:
    """What replaces an unusable query: the document's passages, else its title, else its docno."""
    return passages(text, cfg.passage_words, max(1, cfg.per_document)) or [title or docno]


def seed_of(seed: int, docno: str) -> int:
    """A seed of its own for the shard that begins with `docno`, whatever engine it lands on."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{docno}".encode(), digest_size=4).digest(), "big")

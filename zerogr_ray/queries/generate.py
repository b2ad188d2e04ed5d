"""Write n queries per document that a person might ask and the document answers (ZeroGR, section 3.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import QueryConfig, QueryKind
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.corpus.text import passages
from zerogr_ray.docids.generate import show
from zerogr_ray.generation.engine import Engine, Sampling
from zerogr_ray.queries.clean import clean_queries
from zerogr_ray.queries.kinds import PROMPTS, kinds_of, share_out, turns
from zerogr_ray.rows import query_schema
from zerogr_ray.store import key_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class WriteQueries:
    """Add n pseudo-queries to every document of a shard."""

    cfg: QueryConfig
    instruction: str
    seed: int
    known: Frequencies | None = None
    """Of the corpus, to pick lines by; without them the beginnings of documents are shown."""
    name: str = "queries"

    def key(self, corpus: str, model: str) -> str:
        """Changes with whatever changes a query; the document's own passages are added later and do not."""
        settings = self.cfg.model_dump(exclude={"passages", "passage_words", "filter", "expected_tokens"})
        shown = {kind: (PROMPTS[kind], turns(kind, self.cfg.examples)) for kind in PROMPTS}
        return key_of("queries", 2, corpus, model, settings, self.instruction, self._shares(), self.seed, shown)

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """Rows of query_schema, one per document, in order."""
        import pyarrow as pa

        rows = documents.to_pylist()
        known = self.known if self.cfg.pick_lines else None
        kinds = share_out(self._shares(), len(rows), self.cfg.per_document)
        # Prompts of one kind have all before the document in common: side by side they share it in the engine's cache.
        asked = sorted(
            ((kind, place) for place, some in enumerate(kinds) for kind in some), key=lambda item: (item[0], item[1])
        )
        written: list[list[str]] = [[] for _ in rows]
        if asked:
            shown = [show(row["title"], row["text"], engine.format, self.cfg.doc_tokens, known) for row in rows]
            prompts = {
                (kind, place): query_prompt(engine.format, self.cfg, kind, self.instruction, shown[place])
                for kind, place in dict.fromkeys(asked)
            }
            tokens = dict(zip(prompts, engine.format.tokens(list(prompts.values())), strict=True))
            how = Sampling(self.cfg.max_new_tokens, temperature=self.cfg.temperature)
            answers = engine.generate([tokens[item] for item in asked], how, seed_of(self.seed, rows[0]["docno"]))
            for (_, place), [answer] in zip(asked, answers, strict=True):
                written[place].append(answer)
        queries = [
            clean_queries(answers, stand_ins(row["docno"], row["title"], row["text"], self.cfg), self.cfg.max_words)
            for row, answers in zip(rows, written, strict=True)
        ]
        columns = [[row["docno"] for row in rows], queries, [sorted(some) for some in kinds]]
        return pa.table(columns, schema=query_schema())

    def _shares(self) -> dict[QueryKind, float]:
        return kinds_of(self.instruction, self.cfg.mix)


def query_prompt(fmt: PromptFormat, cfg: QueryConfig, kind: QueryKind, instruction: str, shown: str) -> str:
    """What the LM is asked, whether it writes the query or learns to; `shown` is the document (see `show`)."""
    asked = f"{cfg.prompt or PROMPTS[kind]} The retrieval task: {instruction}"
    return fmt.render(asked, shown, turns(kind, cfg.examples))


def stand_ins(docno: str, title: str, text: str, cfg: QueryConfig) -> list[str]:
    """What replaces an unusable query: the document's passages, else its title, else its docno."""
    return passages(text, cfg.passage_words, max(1, cfg.per_document)) or [title or docno]


def seed_of(seed: int, docno: str) -> int:
    """A seed of its own for the shard that begins with `docno`, whatever engine it lands on."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{docno}".encode(), digest_size=4).digest(), "big")

"""Write one docid per document: greedy, short, from general to specific (ZeroGR, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DocIdConfig
from zerogr_ray.corpus.lines import pick_lines
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.clean import clean_docid
from zerogr_ray.docids.rule import core_terms
from zerogr_ray.generation.engine import Engine, Sampling
from zerogr_ray.generation.examples import EXAMPLES
from zerogr_ray.rows import docid_schema
from zerogr_ray.store import hash64, key_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class WriteDocIds:
    """Add one docid to every document of a shard."""

    cfg: DocIdConfig
    known: Frequencies | None = None
    """Of the corpus, to pick lines by; without them the beginnings of documents are shown."""
    name: str = "docids"

    def key(self, corpus: str, model: str) -> str:
        """Changes with whatever changes a docid: corpus, model, settings, the prompt and the cleaning rule."""
        settings = self.cfg.model_dump(exclude={"distinct", "distinct_rounds"})
        return key_of("docids", 3, corpus, model, settings, _turns(self.cfg))

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """Rows of docid_schema, one per document, in order."""
        rows = documents.to_pylist()
        if self.cfg.written_by != "lm":
            return self._without_lm(rows)
        known = self.known if self.cfg.pick_lines else None
        texts = [docid_prompt(engine.format, self.cfg, row["title"], row["text"], known) for row in rows]
        written = engine.generate(engine.format.tokens(texts), Sampling(self.cfg.max_new_tokens), seed=0)
        cleaned = [
            clean_docid(answers[0], row["title"], row["text"], row["docno"], self.cfg.max_words)
            for row, answers in zip(rows, written, strict=True)
        ]
        return _table(rows, cleaned)

    def _without_lm(self, rows: list[dict[str, Any]]) -> pa.Table:
        known = self.known or Frequencies(1, {})
        vocabulary = list(known.counts)
        made: list[tuple[str, str]] = []
        for row in rows:
            if self.cfg.written_by == "random" and vocabulary:
                drawn = (hash64("random", row["docno"], str(place)) for place in range(self.cfg.max_words))
                docid = " ".join(vocabulary[number % len(vocabulary)] for number in drawn)
            else:
                docid = core_terms(row["title"], row["text"], known, self.cfg.max_words)
            cleaned, source = clean_docid(docid, row["title"], row["text"], row["docno"], self.cfg.max_words)
            made.append((cleaned, self.cfg.written_by if source == "lm" else source))
        return _table(rows, made)


def _table(rows: list[dict[str, Any]], written: list[tuple[str, str]]) -> pa.Table:
    """Rows of docid_schema; `written` are (docid, source)."""
    import pyarrow as pa

    columns = [[row["docno"] for row in rows], [docid for docid, _ in written], [source for _, source in written]]
    return pa.table(columns, schema=docid_schema())


def docid_prompt(fmt: PromptFormat, cfg: DocIdConfig, title: str, text: str, known: Frequencies | None = None) -> str:
    """What the LM is asked, whether it writes the docid or learns to."""
    return fmt.render(cfg.prompt, show(title, text, fmt, cfg.doc_tokens, known), _turns(cfg))


def _turns(cfg: DocIdConfig) -> list[tuple[str, str]]:
    return [(example.document, example.docid) for example in EXAMPLES[: cfg.examples]]


def show(title: str, text: str, fmt: PromptFormat, tokens: int, known: Frequencies | None = None) -> str:
    """The document as a prompt shows it: its title, then as much of its text as `tokens` allow.

    That is its beginning; given the corpus's frequencies, its telling lines (see corpus/lines.py).
    """
    head = f"Title: {title}\n" if title else ""
    beginning = fmt.shorten(head + text, tokens)
    if known is None or not beginning.startswith(head) or len(beginning) >= len(head + text):
        return beginning

    def cost(lines: Sequence[str]) -> list[int]:
        return [len(ids) for ids in fmt.tokens(lines)]

    room = tokens - sum(cost([head] if head else []))
    chosen = pick_lines(text, beginning[len(head) :], room, known, cost)
    if chosen is None:
        return beginning
    lines = (line if len(line) <= most else fmt.shorten(line, most).rstrip() + "\n" for line, most in chosen)
    return fmt.shorten((head + "".join(lines)).rstrip(), tokens)

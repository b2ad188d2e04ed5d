"""The rerank head: the logit of one reserved token after a docid's end, learned by ranking (ZeroGR, section 3.4).

The wrong candidates of a query are the docids of the documents that BM25 ranks highest among those with another
docid than the right one. They are found in a stage of their own and lie beside the training pairs, row for row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from zerogr_ray.errors import ModelError
from zerogr_ray.lucene import lucene, tokens_of
from zerogr_ray.stage import Output, progress
from zerogr_ray.training.examples import WRONG

if TYPE_CHECKING:
    from zerogr_ray.chat import PromptFormat

_RESERVED = re.compile(r"reserved|unused|extra_id", re.I)

_SPARE = 8
"""Documents asked of BM25 beyond those wanted, for those that share a docid."""


def rerank_token(fmt: PromptFormat) -> int:
    """The reserved token of a tokenizer: of its special tokens that no prompt and no answer holds, the lowest id,
    one called reserved, unused or extra_id before any other.

    Raises ModelError where there is none.
    """
    tokenizer = fmt.tokenizer
    special = {token: text for text, token in tokenizer.get_added_vocab().items()}
    special.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    probe = fmt.render("Given a query, retrieve.", "a query", [("asked", "answered")])
    used = {fmt.end, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    used |= set(fmt.tokens([probe])[0])
    free = sorted(set(special) - used, key=lambda token: (_RESERVED.search(special[token]) is None, token))
    if not free:
        raise ModelError(
            f"{fmt.where} has no special token to spare for a rerank head; set training.rerank_every=0, or add a token "
            "such as <|reserved_special_token_0|> to the tokenizer and the embeddings"
        )
    return int(free[0])


def write_candidates(
    corpus: Output, docids: Output, pairs: Output, candidates: Output, wrong: int, seed: int, quiet: bool
) -> dict[str, Any]:
    """For every row of `pairs` the docids of BM25's `wrong` best documents with another docid than the row's.

    The corpus is indexed once, in memory: some 100 bytes per word. Where BM25 finds fewer (a query that shares no
    word with any other document), documents drawn with `seed` fill up. Returns the manifest of `candidates`.
    """
    if (manifest := candidates.done()) is not None:
        return manifest
    docid_of: list[str] = []
    for shard in docids.shards():
        docid_of += docids.folder.read_table(shard, ["docid"])["docid"].to_pylist()
    searcher = _Searcher(_texts(corpus))
    rows = 0
    with progress("negatives", (pairs.done() or {}).get("rows"), unit="rows", quiet=quiet) as bar:
        for number, shard in enumerate(pairs.shards()):
            table = pairs.folder.read_table(shard, ["query", "docid"]).to_pydict()
            rng = np.random.default_rng([seed, number])
            found = searcher.best(table["query"], wrong + _SPARE)
            lists = [
                _wrong(right, [docid_of[i] for i in best], docid_of, wrong, rng)
                for right, best in zip(table["docid"], found, strict=True)
            ]
            candidates.folder.write_table(shard, _table(lists))
            rows += len(lists)
            bar.update(len(lists))
    return candidates.finish(rows)


def _wrong(right: str, best: list[str], docid_of: list[str], wanted: int, rng: np.random.Generator) -> list[str]:
    """The first `wanted` different docids of `best` that are not `right`, filled up from the corpus."""
    drawn = [docid_of[i] for i in rng.integers(0, len(docid_of), 2 * wanted)]
    return [docid for docid in dict.fromkeys([*best, *drawn]) if docid != right][:wanted]


class _Searcher:
    """BM25 over the corpus, with the settings of the baseline."""

    def __init__(self, texts: Iterator[str]) -> None:
        try:
            tokens = tokens_of(texts)
        except ModuleNotFoundError:
            raise ModelError(
                "a rerank head needs BM25's wrong documents, but bm25s is not installed: pip install "
                "'zerogr-ray[train]', or set training.rerank_every=0"
            ) from None
        self.documents = len(tokens.ids)
        self.index = lucene(tokens) if tokens.vocab else None

    def best(self, queries: list[str], k: int) -> list[list[int]]:
        """Numbers of the documents that score above 0 for each query, best first, `k` at most."""
        if self.index is None or not queries:
            return [[] for _ in queries]
        found, scores = self.index.retrieve(tokens_of(queries), k=min(k, self.documents), show_progress=False)
        return [
            [int(i) for i, score in zip(row, values, strict=True) if score > 0]
            for row, values in zip(found, scores, strict=True)
        ]


def _texts(corpus: Output) -> Iterator[str]:
    for shard in corpus.shards():
        rows = corpus.folder.read_table(shard, ["title", "text"]).to_pydict()
        yield from (f"{title} {text}" for title, text in zip(rows["title"], rows["text"], strict=True))


def _table(lists: list[list[str]]) -> Any:
    import pyarrow as pa

    return pa.table({WRONG: pa.array(lists, pa.list_(pa.string()))})

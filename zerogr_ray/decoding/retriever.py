"""A retriever: an index and its model, ready to search. Needs torch and transformers, not Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.schedule import temperatures
from zerogr_ray.decoding.search import Search
from zerogr_ray.errors import IndexRefused, InputError
from zerogr_ray.index.bundle import Bundle, open_index
from zerogr_ray.models import DType, load_format, load_model
from zerogr_ray.rows import Hit
from zerogr_ray.store import local_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]


class Retriever:
    """Search an index. Make one with Retriever.load; it is safe to use from one thread at a time."""

    def __init__(self, bundle: Bundle, model: Any, prompt_format: PromptFormat) -> None:
        self.bundle, self.model, self.format = bundle, model, prompt_format

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", dtype: DType = "auto") -> Retriever:
        """Verify and load the index folder at `path`.

        Raises IndexRefused where a file is missing or damaged, or the tokenizer is not the one it was built with.
        """
        bundle = open_index(local_path(path))
        prompt_format = load_format(bundle.model)
        built_with = bundle.manifest["prompt_format"]
        if prompt_format.fingerprint != built_with:
            raise IndexRefused(
                f"{path} was built with prompt format {built_with}, but its tokenizer now gives "
                f"{prompt_format.fingerprint}; install the transformers version it was built with, or build it again"
            )
        return cls(bundle, load_model(bundle.model, dtype, device), prompt_format)

    def search(
        self, query: str, k: int = 10, instruction: str | None = None, config: DecodeConfig | None = None
    ) -> list[Hit]:
        """The best `k` documents for `query`, in the order in which they were drawn; fewer if the corpus has fewer."""
        return self.search_many([query], k, instruction, config)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        instruction: str | Sequence[str] | None = None,
        config: DecodeConfig | None = None,
    ) -> list[list[Hit]]:
        """Hits for each query. `instruction` is one for all, one for each, or None for the one of the index.

        Raises InputError for k < 1 and for an empty query.
        """
        cfg = config or DecodeConfig()
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 document")
        for number, query in enumerate(queries):
            if not query.strip():
                which = f"query {number + 1} of {len(queries)}" if len(queries) > 1 else "the query"
                raise InputError(f"{which} is empty; write a few words")
        default = str(self.bundle.manifest["instruction"])
        asked = [instruction or default] * len(queries) if not isinstance(instruction, (list, tuple)) else instruction
        if len(asked) != len(queries):
            raise InputError(f"{len(queries)} queries came with {len(asked)} instructions; give one, or one for each")
        prompts = [
            prompt
            for query, task in zip(queries, asked, strict=True)
            for prompt in self.format.prompts(task, [query], cfg.query_tokens)
        ]
        # Queries of like length share a batch, so that little is padding.
        order = sorted(range(len(queries)), key=lambda i: len(prompts[i]))
        hits: list[list[Hit]] = [[] for _ in queries]
        for start in range(0, len(order), cfg.batch):
            chosen = order[start : start + cfg.batch]
            for i, search in zip(chosen, self._decode([prompts[i] for i in chosen], k, cfg), strict=True):
                hits[i] = self._hits(search, k)
        return hits

    def _decode(self, prompts: list[list[int]], k: int, cfg: DecodeConfig) -> list[Search]:
        """Run one search per prompt to its end, all of them in one batch."""
        from zerogr_ray.decoding.forward import TreeForward

        trie = self.bundle.trie
        k = min(k, trie.documents)
        T_K = temperatures(cfg, max(k, cfg.draws))
        searches = [Search(trie, T_K, cfg.seed, k) for _ in prompts]
        if trie.leaves == 1:
            for search in searches:  # one docid: there is nothing to ask the LM
                search.advance()
            return searches
        forward = TreeForward(self.model, trie)
        for search, root_logits in zip(searches, forward.prompt(prompts), strict=True):
            search.learn(0, root_logits)
        active = list(searches)
        while active:
            needed = [search.advance() for search in active]
            going = [b for b, nodes in enumerate(needed) if nodes]
            if len(going) < len(active):
                active, needed = [active[b] for b in going], [needed[b] for b in going]
                if not active:
                    break
                forward.keep(going)
            for search, nodes, answers in zip(active, needed, forward.wave(needed), strict=True):
                for node, logits in zip(nodes, answers, strict=True):
                    search.learn(node, logits)
        return searches

    def _hits(self, search: Search, k: int) -> list[Hit]:
        """Documents of the drawn leaves, best first; documents that share a docid follow each other in corpus order."""
        rows = [(row, drawn) for drawn in search.found for row in search.trie.documents_of(drawn.leaf)][:k]
        table = self.bundle.documents.take([row for row, _ in rows]).select(["docno", "docid"]).to_pylist()
        return [
            Hit(
                docno=document["docno"],
                docid=document["docid"],
                rank=rank,
                score=1.0 / rank,
                draw=drawn.draw,
                temperature=float(search.temperatures[drawn.draw]),
                logprob=drawn.logprob,
            )
            for rank, (document, (_, drawn)) in enumerate(zip(table, rows, strict=True), start=1)
        ]

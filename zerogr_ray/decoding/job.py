"""One request on its way from the prompt's logits to hits."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.bags import query_bag
from zerogr_ray.decoding.cells import ROOT, Answer, Cell
from zerogr_ray.decoding.frontier import Beam, BestFirst, Exhaustive, over_trie, over_vocabulary
from zerogr_ray.decoding.plan import bag_scores, docid_gain, plan_ahead, term_gain
from zerogr_ray.decoding.schedule import temperatures
from zerogr_ray.decoding.score import DocidScores, Score
from zerogr_ray.decoding.search import Drawn, Harvest, Search
from zerogr_ray.decoding.tree import SearchTree
from zerogr_ray.errors import InputError
from zerogr_ray.index.live import LiveIndex
from zerogr_ray.index.view import View
from zerogr_ray.rows import Hit

EXHAUSTIVE = 100_000
"""Docids that mode `exhaustive` scores at most."""


@dataclass(frozen=True)
class Request:
    """One query with everything that may differ from query to query."""

    query: str
    k: int = 10
    """Documents wanted."""
    instruction: str | None = None
    """The retrieval task; None for the one of the index."""
    config: DecodeConfig | None = None
    """None for the settings of the index."""
    docnos: Sequence[str] | None = None
    """Only these documents may be found; None for all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Single settings instead of those of `config`."""
    streamed: bool = False
    """Hits are wanted as they are drawn: where the settings of the index order them otherwise, they do not count."""


class Prompt(NamedTuple):
    """What a job asks the LM first. Counts say how many of the first tokens depend on the instruction alone."""

    tokens: list[int]
    shared: int = 0
    word: tuple[list[int], int] | None = None
    """The prompt that asks for a word, where the search plans with gists."""


class Job:
    """A search that says what it needs of the LM and is told, whatever else shares its batch."""

    def __init__(self, request: Request, live: LiveIndex, fmt: PromptFormat) -> None:
        """Raises InputError for a request that this index cannot answer."""
        self.request, self.live, self.format = request, live, fmt
        self._promises: dict[int, float] | None = None
        rows = None if request.docnos is None else live.rows_of(request.docnos)  # first: a later view has these rows
        self.view: View = live.view if rows is None else live.view.restricted(rows)
        bundle = live.bundle
        own = bundle.decode
        if request.streamed:
            own = own.model_copy(
                update={"order": "draw", "mode": "reference" if own.mode == "exhaustive" else own.mode}
            )
        self.cfg = cfg = (request.config or own).model_copy(update=dict(request.settings))
        if request.streamed and self.scored:
            raise InputError("hits that are ordered by score cannot be streamed; order by draw")
        if cfg.mode == "exhaustive" and self.view.entries > EXHAUSTIVE:
            raise InputError(f"mode exhaustive scores {EXHAUSTIVE} docids at most, not {self.view.entries}")
        if cfg.plan_ahead and bundle.postings is None:
            raise InputError(f"{bundle.path} has no postings for plan_ahead; build it again with --set postings=terms")
        if cfg.prior_weight and bundle.priors is None:
            raise InputError(f"{bundle.path} has no edge priors; set prior_weight to 0")
        if not cfg.plan_ahead and cfg.lookahead == own.lookahead:
            # Whoever turns the index's own plan off has nothing to look ahead at.
            self.cfg = cfg = cfg.model_copy(update={"lookahead": 0.0})
        if cfg.lookahead and not cfg.plan_ahead:
            raise InputError(f"lookahead {cfg.lookahead} looks at the documents of plan_ahead, which is 0; set both")
        if cfg.order == "rerank" and bundle.manifest.get("rerank_token") is None:
            raise InputError(f"{bundle.path} was trained without a rerank head; order by draw or by docid")

    @property
    def scored(self) -> bool:
        """Whether hits are ordered by scores of whole docids."""
        return self.cfg.order != "draw" or self.cfg.mode == "exhaustive"

    @property
    def asks_for_word(self) -> bool:
        """Whether it plans by what the LM says to a prompt that asks for one word."""
        postings = self.live.bundle.postings
        return bool(self.cfg.plan_ahead and postings is not None and postings.prior is not None)

    @property
    def over_vocabulary(self) -> bool:
        """Whether it needs to know how likely a token is among the whole vocabulary."""
        return self.scored or self.cfg.mode == "best_first"

    def plan(self, next_logprobs: NDArray[np.float32]) -> None:
        """Restrict the search to the documents that the prompt's next-token log-probabilities, (vocabulary,), favour.

        The prompt is the one that asks for a word where the index has gists, else that which a docid answers.
        Documents added since the index was built have no postings and are always searched.
        """
        bundle, count, cfg = self.live.bundle, self.view.base.documents, self.cfg
        assert bundle.postings is not None
        prior = bundle.next_prior if bundle.postings.prior is None else bundle.postings.prior
        if prior is not None:  # an LM head may be padded
            next_logprobs, prior = next_logprobs[: len(prior)], prior[: len(next_logprobs)]
        if bundle.postings.begins is None:
            gain = docid_gain(next_logprobs, prior)
        else:
            own = query_bag(self.request.query)
            asked = (self.format.own_tokens(self.request.query, cfg.query_tokens), cfg.asked)
            gain = term_gain(
                next_logprobs, prior, bundle.postings.begins, own, cfg.own_terms, cfg.gist, asked, cfg.lm_terms
            )
        among = None if self.view.filter is None else self.view.filter.rows[self.view.filter.rows < count]
        planned = plan_ahead(bundle.postings, gain, max(cfg.plan_ahead, self.request.k), among)
        self.view = self.view.restricted(np.concatenate([planned, np.arange(count, self.view.documents)]))
        if cfg.lookahead:
            self._promises = self._promised(gain)

    def run(self) -> Generator[list[Cell], list[Answer], None]:
        """Yields the cells it needs, ROOT's answer first; is sent their answers; ends when `hits` can be called."""
        if not self.view.entries:
            return
        self.tree = tree = SearchTree(self.view, self.cfg.prior_weight, self._promises)
        tree.learn(ROOT, (yield [Cell(ROOT, ROOT, 0, self.view.tokens(tree.children(ROOT)))])[0])
        self.search = self._search(tree)
        while needed := self.search.advance():
            yield from self._learn(tree.cells(needed))
        if self.scored:
            found = self.search.harvest.found
            rows = [int(self.view.rows(drawn.leaf)[0]) for drawn in found]  # all rows of a leaf have the same docid
            self.scores = DocidScores(tree, self.live.end, self.live.bundle.manifest.get("rerank_token"))
            yield from self._learn(
                self.scores.cells([drawn.leaf for drawn in found], [self.live.docid_tokens(row) for row in rows])
            )

    def hits(self) -> list[Hit]:
        """The best k documents, best first; fewer where there are fewer. A document comes once, under its best docid;
        documents that share a docid follow each other in the order of the index."""
        if not self.view.entries:
            return []
        found = self.search.harvest.found
        scores = {drawn.leaf: self._score(drawn.leaf) for drawn in found} if self.scored else {}
        if self.scored:
            found = sorted(found, key=lambda drawn: -self._worth(scores[drawn.leaf]))
        rows = [(row, drawn) for drawn in found for row in self.view.rows(drawn.leaf).tolist()]
        hits, above = dict[str, Hit](), np.inf
        for start in range(0, len(rows), self.request.k):  # as many as it takes: of one document, only the first counts
            some = rows[start : start + self.request.k]
            for document, (_, drawn) in zip(self.live.at([row for row, _ in some]), some, strict=True):
                if document["docno"] not in hits and len(hits) < self.request.k:
                    hit = self._hit(document, drawn, len(hits) + 1, scores.get(drawn.leaf), above)
                    hits[hit.docno], above = hit, hit.score
            if len(hits) == self.request.k:
                break
        return list(hits.values())

    def _learn(self, cells: list[Cell]) -> Generator[list[Cell], list[Answer], None]:
        if cells:
            for cell, answer in zip(cells, (yield cells), strict=True):
                self.tree.learn(cell.key, answer)

    def _search(self, tree: SearchTree) -> Search | Beam | BestFirst | Exhaustive:
        cfg = self.cfg
        draws = max(self.request.k, cfg.draws)
        # A plan has chosen already: the rerank head orders what is drawn, and chooses no others.
        chosen = self.scored and (cfg.order != "rerank" or self._promises is None or cfg.mode == "exhaustive")
        wanted = draws if chosen else self.request.k
        harvest = Harvest(tree, min(wanted, self.view.entries), self.live.owner_of)
        if cfg.mode == "beam":
            return Beam(harvest, draws)
        if cfg.mode == "top_k":
            return BestFirst(harvest, over_trie)
        if cfg.mode == "best_first":
            return BestFirst(harvest, over_vocabulary)
        if cfg.mode == "exhaustive":
            return Exhaustive(harvest)
        T_K = np.full(draws, cfg.temperature) if cfg.mode == "sampling" else temperatures(cfg, draws)
        return Search(harvest, T_K, cfg.seed, exact=cfg.mode == "exact")

    def _promised(self, gain: NDArray[np.float32]) -> dict[int, float]:
        """For every node above the rows of the view, `lookahead` times the best plan score of a row below it.

        A row added since the build is scored by its docid, as if it were about nothing else.
        """
        bundle, count = self.live.bundle, self.view.base.documents
        assert bundle.postings is not None
        assert self.view.filter is not None
        rows = self.view.filter.rows
        scores = bag_scores(bundle.postings, gain, rows[rows < count]).tolist()
        added = rows[rows >= count].tolist()
        for row, document in zip(added, self.live.at(added), strict=True):
            if bundle.postings.weights is None:
                scores.append(float(gain[np.unique(self.live.docid_tokens(row))].sum()))
            else:
                words, weights = query_bag(document["docid"])
                scores.append(float((gain[words] * weights).sum()))
        promises: dict[int, float] = {}
        leaves = self.view.leaves(rows).tolist()
        for score, node in sorted(zip(scores, leaves, strict=True), reverse=True):
            while node not in promises:  # who comes later promises less
                promises[node] = self.cfg.lookahead * score
                node = self.view.parent(node) if node != ROOT else ROOT
        return promises

    def _score(self, leaf: int) -> Score:
        return self.scores.of(leaf, self.live.tail_prior(int(self.view.rows(leaf)[0])))

    def _worth(self, score: Score) -> float:
        """What hits are ordered by: the whole docid's score, which has a plan's promise in it, the rerank head's, or
        with a plan both."""
        if self.cfg.order != "rerank" or score.rerank is None:
            return score.calibrated
        return score.rerank + (score.calibrated if self._promises else 0.0)

    def _hit(self, document: dict[str, str], drawn: Drawn, rank: int, score: Score | None, above: float) -> Hit:
        value = 1.0 / rank
        if score is not None:
            value = self._worth(score)
            value = min(value, float(np.nextafter(above, -np.inf)))  # documents that share a docid: no ties in a run
        return Hit(
            docno=document["docno"],
            docid=document["docid"],
            rank=rank,
            score=value,
            draw=drawn.draw,
            temperature=float(self.search.temperatures[drawn.draw]) if isinstance(self.search, Search) else 0.0,
            logprob=drawn.logprob,
            docid_logprob=score.logprob if score else None,
            calibrated=score.calibrated if score else None,
            rerank=score.rerank if score else None,
        )

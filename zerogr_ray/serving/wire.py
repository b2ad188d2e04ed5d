"""What goes over HTTP: requests, bounded before anything is computed, and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from zerogr_ray.config import DecodeConfig, Strict
from zerogr_ray.decoding.job import Request
from zerogr_ray.rows import Hit
from zerogr_ray.serving.config import NAME, LimitsConfig
from zerogr_ray.serving.decoder import Effort, Found
from zerogr_ray.serving.errors import TooLarge

LINE = r"^[^\x00-\x1f\x7f\u2028\u2029]+$"
"""One line of text without control characters."""

Name = Annotated[str, StringConstraints(pattern=NAME)]
Docno = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=LINE)]
Docid = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=LINE, strip_whitespace=True)]

SEED = 2**53 - 1
"""Largest seed: the largest whole number that every JSON reader keeps."""


class SearchRequest(Strict):
    """One search, or several that are answered together by the same version of the index.

    What is named as in DecodeConfig counts instead of the index's own setting.
    """

    query: str | None = Field(None, min_length=1)
    """What to look for."""
    queries: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(None, min_length=1)
    """Several instead of one."""
    index: Name | None = None
    """Which index; the service's first where none is named."""
    instruction: str | None = Field(None, min_length=1)
    """The retrieval task; the index's own where none is given."""
    k: int = Field(10, ge=1)
    """Documents wanted for each query."""
    seed: int | None = Field(None, ge=0, le=SEED)
    """Key of the noise: same index, query and seed, same hits."""
    mode: Literal["reference", "exact", "sampling", "beam", "top_k", "best_first", "exhaustive"] | None = None
    """How docids are found."""
    draws: int | None = Field(None, ge=1)
    """K, docids drawn at most, where k is not larger."""
    t_max: float | None = Field(None, ge=0, le=100)
    """Temperature that the last draws approach."""
    slope: float | None = Field(None, gt=0, le=1000)
    """How sharply the temperature rises."""
    midpoint: float | None = Field(None, ge=0, le=1)
    """Share of the draws after which it has risen half way."""
    temperature: float | None = Field(None, ge=0, le=100)
    """Temperature of mode sampling."""
    prior_weight: float | None = Field(None, ge=0, le=100)
    """Weight of the edge priors, in an index that has them."""
    plan_ahead: int | None = Field(None, ge=0, le=1_000_000)
    """Search only so many documents, those that the plan favours, in an index that has postings."""
    lm_terms: float | None = Field(None, ge=0, le=100)
    """Weight of the terms that the LM expects in that choice."""
    own_terms: float | None = Field(None, ge=0, le=100)
    """Weight of the query's own terms in that choice."""
    gist: float | None = Field(None, ge=0, le=100)
    """Weight in it of what the LM itself says that documents are about, in an index with gists."""
    asked: float | None = Field(None, ge=0, le=100)
    """Weight in it of the query's own tokens against what queries for a document are expected to say."""
    lookahead: float | None = Field(None, ge=0, le=10_000)
    """Weight of that choice in every step of the search."""
    order: Literal["draw", "docid", "rerank"] | None = None
    """Order of the hits."""
    rerank: bool = False
    """Short for order "rerank"."""
    docnos: list[Docno] | None = None
    """Only these documents may be found."""

    def requests(self, limits: LimitsConfig, streamed: bool = False) -> list[Request]:
        """As the retriever takes them. Raises TooLarge where a limit of the service is passed, ValueError."""
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either query or queries")
        queries = [self.query] if self.query is not None else self.queries or []
        sizes = {
            "k": (self.k, limits.k),
            "draws": (self.draws or 1, limits.draws),
            "queries": (len(queries), limits.queries),
            "characters of a query": (max(map(len, queries)), limits.query_chars),
            "characters of the instruction": (len(self.instruction or ""), limits.query_chars),
            "docnos": (len(self.docnos or []), limits.docnos),
        }
        for what, (asked, allowed) in sizes.items():
            if asked > allowed:
                raise TooLarge(f"{what}: {asked} asked for, this service allows {allowed}")
        settings = {
            name: value for name in DecodeConfig.model_fields if (value := getattr(self, name, None)) is not None
        }
        if self.rerank:
            settings["order"] = "rerank"
        return [Request(query, self.k, self.instruction, None, self.docnos, settings, streamed) for query in queries]


class WireHit(BaseModel):
    """One document found."""

    docno: str
    docid: str
    title: str
    rank: int
    score: float
    draw: int
    temperature: float
    logprob: float
    docid_logprob: float | None = None
    rerank: float | None = None

    @classmethod
    def of(cls, hit: Hit, title: str) -> WireHit:
        """A hit and its document's title."""
        return cls(title=title, **{name: getattr(hit, name) for name in cls.model_fields if name != "title"})


class Timing(BaseModel):
    """Seconds: in the queue, and of the round that the search shared with others."""

    queue: float
    prompt: float
    waves: float
    rerank: float

    @classmethod
    def of(cls, effort: Effort) -> Timing:
        """Rounded to a tenth of a millisecond."""
        return cls(**{name: round(getattr(effort, name), 4) for name in cls.model_fields})


class SearchAnswer(BaseModel):
    """The hits, best first: `hits` for one query, `results` for several, in the order of the queries."""

    index: str
    version: str
    """The version of the index that answered, all queries alike."""
    hits: list[WireHit] | None = None
    results: list[list[WireHit]] | None = None
    seconds: Timing

    @classmethod
    def of(cls, name: str, found: Found, single: bool) -> SearchAnswer:
        """An answer as it is sent."""
        rows = [[WireHit.of(hit, found.titles[hit.docno]) for hit in hits] for hits in found.hits]
        shown = {"hits": rows[0]} if single else {"results": rows}
        return cls(index=name, version=found.version, seconds=Timing.of(found.effort), **shown)


class DocumentRequest(Strict):
    """A document to add; one of the same docno is replaced."""

    docno: Docno
    index: Name | None = None
    """Which index; the service's first where none is named."""
    docid: Docid | None = None
    """The docid to find it under; without one, the language model writes it."""
    text: str | None = Field(None, min_length=1)
    """What the docid is written from."""
    title: str = Field("", max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Shown with its hits."""


class DocumentAnswer(BaseModel):
    """What was changed."""

    index: str
    docno: str
    docid: str = ""
    """Under which it is found now."""


class IndexFacts(BaseModel):
    """One index of the service."""

    name: str
    version: str
    instruction: str
    model: str
    documents: int
    """Documents that can be found now."""
    added: int
    """Documents added since the index was built, replaced ones included."""
    removed: int
    """Documents deleted or replaced since."""
    rerank: bool
    plan_ahead: bool


class Indexes(BaseModel):
    """The indexes of the service, the default first."""

    indexes: list[IndexFacts]


class Problem(BaseModel):
    """Why a request was not answered."""

    code: str
    message: str
    trace: str
    """The request's X-Request-ID: the service's log has it too."""


class ErrorAnswer(BaseModel):
    """Every answer that is not 2xx."""

    model_config = ConfigDict(title="Error")

    error: Problem


class Health(BaseModel):
    """Whether it is well."""

    status: Literal["ok"] = "ok"

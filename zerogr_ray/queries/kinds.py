"""What kinds of pseudo-queries are written, and in what shares: as the instruction says, by a rule.

1. Of the instruction, the words before "retrieve" or "find" say what is given; where there are none, all words count.
2. A kind is named if one of its cues is among these words, in the singular or plural.
3. The kinds that are named share three quarters of the queries evenly; the other quarter, or all of them where no
   kind is named, are shared as in DEFAULT.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from zerogr_ray.config import QueryKind, QueryMix
from zerogr_ray.corpus.terms import terms
from zerogr_ray.generation.examples import EXAMPLES

PROMPTS: dict[QueryKind, str] = {
    "question": "Write one short question that a person would ask and that the document answers.",
    "keywords": "Write one keyword search of two to six words that the document is the best result for.",
    "claim": "Write one sentence that states a single fact which the document helps to check.",
    "request": "Write one request of a user who wants something done that the document helps with.",
}
"""What the LM is asked for each kind, before the retrieval task."""

KIND_PROMPTS = "kind_prompts"
"""Prompt setting of an adapter: the above, as they were when it was trained."""

DEFAULT: dict[QueryKind, float] = {"question": 0.5, "keywords": 0.25, "claim": 0.125, "request": 0.125}

NAMED = 0.75
"""Share of the kinds that the instruction names."""

CUES: dict[QueryKind, str] = {
    "question": "question how why faq",
    "keywords": "keyword keyphrase topic term phrase tag title name entity mention search",
    "claim": "claim statement assertion fact hypothesis argument proposition theorem headline tweet sentence passage "
    "paragraph excerpt summary",
    "request": "request instruction task command intent need requirement description problem issue situation goal",
}

QUESTION_WORDS = frozenset("who whom whose what when where which why how is are was were do does did can could".split())

KEYWORDS = 6
"""Words at most of a query that is taken for keywords."""

_ASKED = re.compile(r"\b(?:retrieve|find)\b", re.I)


def kinds_of(instruction: str, mix: QueryMix | None = None) -> dict[QueryKind, float]:
    """Share of each kind, summing to 1: as `mix` says, else by the rule above."""
    if mix is not None:
        given: dict[QueryKind, float] = {kind: getattr(mix, kind) for kind in PROMPTS}
        return {kind: weight / sum(given.values()) for kind, weight in given.items()}
    before = _ASKED.split(instruction, maxsplit=1)[0]
    words = set(terms(before) or terms(instruction))
    named = [kind for kind, cues in CUES.items() if any({cue, cue + "s"} & words for cue in cues.split())]
    if not named:
        return dict(DEFAULT)
    return {kind: (1 - NAMED) * DEFAULT[kind] + NAMED * (kind in named) / len(named) for kind in PROMPTS}


def kind_of(query: str, instruction: str) -> QueryKind:
    """Of which kind a person's query is: what a generator that learns from it is asked for.

    It is a question if it ends like one or begins with a question word; keywords if it has at most six words; else the
    likelier of claim and request by the instruction, a request where it names neither.
    """
    words = query.split()
    if query.rstrip().endswith("?") or (words and words[0].lower().rstrip(",'s") in QUESTION_WORDS):
        return "question"
    if len(words) <= KEYWORDS:
        return "keywords"
    shares = kinds_of(instruction)
    return "claim" if shares["claim"] > shares["request"] else "request"


def share_out(shares: dict[QueryKind, float], documents: int, each: int) -> list[list[QueryKind]]:
    """The kinds of the `each` queries of every document, so that any run of documents has the shares it should.

    Smooth weighted round robin, as load balancers do it: at every step each kind gains its share, the richest is
    taken and pays 1.
    """
    wealth = dict.fromkeys(shares, 0.0)
    taken: list[QueryKind] = []
    for _ in range(documents * each):
        for kind, share in shares.items():
            wealth[kind] += share
        richest = max(wealth, key=lambda kind: round(wealth[kind], 9))
        wealth[richest] -= 1
        taken.append(richest)
    return [taken[i * each : (i + 1) * each] for i in range(documents)]


def turns(kind: QueryKind, examples: int) -> Sequence[tuple[str, str]]:
    """The first `examples` worked turns (document, query) of a kind."""
    return [(example.document, getattr(example, kind)) for example in EXAMPLES[:examples]]

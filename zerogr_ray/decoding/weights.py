"""What the parts of a plan count: learned from the corpus's own pseudo-queries.

    p(document | query)  =  softmax over documents of  s · Σ_i w_i · x_i(query, document)

x are the plan's scores by the words that the LM expects, by the query's own words, and by the documents' gists alone;
w and s maximise the log-likelihood of the documents that the queries were written for, less PULL · Σ_i ln²(w_i / w̃_i),
w̃ being the usual weights. Where documents are told apart by names, own words win; where they are asked for in other
words than their own, gists do.

Pseudo-queries take more words from their document than people's queries do: of what is learned for the query's own
words 1 / LITERAL is taken, and w̃ of these is as much higher. What queries are expected to say (expected.py) was made
of these very queries, so it has no part in this: `asked` is ASKED times what is learned for gists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.bags import query_bag
from zerogr_ray.decoding.plan import bag_scores, term_gain
from zerogr_ray.index.postings import Postings

ASKED = 0.25
"""What queries are expected to say, beside what is learned for gists."""

PARTS = ("lm_terms", "own_terms", "gist")
"""Settings that are learned; only their ratios matter, so that own_terms stays as it is."""

PULL = 2.0
"""What it costs, in nats, to change a weight by a factor of e."""

LITERAL = 2.0
"""How much more a query's own words say of the document it was written for than of one that a person looks for."""

Floats = NDArray[np.float32]


def plan_scores(logprobs_QV: Floats, queries: Sequence[str], postings: Postings) -> Floats:
    """Score of every document for every query by each of PARTS alone, (queries, documents, 3).

    `logprobs_QV` are the LM's behind the prompts that ask for a word; `postings` have words and gists.
    """
    assert postings.begins is not None
    rows = np.arange(postings.documents)
    scores = np.empty((len(queries), len(rows), len(PARTS)), dtype=np.float32)
    for number, (query, logprobs_V) in enumerate(zip(queries, logprobs_QV, strict=True)):
        own = query_bag(query)
        for part, weights in enumerate(np.eye(len(PARTS))):
            lm, literal, gist = weights.tolist()
            gain = term_gain(logprobs_V, postings.prior, postings.begins, own, literal, gist, lm_weight=lm)
            scores[number, :, part] = bag_scores(postings, gain, rows)
    return scores


def fit_weights(scores_QDP: Floats, right_Q: Sequence[int]) -> dict[str, float]:
    """Settings of DecodeConfig under which the documents `right_Q` are most likely, as the module says.

    own_terms keeps its usual weight.
    """
    import torch

    usual = DecodeConfig()
    scores, right = torch.tensor(scores_QDP, dtype=torch.float64), torch.tensor(right_Q)
    like = {part: float(getattr(usual, part)) for part in PARTS}
    like["own_terms"] *= LITERAL
    start = torch.tensor(list(like.values()), dtype=torch.float64).log()
    # The last one is ln s: plan scores differ by some .1.
    learned = torch.cat([start, torch.tensor([4.0], dtype=torch.float64)]).requires_grad_()
    optimizer = torch.optim.LBFGS([learned], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        likely = torch.nn.functional.cross_entropy(scores @ (learned[:-1] + learned[-1]).exp(), right, reduction="sum")
        total = likely + PULL * (learned[:-1] - start).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = dict(zip(PARTS, learned[:-1].detach().exp().tolist(), strict=True))
    scale = like["own_terms"] / found["own_terms"]
    weights = {part: found[part] * scale for part in ("lm_terms", "gist")}
    weights["asked"] = ASKED * weights["gist"]
    return {name: round(weight, 3) for name, weight in weights.items()}

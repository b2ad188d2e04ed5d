"""Planning ahead: which documents a search should walk among, from the prompt's next-token log-probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.corpus.bags import BUCKETS, FLOOR, STEPS, UNKNOWN, laid_out
from zerogr_ray.index.postings import Postings

LOWEST = np.float32(-1e4)  # a token that cannot be written; sums of a docid's tokens still keep three decimals
SLICE = 1 << 14  # documents scored at once: what is looked up stays in the second-level cache


def plan_ahead(
    postings: Postings,
    gain_V: NDArray[np.floating],
    n: int,
    among: NDArray[np.int64] | None = None,
    read: int = 4_000_000,
) -> NDArray[np.int64]:
    """Rows of the `n` documents with the best bag of tokens, ascending; the lower row where scores are equal.

        score(document) = sum over the tokens v of its bag of weight[v] · gain_V[v]

    For gains see `docid_gain` and `term_gain`. Every token of the bag counts, those with a negative gain too. A gain
    that is NaN or infinite counts as -10,000. `among`: only of these rows, ascending, all of which are scored.

    Up to 16 * `read` postings every document is scored and the answer is exact: that takes no longer than reading
    `read` postings, which have to be sorted. Beyond that at most `read` postings, of the tokens with the highest gain,
    name candidates; what of a candidate was not read is taken to be of average gain, and the most promising `read` / 8
    are scored exactly. benchmarks/plan.py measures what that loses: most where the best docids are made of frequent
    tokens of middling gain, as digits are behind a question for a number. Every document is scored, too, where fewer
    than `n` candidates are found.
    Raises ValueError for n < 1 and where `gain_V` is shorter than the vocabulary; what it has beyond (a padded LM
    head) is ignored.
    """
    if n < 1:
        raise ValueError(f"n is {n}; plan for at least 1 document")
    if len(gain_V) < postings.vocab:
        raise ValueError(f"{len(gain_V)} gains for a vocabulary of {postings.vocab}")
    if n >= (postings.documents if among is None else len(among)):
        return np.arange(postings.documents) if among is None else among
    gain = _finite(gain_V, postings)
    if among is not None:
        return among[_best(_scores_of(postings, gain, among), n)]
    if len(postings.tokens) > 16 * read:
        rows = _candidates(postings, gain, max(n, read // 8), read)
        if len(rows) >= n:
            return rows[_best(_scores_of(postings, gain, rows), n)]
    return _best(_all_scores(postings, gain), n)


def docid_gain(logprobs_V: NDArray[np.float32], prior_V: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """Gains for bags of docid tokens: z - z̄, shape (V,).

    z are the next-token log-probabilities behind the prompt, z̄ their mean over calibration texts
    (notes/feasibility.md: "Planning ahead").
    """
    return logprobs_V if prior_V is None else logprobs_V - prior_V


def expected_tokens(logprobs_V: NDArray[np.floating], prior_V: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """What the LM would write next more than for any text, at unit length: g / |g|, shape (V,).

        g = ln(1 + max(0, z - z̄ - FLOOR))

    As in SPLADE the logarithm keeps one token from deciding alone; what is not FLOOR nats likelier than for any text at
    all is noise. Without a prior z̄ is that of all tokens alike.
    """
    prior = np.float32(-np.log(len(logprobs_V))) if prior_V is None else prior_V
    expected = np.log1p(np.maximum(logprobs_V - prior - FLOOR, 0.0, dtype=np.float32))
    return np.asarray(expected / max(float(np.linalg.norm(expected)), 1e-9), dtype=np.float32)


def term_gain(
    logprobs_V: NDArray[np.float32],
    prior_V: NDArray[np.floating] | None,
    begins_H: NDArray[np.integer],
    own: tuple[NDArray[np.int64], NDArray[np.float32]],
    own_weight: float,
    gist_weight: float = 0.0,
    asked: tuple[Sequence[int], float] = ((), 0.0),
    lm_weight: float = 1.0,
) -> NDArray[np.float32]:
    """Gains for weighted bags of words, shape (H,): what the LM would write next, and what the query says itself.

        gain[w] = lm_weight · g[begins[w]] + own_weight · q[w]       g: see expected_tokens
        gain[v] = gist_weight · g[v] + asked_weight · t[v]           of the tokens that a gist holds (corpus/bags.py)

    q, of unit length, holds the query's own words: `own` is (words, weights). t, of unit length, holds its own tokens,
    each once: `asked` is (tokens, asked_weight).
    """
    expected = expected_tokens(logprobs_V, prior_V)
    gain = np.zeros(len(begins_H), dtype=np.float32)
    known = np.flatnonzero(begins_H[:BUCKETS] != UNKNOWN)
    gain[known] = np.float32(lm_weight) * expected[begins_H[known]]
    gain[BUCKETS:] = np.float32(gist_weight) * expected[begins_H[BUCKETS:]]
    tokens = np.unique(np.asarray(asked[0], dtype=np.int64))
    if len(tokens) and len(gain) > BUCKETS:
        gain[BUCKETS + tokens] += np.float32(asked[1] * len(tokens) ** -0.5)
    words, weights = own
    gain[words] += np.float32(own_weight) * weights
    return gain


def bag_scores(postings: Postings, gain_V: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score of each document in `rows`, as plan_ahead has it."""
    return _scores_of(postings, _finite(gain_V, postings), rows)


def _finite(gain_V: NDArray[np.floating], postings: Postings) -> NDArray[np.float32]:
    gain = np.asarray(gain_V[: postings.vocab], dtype=np.float32)
    return np.where(np.isfinite(gain), gain, LOWEST)


def _all_scores(postings: Postings, gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of every document, shape (D,): one look-up a token, 4 to 6 ns each."""
    scores = np.empty(postings.documents, dtype=np.float32)
    for row in range(0, len(scores), SLICE):
        starts = postings.first[row : row + SLICE + 1].astype(np.int64)
        found = gain.take(postings.tokens[starts[0] : starts[-1]], mode="clip")  # "raise" would check every index first
        if postings.weights is None:
            np.add.reduceat(found, starts[:-1] - starts[0], out=scores[row : row + SLICE])
        else:
            found *= postings.weights[starts[0] : starts[-1]]
            scores[row : row + SLICE] = _sums(found, starts - starts[0])
    return scores


def _sums(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums of values[starts[i] : starts[i + 1]] over STEPS; 0 for an empty bag."""
    sums = np.zeros(len(starts) - 1, dtype=np.float32)
    some = starts[1:] > starts[:-1]
    if some.any():
        sums[some] = np.add.reduceat(values, starts[:-1][some]) / np.float32(STEPS)
    return sums


def _scores_of(postings: Postings, gain: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score of each document in `rows`, to the last bit as `_all_scores` has it."""
    starts = postings.first[rows].astype(np.int64)
    lengths = postings.first[rows + 1].astype(np.int64) - starts
    at, where = laid_out(starts, lengths)
    found = gain[postings.tokens[where]]
    if postings.weights is None:
        return np.add.reduceat(found, at[:-1])
    return _sums(found * postings.weights[where], at)


def _candidates(postings: Postings, gain: NDArray[np.float32], most: int, read: int) -> NDArray[np.int64]:
    """Rows of the `most` documents, ascending, whose estimated score is best, by reading at most `read` postings.

    A list longer than a quarter of that is passed over: one such token would end the reading. Of weighted bags, whose
    gains are 0 for most tokens, what was not read counts as 0.
    """
    held = np.diff(postings.offsets).astype(np.int64)
    weighted = postings.row_weights is not None
    # Of a million words that there may be, a query favours a few thousand: only these are put in order.
    lists = np.flatnonzero((held > 0) & (held <= read // 4) & (gain > (0 if weighted else -np.inf)))
    lists = lists[np.argsort(-gain[lists], kind="stable")]
    lists = lists[np.cumsum(held[lists]) <= read]
    if not len(lists):
        return np.zeros(0, dtype=np.int64)
    unread = held.copy()
    unread[lists] = 0
    average = np.float32(0 if weighted else (gain * unread).sum() / max(1, unread.sum()))
    # One sort brings a document's postings together: the row in the upper half of a key, what it adds in the lower.
    spans = list(zip(postings.offsets[lists].tolist(), postings.offsets[lists + 1].tolist(), strict=True))
    keys = np.concatenate([postings.rows[start:end] for start, end in spans]).astype(np.uint64) << np.uint64(32)
    adds = np.repeat(gain[lists] - average, held[lists])
    if postings.row_weights is not None:
        adds *= np.concatenate([postings.row_weights[start:end] for start, end in spans])
    keys |= adds.view(np.uint32)
    keys.sort()
    rows = (keys >> np.uint64(32)).astype(np.int64)
    firsts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    rows = rows[firsts]
    lengths = (postings.first[rows + 1] - postings.first[rows]).astype(np.float32)
    estimates = np.add.reduceat(keys.astype(np.uint32).view(np.float32), firsts) + lengths * average
    return rows[_best(estimates, most)]


def _best(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Positions of the `n` highest scores, ascending; the first of equal ones."""
    if n >= len(scores):
        return np.arange(len(scores))
    worst = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > worst)
    return np.sort(np.concatenate([above, np.flatnonzero(scores == worst)[: n - len(above)]]))

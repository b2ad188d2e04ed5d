"""The randomisation test and the bootstrap are what SciPy computes, and treat both runs alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.evaluation import significance
from zerogr_ray.evaluation.significance import bootstrap, compare, randomisation_test

values = st.dictionaries(
    st.sampled_from([f"q{n}" for n in range(24)]), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.63093, 1.0]), min_size=1
)


def scipy_p(d_Q):
    stats = pytest.importorskip("scipy.stats")
    return stats.permutation_test(
        (d_Q, np.zeros(len(d_Q))), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf,
    ).pvalue  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_the_exact_p_is_scipys(seed, size):
    d_Q = np.random.default_rng(seed).choice([-1, -0.5, -1 / 3, 0.1, 1 / 3, 0.5, 1], size)
    assert randomisation_test(d_Q) == pytest.approx(scipy_p(d_Q), abs=1e-12)


def test_random_flips_come_close_to_the_exact_p(monkeypatch):
    d_Q = np.random.default_rng(0).normal(0.3, 1, 14)
    exact = randomisation_test(d_Q)
    monkeypatch.setattr(significance, "EXACT", 0)
    monkeypatch.setattr(significance, "SLICE", 14 * 999)  # the last slice is shorter than the others
    assert randomisation_test(d_Q) == pytest.approx(exact, abs=0.006)  # 4 standard errors
    assert randomisation_test(d_Q, seed=1) != randomisation_test(d_Q)


def test_random_flips_never_give_zero():
    assert randomisation_test(np.ones(60), flips=999) == 1 / 1000


def test_the_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    values_Q = np.random.default_rng(3).random(40)
    theirs = stats.bootstrap((values_Q,), np.mean, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    ours = bootstrap(values_Q)
    assert ours.mean == values_Q.mean()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_an_interval_of_equal_values_is_a_point():
    assert bootstrap(np.full(7, 0.5)) == significance.Interval(0.5, 0.5, 0.5)


def test_one_query_proves_nothing():
    assert randomisation_test(np.array([0.5])) == 1.0


def test_equal_runs_give_p_1():
    found = compare({"q1": 0.3, "q2": 1.0}, {"q1": 0.3, "q2": 1.0})
    assert (found.p, found.wins, found.ties, found.losses) == (1.0, 0, 2, 0)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


def test_a_query_that_one_run_lacks_counts_zero():
    found = compare({"q1": 1.0}, {"q2": 0.5})
    assert (found.queries, found.a.mean, found.b.mean, found.difference.mean) == (2, 0.5, 0.25, 0.25)
    assert (found.wins, found.losses, found.p) == (1, 1, 1.0)  # |1 - 0.5| is as small as sums of these signs get


def test_no_queries_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        compare({}, {})


@settings(max_examples=60, deadline=None)
@given(values, values)
def test_the_two_runs_are_treated_alike(a, b):
    there, back = compare(a, b), compare(b, a)
    assert there.p == back.p
    assert 0 < there.p <= 1
    assert (there.a, there.b) == (back.b, back.a)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-12)


def test_the_order_of_the_queries_does_not_matter():
    a = {f"q{n}": n % 7 / 7 for n in range(30)}
    b = {qid: value**2 for qid, value in a.items()}
    assert compare(a, b) == compare(dict(reversed(a.items())), b)

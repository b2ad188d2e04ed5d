"""The table is aligned plain text."""

from zerogr_ray.evaluation.report import table


def test_columns_are_aligned_and_missing_figures_are_dashes():
    rows = {"zerogr": {"ndcg@10": 0.51234, "acc@1": 1.0}, "bm25": {"ndcg@10": 0.279, "recall@100": 0.9}}
    assert table(rows).splitlines() == [
        "system  ndcg@10  acc@1  recall@100",
        "zerogr    0.512  1.000           -",
        "bm25      0.279      -       0.900",
    ]


def test_no_systems_is_only_the_header():
    assert table({}) == "system"

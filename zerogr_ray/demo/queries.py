"""The demo's queries, written by hand as a programmer would ask them, with the entries that answer each."""

from __future__ import annotations

import json
from importlib.resources import files

from zerogr_ray.rows import Qrels, Query


def stdlib_queries() -> tuple[list[Query], Qrels]:
    """The queries in `queries.jsonl` and their judgements; an answer exists in Python 3.11 and every later one."""
    queries, qrels = [], {}
    for line in files("zerogr_ray.demo").joinpath("queries.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        queries.append(Query(row["qid"], row["text"]))
        qrels[row["qid"]] = dict.fromkeys(row["docnos"], 1)
    return queries, qrels

"""What a search sees of a changing index, against trees of dicts built from scratch from the living documents."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.corpus.bags import BUCKETS, STEPS, UNKNOWN, Bags, query_bag
from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.index import view as view_module
from zerogr_ray.index.bundle import DOCUMENTS, open_index, write_index
from zerogr_ray.index.live import LiveIndex
from zerogr_ray.index.trie import Trie
from zerogr_ray.index.view import View, leaves_of

END = 0
docids = st.lists(st.integers(1, 3), min_size=1, max_size=5)
docnos = st.sampled_from("abcdefghijkl")
changes = st.lists(
    st.one_of(st.lists(st.tuples(docnos, docids), min_size=1, max_size=6), st.sets(docnos, min_size=1, max_size=6)),
    max_size=6,
)


def opened(rows: list[tuple[str, list[int]]], priors: np.ndarray | None = None) -> LiveIndex:
    """A live index over (docno, tokens) rows; each docid reads as its tokens."""
    trie, order = Trie.build([tokens for _, tokens in rows], END)
    rows = [rows[i] for i in order]
    table = pa.table(
        [[d for d, _ in rows], [str(t) for _, t in rows], [t for _, t in rows], [f"title {d}" for d, _ in rows]],
        schema=DOCUMENTS,
    )

    def rows_of(wanted):
        found = [row for row, (docno, _) in enumerate(rows) if docno in set(wanted)]
        return np.array(found, dtype=np.int64), [docno for docno in wanted if docno not in dict(rows)]

    owners = np.array([[docno for docno, _ in rows].index(docno) for docno, _ in rows])
    owners = None if len(set(owners)) == len(rows) else owners
    return LiveIndex(SimpleNamespace(trie=trie, documents=table, priors=priors, rows_of=rows_of, owners=owners), END)


def add(live: LiveIndex, rows: list[tuple[str, list[int]]]) -> None:
    names = [docno for docno, _ in rows]
    live.add(names, [str(tokens) for _, tokens in rows], [tokens for _, tokens in rows], [f"title {n}" for n in names])


def expected(rows: dict[int, list[int]]) -> tuple[dict, set]:
    """Brute force over living row -> tokens: what each branching path branches into, and the rows of each docid."""
    root: dict = {}
    groups: dict[tuple[int, ...], set[int]] = {}
    for row, tokens in rows.items():
        groups.setdefault(tuple(tokens), set()).add(row)
        node = root
        for token in [*tokens, END]:
            node = node.setdefault(token, {})
    branches, todo = {}, [((), root)]
    while todo:
        path, node = todo.pop()
        if len(node) > 1:
            branches[path] = set(node)
        todo += [((*path, token), child) for token, child in node.items()]
    return branches, set(map(frozenset, groups.values()))


def seen(view: View) -> tuple[dict, set]:
    """The same, by walking the view."""
    branches, groups, todo = {}, set(), [0] if view.entries else []
    while todo:
        node = todo.pop()
        children = view.children(node)
        assert (np.diff(children) > 0).all()
        assert all(view.parent(child) == node for child in children.tolist())
        if len(children) > 1:
            tokens = view.tokens(children).tolist()
            assert len(set(tokens)) == len(tokens)
            branches[tuple(view.path(node))] = set(tokens)
        if not len(children):
            rows = view.rows(node).tolist()
            assert rows == sorted(set(rows)) != []
            groups.add(frozenset(rows))
        else:
            assert not len(view.rows(node))
        todo += children.tolist()
    return branches, groups


def apply(live: LiveIndex, steps: list) -> dict[int, tuple[str, list[int]]]:
    """Make the changes; returns living row -> (docno, tokens), kept apart from the index."""
    table = live.bundle.documents
    base = zip(table["docno"].to_pylist(), table["tokens"].to_pylist(), strict=True)
    living = dict(enumerate(base))
    rows = len(living)
    for step in steps:
        names = step if isinstance(step, set) else {docno for docno, _ in step}
        present = names & {docno for docno, _ in living.values()}
        kept = {row: entry for row, entry in living.items() if entry[0] not in names}
        if isinstance(step, list):
            add(live, step)
            living = kept | dict(enumerate(step, rows))
            rows += len(step)
        elif present == names:
            live.remove(sorted(step))
            living = kept
        else:
            with pytest.raises(InputError, match=sorted(names - present)[0]):
                live.remove(sorted(step))
    return living


def tokens_of(living: dict[int, tuple[str, list[int]]]) -> dict[int, list[int]]:
    return {row: tokens for row, (_, tokens) in living.items()}


rows = st.lists(st.tuples(docnos, docids), min_size=1, max_size=25)


@settings(max_examples=25)
@given(rows)
def test_the_plain_view_is_the_trie(rows):
    trie, _ = Trie.build([tokens for _, tokens in rows], END)
    view = View(trie)
    assert view.entries == len(rows)
    for node in range(trie.nodes):
        children = view.children(node)
        assert children.tolist() == list(range(*trie.children(node)))
        assert view.tokens(children).tolist() == trie.tokens[children].tolist()
        assert view.priors(children).tolist() == [0.0] * len(children)
        assert view.rows(node).tolist() == ([] if len(children) else list(trie.documents_of(node)))
        assert view.path(node) == trie.path(node)


@settings(max_examples=50)
@given(rows, changes)
def test_a_changed_index_is_the_trie_of_its_living_documents(rows, steps):
    live = opened(rows)
    before = live.view
    first = seen(before)
    living = apply(live, steps)
    assert seen(live.view) == expected(tokens_of(living))
    assert live.view.entries == len(living)
    assert seen(before) == first
    for row, (docno, tokens) in living.items():
        assert live.at([row])[0] == {"docno": docno, "docid": str(tokens), "title": f"title {docno}"}
        assert live.docid_tokens(row) == tokens
    owner_of = live.owner_of or (lambda row: row)
    owners = {(docno, owner_of(row)) for row, (docno, _) in living.items()}
    assert len(owners) == len(dict(owners)) == len({docno for docno, _ in living.values()})
    names = {docno for docno, _ in living.values()}
    assert live.rows_of(sorted(names)).tolist() == sorted(living)
    told = [(entry["docno"], entry["tokens"]) for entry in live.documents().to_pylist()]
    assert told == [living[row] for row in sorted(living)]
    assert live.documents().schema == DOCUMENTS


@pytest.mark.parametrize("upwards", [0, 2, 4096])
@settings(max_examples=25)
@given(rows=rows, steps=changes, random=st.randoms(use_true_random=False))
def test_a_filter_leaves_the_trie_of_the_living_documents_inside_it(upwards, rows, steps, random):
    live = opened(rows)
    living = tokens_of(apply(live, steps))
    view = live.view
    share = random.random()
    mask = np.array([random.random() < share for _ in range(view.documents)])
    inside = {row: tokens for row, tokens in living.items() if mask[row]}
    numbers = np.repeat(np.flatnonzero(mask), 2)
    random.shuffle(numbers)
    with mock.patch.object(view_module, "UPWARDS", upwards):
        for restricted in (view.restricted(mask), view.restricted(numbers)):
            assert restricted.entries == len(inside)
            assert seen(restricted) == seen(restricted) == expected(inside)  # the second time as remembered
        halves = view.restricted(mask).restricted(np.arange(view.documents // 2))
        assert seen(halves) == expected({row: t for row, t in inside.items() if row < view.documents // 2})


def test_a_removed_document_leaves_no_branch_and_comes_back_with_another_docid():
    live = opened([("a", [1, 1]), ("b", [1, 2]), ("c", [2])])
    live.remove(["b"])
    assert seen(live.view) == expected({0: [2], 1: [1, 1]})
    live.remove(["a", "c"])
    assert (live.view.entries, live.view.children(0).tolist(), live.view.rows(0).tolist()) == (0, [], [])
    with pytest.raises(InputError, match="document b is not in the index"):
        live.remove(["b"])
    add(live, [("b", [1, 1, 3]), ("b", [1])])
    assert seen(live.view) == expected({3: [1, 1, 3], 4: [1]})
    assert live.view.children(0).tolist() == [1 + live.bundle.trie.tokens[1:3].tolist().index(1)]


def test_a_docid_with_tokens_that_the_trie_is_too_narrow_for_is_added():
    live = opened([("a", [1, 1]), ("b", [1, 2])])
    add(live, [("c", [1, 70_000]), ("d", [70_000]), ("e", [1, 1, 70_001])])
    assert seen(live.view) == expected({0: [1, 1], 1: [1, 2], 2: [1, 70_000], 3: [70_000], 4: [1, 1, 70_001]})


def test_an_added_edge_has_the_mean_prior_of_its_siblings():
    rows = [("a", [1, 1]), ("b", [1, 2]), ("c", [2])]
    nodes = Trie.build([tokens for _, tokens in rows], END)[0].nodes
    live = opened(rows, priors=-np.arange(nodes).astype(np.float16))
    add(live, [("d", [3]), ("e", [1, 3]), ("f", [2, 1])])
    view = live.view
    assert view.priors(view.children(0)).tolist() == [-1, -2, -1.5]
    assert view.priors(view.children(1)).tolist() == [-3, -4, -3.5]
    assert view.priors(view.children(2)).tolist() == [0, 0]
    assert view.priors(view.children(0)).dtype == np.float32


def test_an_added_row_has_the_mean_tail_prior_of_the_index():
    live = opened([("a", [1]), ("b", [2])])
    live.bundle.tail_priors = None
    assert live.tail_prior(2) == 0
    live.bundle.tail_priors = np.array([-1, -2], dtype=np.float16)
    assert [live.tail_prior(row) for row in range(3)] == [-1, -2, -1.5]


def test_rows_of_a_document_that_is_not_there_are_refused():
    live = opened([("a", [1]), ("b", [2])])
    live.remove(["b"])
    with pytest.raises(InputError, match="document b and 1 more are not in the index"):
        live.rows_of(["a", "b", "z"])


@pytest.mark.parametrize(
    "rows", [np.array([3]), np.array([-1]), np.ones(2, dtype=bool), np.ones(4, dtype=bool)], ids=repr
)
def test_a_filter_of_rows_that_the_view_does_not_have_is_refused(rows):
    with pytest.raises(ValueError, match="an index of 3 rows"):
        opened([("a", [1]), ("b", [2]), ("c", [2])]).view.restricted(rows)


@pytest.mark.parametrize(("tokens", "why"), [([], "has no tokens"), ([1, END], "holds the end-of-turn token")])
def test_a_docid_that_no_trie_can_hold_is_refused_and_changes_nothing(tokens, why):
    live = opened([("a", [1])])
    before = live.view
    with pytest.raises(InputError, match=f"document b {why}"):
        add(live, [("a", [2]), ("b", tokens)])
    assert live.view is before


def test_a_compacted_index_holds_the_living_documents(tmp_path):
    (tmp_path / "model").mkdir()
    rows = pa.table([["a", "b", "c"], ["x", "y", "z"], [[1, 1], [1, 2], [2]], ["", "", ""]], schema=DOCUMENTS)
    facts = {"key": "0", "corpus": "1", "instruction": "Find it."}
    bags = Bags(np.arange(4), np.array([7, 8, 9]), np.full(3, 255), np.full(BUCKETS, UNKNOWN))
    write_index(tmp_path / "index", rows, END, tmp_path / "model", facts, vocab=10, bags=bags)
    live = LiveIndex(open_index(tmp_path / "index"), END)
    add(live, [("b", [3]), ("d", [1, 1, 4]), ("e", [5])])
    live.remove(["c", "e"])
    live.compact(tmp_path / "next")
    found = open_index(tmp_path / "next")
    assert {(row["docno"], *row["tokens"]) for row in found.documents.to_pylist()} == {
        ("a", 1, 1),
        ("b", 3),
        ("d", 1, 1, 4),
    }
    assert seen(View(found.trie)) == expected(dict(enumerate(found.documents["tokens"].to_pylist())))
    assert (found.manifest["documents"], found.manifest["instruction"]) == (3, "Find it.")
    assert found.manifest["key"] != "0"
    assert found.postings.vocab == BUCKETS
    order = found.documents["docno"].to_pylist()
    about = {docno: found.postings.bags.take(np.array([row])) for row, docno in enumerate(order)}
    assert (about["a"].words.tolist(), about["a"].weights.tolist()) == ([7], [255]), "as it was"
    words, weights = query_bag("[1, 1, 4]")
    assert about["d"].words.tolist() == words.tolist(), "what its docid says"
    np.testing.assert_allclose(about["d"].weights, STEPS * weights, atol=0.5)
    live.remove(["a", "b", "d"])
    with pytest.raises(BuildError, match="no documents"):
        live.compact(tmp_path / "next")


class Counted(np.ndarray):
    """An array that counts the elements read through an index."""

    read = 0

    def __getitem__(self, index):
        found = np.asarray(super().__getitem__(index))
        Counted.read += found.size
        return found[()]


@pytest.fixture(scope="module")
def large() -> Trie:
    """200,000 documents under 2,000 first tokens, a tenth of them in a shared leaf, leaves on four levels."""
    rng = np.random.default_rng(0)
    rows = np.full((200_000, 6), END, dtype=np.uint16)
    rows[:, 0] = rng.integers(1, 2001, len(rows))
    rows[:, 1:4] = rng.integers(1, 20, (len(rows), 3))
    rows[:20_000] = rows[20_000:40_000]
    return Trie.from_rows(rows)[0]


def test_every_row_of_a_large_trie_finds_its_leaf(large):
    leaves = leaves_of(large, np.arange(large.documents))
    starts = np.flatnonzero(np.diff(leaves, prepend=-1))
    assert len(starts) == large.leaves
    for start, stop in pairwise([*starts[::97].tolist()]):
        assert large.documents_of(int(leaves[start])).start == start < stop
    some = np.arange(0, large.documents, 1999)
    assert (leaves_of(large, some) == leaves[some]).all()


@pytest.mark.parametrize("upwards", [0, 4096])
def test_a_filter_of_50_rows_reads_little_of_200000_documents(large, upwards):
    rows = np.arange(0, large.documents, large.documents // 50)[:50]
    counted = Trie(large.tokens, large.first_child.view(Counted), large.internal, large.shared)
    Counted.read = 0
    with mock.patch.object(view_module, "UPWARDS", upwards):
        view = View(counted).restricted(rows)
        roots = view.children(0)
        todo, found = [0], []
        while todo:
            children = view.children(node := todo.pop()).tolist()
            found += [] if children else view.rows(node).tolist()
            todo += children
    assert sorted(found) == rows.tolist()
    assert 1 < len(roots) <= 50
    blocks = 2 * 50 * 513  # one to find each leaf, one to list its rows
    levels = 0 if upwards else 4 * 2 * 2001  # both bounds of every child's descendants on each level
    assert Counted.read < blocks + levels + 50 * 4 * 100 < large.nodes


def test_snapshots_stay_whole_while_others_change_the_index():
    """Two documents are always replaced together, and a third comes and goes."""
    live = opened([("a", [1]), ("b", [1, 2]), ("c", [2]), ("d", [2, 1])])
    start, writing = threading.Barrier(5), threading.Event()

    def replace(turn: int) -> None:
        start.wait()
        for i in range(60):
            add(
                live,
                [("a", [1, turn, 1 + i % 7]), ("b", [1, turn, 1 + i % 7, 1])] if i % 3 else [("a", [1]), ("b", [1])],
            )

    def come_and_go() -> None:
        start.wait()
        try:
            for i in range(60):
                add(live, [("e", [2, 1 + i % 3])])
                live.remove(["e"])
        finally:
            writing.set()

    def look() -> None:
        start.wait()
        while True:
            last = writing.is_set()
            view = live.view
            groups = seen(view)[1]
            rows = sorted(row for group in groups for row in group)
            docs = {row: found["docno"] for row, found in zip(rows, live.at(rows), strict=True)}
            tokens = {row: live.docid_tokens(row) for row in rows}
            assert sorted(set(docs.values()) - {"e"}) == ["a", "b", "c", "d"]
            assert len(rows) == view.entries == len(set(docs.values()))
            a, b = (next(tokens[row] for row in rows if docs[row] == docno) for docno in "ab")
            assert b[: len(a)] == a
            assert seen(view) == expected(tokens)
            if last:
                return

    with ThreadPoolExecutor(5) as pool:
        jobs = [
            pool.submit(replace, 4),
            pool.submit(replace, 5),
            pool.submit(come_and_go),
            *map(pool.submit, [look] * 2),
        ]
        for job in jobs:
            job.result()

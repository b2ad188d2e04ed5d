"""Docids added to a trie after it was built: further nodes and rows that hang from its nodes.

Nodes added are numbered from base.nodes upwards, rows added from base.documents upwards. Every docid counts as its
tokens and the end-of-turn token; it gets a leaf where it leaves the tree, and a leaf that it reaches is extended down
to where the two docids part. Base and overlay together are then cut where a trie built from all of them would be, but
for chains of single children. What was removed since keeps its nodes: a View leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from zerogr_ray.index.trie import Trie


@dataclass(frozen=True, eq=False)
class Overlay:
    """One state of what was added to `base`. `grown` gives the next; nobody changes a state that others can see."""

    base: Trie
    parents: list[int] = field(default_factory=list)
    """Parent of node base.nodes + i."""
    tokens: list[int] = field(default_factory=list)
    """Token on the edge into node base.nodes + i."""
    children: dict[int, dict[int, int]] = field(default_factory=dict)
    """Node -> token -> child, ascending, for the children that were added."""
    leaves: list[int] = field(default_factory=list)
    """Leaf of row base.documents + i."""
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Leaf -> rows, for the leaves that were added or have got rows."""
    moved: dict[int, int] = field(default_factory=dict)
    """Leaf of the base that was extended -> the leaf that has its rows now."""

    def grown(self, docids: Sequence[Sequence[int]], end: int, docid_tokens: Callable[[int], list[int]]) -> Overlay:
        """This and one more row for each of `docids` (all their tokens, neither empty nor with `end` among them).

        `docid_tokens(row)` gives all tokens of the docid of a row, old or new. Costs a copy of the overlay and
        O(depth) steps per docid.
        """
        shared = self.children
        state = replace(
            self,
            parents=self.parents.copy(),
            tokens=self.tokens.copy(),
            children=shared.copy(),
            leaves=self.leaves.copy(),
            rows=self.rows.copy(),
            moved=self.moved.copy(),
        )

        def new_child(node: int, token: int) -> int:
            own = state.children.get(node)
            if own is None or own is shared.get(node):
                own = state.children[node] = dict(own or {})
            own[token] = self.base.nodes + len(state.parents)
            state.parents.append(node)
            state.tokens.append(token)
            return own[token]

        for docid in docids:
            ended = [*docid, end]
            row, (node, depth) = self.base.documents + len(state.leaves), state._walk(ended)
            if not state.is_leaf(node):
                leaf = new_child(node, ended[depth])
                state.rows[leaf] = (row,)
            else:
                held = state.rows.get(node) or tuple(self.base.documents_of(node))
                other = [*docid_tokens(held[0]), end]
                leaf = node
                if other == ended:
                    state.rows[leaf] = (*held, row)
                else:
                    while other[depth] == ended[depth]:
                        leaf = new_child(leaf, ended[depth])
                        depth += 1
                    kept, leaf = new_child(leaf, other[depth]), new_child(leaf, ended[depth])
                    state.rows.pop(node, None)
                    state.rows[kept], state.rows[leaf] = held, (row,)
                    state._move(held, node, kept)
            state.leaves.append(leaf)
        return state

    def _walk(self, ended: Sequence[int]) -> tuple[int, int]:
        """The last node on the way that a docid takes, and its depth."""
        node = 0
        for depth, token in enumerate(ended):
            child = self.children.get(node, {}).get(token) or self._base_child(node, token)
            if not child:
                return node, depth
            node = child
        return node, len(ended)

    def _base_child(self, node: int, token: int) -> int:
        """The child of `node` in the base, 0 where it has none."""
        if node >= self.base.nodes:
            return 0
        first, last = self.base.children(node)
        tokens = self.base.tokens[first:last]
        # The key takes the array's own type, or numpy would first convert 30,000 siblings.
        place = int(tokens.searchsorted(tokens.dtype.type(token))) if first < last and token <= tokens[-1] else 0
        return first + place if first < last and tokens[place] == token else 0

    def is_leaf(self, node: int) -> bool:
        """Whether `node`, of the base or added, has no children, dead or alive."""
        return node not in self.children and (node >= self.base.nodes or not range(*self.base.children(node)))

    def _move(self, rows: tuple[int, ...], node: int, kept: int) -> None:
        """Note that `rows` of the leaf `node` are those of `kept` below it now."""
        for row in rows:
            if row >= self.base.documents:
                self.leaves[row - self.base.documents] = kept
        if rows[0] < self.base.documents:
            while node >= self.base.nodes:
                node = self.parents[node - self.base.nodes]
            self.moved[node] = kept

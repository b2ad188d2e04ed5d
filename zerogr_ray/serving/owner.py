"""The Ray actor that has the one copy of each trie: the replicas of a deployment share it through the object store.

It keeps nothing that cannot be had again: when it dies Serve starts another, replicas keep the arrays that they have
mapped, and one that starts meanwhile maps the index's own files.
"""

from __future__ import annotations

from typing import Any

import ray

from zerogr_ray.serving.loader import arrays_of
from zerogr_ray.serving.state import VersionRef


@ray.remote
class TrieOwner:
    """Puts the arrays of the versions that it is asked for into the object store, once each."""

    def __init__(self) -> None:
        self._kept: dict[VersionRef, dict[str, Any]] = {}

    def arrays(self, ref: VersionRef, in_use: list[VersionRef]) -> dict[str, Any]:
        """Name -> reference (in a list, or Ray would resolve it) of an array. What is not in use any more is freed.

        Raises IndexRefused.
        """
        self._kept = {kept: refs for kept, refs in self._kept.items() if kept in in_use or kept == ref}
        if ref not in self._kept:
            self._kept[ref] = {name: [ray.put(array)] for name, array in arrays_of(ref).items()}
        return self._kept[ref]

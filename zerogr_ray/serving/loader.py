"""Open versions for a replica: the trie from the node's one copy, a model that several indexes have only once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.trie import ARRAYS, Trie
from zerogr_ray.serving.config import ServiceConfig
from zerogr_ray.serving.state import VersionRef
from zerogr_ray.serving.version import label_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zerogr_ray.decoding.retriever import Retriever

Arrays = dict[str, "NDArray[np.generic]"]


def arrays_of(ref: VersionRef) -> Arrays:
    """The flat arrays of a version's trie, memory-mapped, as the owner shares them. Raises IndexRefused."""
    trie = open_index(ref.path).trie
    return {name: getattr(trie, name) for name in ARRAYS}


class Loader:
    """Opens versions."""

    def __init__(self, cfg: ServiceConfig, shared: Callable[[VersionRef], Arrays | None] = lambda ref: None) -> None:
        """`shared` gives the arrays of a version that this node has one copy of, None where they cannot be had."""
        self.cfg, self._shared = cfg, shared
        self._models: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def __call__(self, ref: VersionRef) -> Retriever:
        """Verify and open a version. Raises IndexRefused, ModelError."""
        from zerogr_ray.decoding.retriever import Retriever

        bundle = open_index(ref.path)
        # The folder may have been built again in place: then the shared arrays are those of another index.
        if label_of(bundle.manifest) == ref.version and (arrays := self._shared(ref)) is not None:
            bundle = replace(bundle, trie=Trie(**arrays))
        weights = {name: file["sha256"] for name, file in bundle.manifest["files"].items() if name.startswith("model/")}
        same = repr(sorted(weights.items()))
        retriever = Retriever.open(bundle, dtype=self.cfg.dtype, cache=self.cfg.cache, model=self._models.get(same))
        self._models[same] = retriever.model
        return retriever

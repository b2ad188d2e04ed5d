"""What is in an index folder, without loading its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from zerogr_ray.docids.statistics import docid_statistics
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.table import take
from zerogr_ray.index.trie import Trie


def inspect_index(path: str | Path, samples: int = 10) -> dict[str, Any]:
    """Facts about the index at `path`: manifest, docid statistics, sizes, and some documents spread over it."""
    bundle = open_index(path)
    manifest, documents = bundle.manifest, bundle.documents
    lengths = pc.list_value_length(documents["tokens"]).to_numpy()
    statistics = docid_statistics(documents["docid"], lengths, leaf_depths(bundle.trie))
    rows = np.unique(np.linspace(0, documents.num_rows - 1, min(samples, documents.num_rows)).astype(int))
    sizes = {"trie": 0, "documents.arrow": 0, "by_docno.npy": 0, "model": 0}
    for name, file in manifest["files"].items():
        part = name.split("/")[0]
        sizes[part] = sizes.get(part, 0) + file["size"]
    return {
        "index": str(path),
        "key": manifest["key"],
        "instruction": manifest["instruction"],
        "model": manifest["model"],
        "docids": statistics.__dict__,
        "coverage": manifest.get("coverage", {}),
        "collisions": manifest.get("collisions", {}),
        "queries": manifest.get("queries", {}),
        "decode": bundle.decode.model_dump(),
        "tried": manifest.get("decode_tried", []),
        "trie": {"nodes": bundle.trie.nodes, "root_children": bundle.trie.children(0)[1] - 1},
        "bytes": sizes,
        "samples": take(documents.select(["docno", "docid"]), rows).to_pylist(),
    }


def leaf_depths(trie: Trie) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens from the root to each leaf, in level order: walked level by level, not leaf by leaf."""
    depths, first, last, depth = [], 1, int(trie.first_child[1]), 1
    while first < last:
        begins = np.asarray(trie.first_child[first : last + 1], dtype=np.int64)
        depths.append(np.full(int((begins[1:] == begins[:-1]).sum()), depth))
        first, last, depth = last, int(begins[-1]), depth + 1
    return np.concatenate(depths)

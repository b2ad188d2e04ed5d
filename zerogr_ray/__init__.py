"""Generative retrieval on Ray: a language model that has learned a corpus answers a query with docids.

Importing this module loads neither torch, ray nor vllm; the names below load what they need when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zerogr_ray.config import DecodeConfig, IndexConfig
from zerogr_ray.errors import IndexRefused, InputError, ModelError, ZeroGRError
from zerogr_ray.rows import Document, Hit, Query

if TYPE_CHECKING:
    from zerogr_ray.build import build_index
    from zerogr_ray.decoding.job import Request
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.index.trie import Trie

__all__ = [
    "DecodeConfig",
    "Document",
    "Hit",
    "IndexConfig",
    "IndexRefused",
    "InputError",
    "ModelError",
    "Query",
    "Request",
    "Retriever",
    "Trie",
    "ZeroGRError",
    "build_index",
]

_LAZY = {
    "Request": "zerogr_ray.decoding.job",
    "Retriever": "zerogr_ray.decoding.retriever",
    "Trie": "zerogr_ray.index.trie",
    "build_index": "zerogr_ray.build",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'zerogr_ray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)

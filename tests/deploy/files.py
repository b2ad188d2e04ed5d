"""The deployment files as their readers see them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))
MANIFESTS = [file for file in sorted(INFRA.glob("*.yaml")) if file.name != "kustomization.yaml"]


@cache
def documents(file: Path) -> list[dict[str, Any]]:
    """The YAML documents in a file; do not change them."""
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def manifest(kind: str) -> dict[str, Any]:
    """The manifest of this kind, of which there is one."""
    (found,) = (one for file in MANIFESTS for one in documents(file) if one["kind"] == kind)
    return found


def ray_cluster(kind: str) -> dict[str, Any]:
    """The Ray cluster that a RayJob or a RayService asks for."""
    spec = manifest(kind)["spec"]
    return spec["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]


def groups(kind: str) -> dict[str, dict[str, Any]]:
    """Name -> group of pods, the head's among them."""
    cluster = ray_cluster(kind)
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def values(tree: Any, key: str) -> Iterator[Any]:
    """What stands under `key`, anywhere in a tree of dicts and lists."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)

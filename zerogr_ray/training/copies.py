"""What a training run keeps on an object store, so that another machine goes on from it.

URL/checkpoint-00000120/*       as on a disk, see checkpoints.py; the same for best-00000100/
URL/checkpoint-00000120.json    every file's size and sha256; written last: without it there is no copy
URL/log.jsonl
URL/result-4f2a90c1/*           the product and the log, under a name that no other run has
URL/finished.json               fingerprint of the training and name of its result; written last, by one run alone
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zerogr_ray.cache import here, making, scratch
from zerogr_ray.s3 import is_url
from zerogr_ray.store import Folder, as_json, sha256_of
from zerogr_ray.training.checkpoints import LOG, Product

FINISHED = "finished.json"
KINDS = ("best-", "checkpoint-")
"""Folders that are copied, in this order: a checkpoint names the best state that it needs."""

log = logging.getLogger(__name__)


class Copies:
    """The copies of one training folder."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)

    def finished(self, fingerprint: str, product: Product) -> Path | None:
        """This machine's copy of the product, if a run of this fingerprint has left one."""
        said = self._said()
        if (said.get("fingerprint"), said.get("product")) != (fingerprint, product):
            return None
        try:
            return here(self.folder.url_of(said["result"])) / product
        except FileNotFoundError:
            return None

    def restore(self, folder: Path) -> None:
        """Fetch the whole checkpoints that `folder` lacks, and the log if it has none."""
        for marker in self._markers():
            name = marker.removesuffix(".json")
            if (folder / name).is_dir():
                continue
            files: dict[str, dict[str, Any]] = self.folder.read_json(marker) or {}
            try:
                with making(folder / name) as building:
                    for file, expected in files.items():
                        self.folder.fetch(f"{name}/{file}", building / file)
                        if sha256_of(building / file) != expected["sha256"]:
                            raise ValueError(f"{file} is not as it was written")
            except (OSError, ValueError) as error:  # another run has replaced it; the one before may serve
                log.warning("%s is not used: %s", self.folder.url_of(name), error)
        if not (folder / LOG).exists() and self.folder.exists(LOG):
            self.folder.fetch(LOG, folder / LOG)

    def keep(self, folder: Path) -> None:
        """Copy what is new in `folder`; what has gone from there goes here too."""
        ours = [path for kind in KINDS for path in sorted(folder.glob(f"{kind}*")) if path.is_dir()]
        there = set(self._markers())
        for path in ours:
            if f"{path.name}.json" not in there:
                (self.folder / path.name).upload(path)
                files = {file.name: {"sha256": sha256_of(file)} for file in path.iterdir()}
                self.folder.write_json(f"{path.name}.json", files)
        if (folder / LOG).exists():
            self.folder.write(LOG, (folder / LOG).read_bytes())
        for marker in there - {f"{path.name}.json" for path in ours}:
            self.folder.remove(marker)
            (self.folder / marker.removesuffix(".json")).delete()

    def finish(self, folder: Path, fingerprint: str, product: Product) -> None:
        """Copy the product; where another run of this training has finished meanwhile, its product stays."""
        seen = self.folder.stamp(FINISHED)
        if self._said().get("fingerprint") != fingerprint:
            name = f"result-{secrets.token_hex(4)}"
            result = self.folder / name
            (result / product).upload(folder / product)
            result.write(LOG, (folder / LOG).read_bytes())
            said = {"fingerprint": fingerprint, "product": product, "result": name}
            if not self.folder.swap(FINISHED, as_json(said), seen):
                result.delete()
        self.keep(folder)

    def _said(self) -> dict[str, Any]:
        try:
            said = self.folder.read_json(FINISHED)
        except json.JSONDecodeError:
            return {}
        return said if isinstance(said, dict) else {}

    def _markers(self) -> list[str]:
        return [name for kind in KINDS for name in self.folder.names(kind, ".json")]


@contextmanager
def workplace(place: str) -> Iterator[tuple[Path, Copies | None]]:
    """Where a rank of a training works: the folder `place`; or, for a URL, a folder of its own, and the copies."""
    if not is_url(place):
        yield Path(place), None
        return
    with scratch(place) as folder:
        yield folder, Copies(place)


def fetched(places: list[str]) -> list[Path]:
    """Local files with the contents of these, which are paths or URLs; those of one folder are fetched together."""
    folders: dict[str, list[str]] = {}
    for place in places:
        folder, _, name = place.rpartition("/")
        folders.setdefault(folder, []).append(name)
    local = {folder: here(folder, names) for folder, names in folders.items()}
    return [local[folder] / name for folder, _, name in (place.rpartition("/") for place in places)]

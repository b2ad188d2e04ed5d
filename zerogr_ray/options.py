"""Options that several verbs of the `zerogr` command share, and what is done with them."""

from __future__ import annotations

import json
import tomllib
from typing import Annotated, Any

import typer

from zerogr_ray.config import DecodeConfig, make_config
from zerogr_ray.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Seed = Annotated[int | None, typer.Option(help="Key of the noise: same index, query and seed, same hits.")]
Draws = Annotated[int | None, typer.Option(help="K, docids drawn per query.")]
Decoding = Annotated[
    list[str] | None, typer.Option("--set", help="One setting of the search: mode=top_k, order=docid. May repeat.")
]
Published = Annotated[
    bool, typer.Option("--published", help="Begin from the published algorithm, not from what the index chose.")
]


def load(path: str) -> Any:
    """The retriever at `path`, with the libraries' own chatter off."""
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.models import hush

    hush()
    return Retriever.load(path)


def setting(text: str) -> tuple[str, Any]:
    """`training.epochs=2` as ("training.epochs", 2); what is no TOML value is taken as a string.

    Raises InputError for a text without "=".
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: write it as NAME=VALUE, for example training.epochs=2")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value


def decoding(
    index: str, published: bool, seed: int | None, draws: int | None, settings: list[str] | None
) -> DecodeConfig:
    """What the index chose, or the published algorithm, with the settings given on the command line.

    Raises InputError for a setting that there is not, IndexRefused where there is no index.
    """
    from zerogr_ray.index.manifest import read_manifest

    if draws is not None and draws < 1:
        raise InputError(f"--draws is {draws}; it must be at least 1")
    own = {} if published else dict(read_manifest(index).get("decode", {}))
    given = {name: value for name, value in (("seed", seed), ("draws", draws)) if value is not None}
    return make_config(DecodeConfig, own | given, dict(map(setting, settings or [])))


def print_json(value: Any) -> None:
    """Print `value` for machines, indented."""
    print(json.dumps(value, ensure_ascii=False, indent=1))

"""The verbs of the `zerogr` command that are about the search service. Heavy imports wait inside them."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zerogr_ray.config import make_config, read_config
from zerogr_ray.errors import InputError
from zerogr_ray.options import print_json, setting


def serve(
    indexes: Annotated[
        list[str] | None, typer.Argument(metavar="[INDEX]...", help="Folders of indexes, or NAME=FOLDER.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Service file (TOML); see serve/.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: limits.k=100. May repeat.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback only with keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    state: Annotated[str | None, typer.Option(help="State folder (default: INDEX.serving).")] = None,
    keys: Annotated[str | None, typer.Option(help="File of API keys; see zerogr key.")] = None,
    activate: Annotated[str | None, typer.Option(help="Let this version answer instead, and return.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Back to the version before, and return.")] = False,
    compact: Annotated[
        str | None, typer.Option(metavar="OUT", help="Fold the changes since the build into a new version, and return.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Which index --activate, --rollback, --compact mean.")] = None,
) -> None:
    """Serve indexes over HTTP until Ctrl-C; or change which version a running service answers from.

    Example: zerogr serve indexes/docs --port 8000

    Example: zerogr serve indexes/docs --activate indexes/docs-v2

    Example: zerogr serve indexes/docs --compact indexes/docs-v3
    """
    from zerogr_ray.serving.config import ServiceConfig, service_of

    given = {"host": host, "port": port, "keys": keys}
    overrides = dict(map(setting, set_ or [])) | {key: value for key, value in given.items() if value is not None}
    if indexes:
        overrides |= service_of(indexes, state)
    elif config is None:
        raise InputError("give the folder of an index, or a service file: zerogr serve --config serve/service.toml")
    elif state is not None:
        overrides["state"] = state
    cfg = read_config(config, ServiceConfig, overrides) if config else make_config(ServiceConfig, {}, overrides)

    def say(line: str) -> None:
        print(line, flush=True)

    if activate or rollback or compact:
        from zerogr_ray.serving import control
        from zerogr_ray.serving.state import State

        if [activate is not None, rollback, compact is not None].count(True) > 1:
            raise InputError("--activate, --rollback and --compact exclude each other; give one")
        which = name or cfg.default
        folder = State(cfg.state)
        if activate:
            control.activate(folder, which, activate, say)
        elif compact:
            control.compact(folder, which, compact, say, dtype=cfg.dtype)
        else:
            control.roll_back(folder, which, say)
        return
    from zerogr_ray.serving.run import serve_until_told

    serve_until_told(cfg, say)


def key(
    name: Annotated[str, typer.Argument(help="Who gets it: it stands in the logs.")],
    file: Annotated[Path, typer.Option(help="File of the keys; made where there is none.")] = Path("keys.json"),
    right: Annotated[list[str] | None, typer.Option(help="search or change. May repeat.")] = None,
) -> None:
    """Make an API key and print it, once: the file keeps only its hash.

    Example: zerogr key website --file keys.json --right search
    """
    from zerogr_ray.serving.keys import new_key

    print(new_key(file, name, right or ["search"]))


def search_service(url: str, query: str, k: int, name: str | None, given: dict[str, Any], as_json: bool) -> None:
    """Search a service; of the settings, those that are given go with the request."""
    from zerogr_ray.serving.client import Client

    settings = {setting: value for setting, value in given.items() if value is not None}
    with Client(url, os.environ.get("ZEROGR_KEY")) as client:
        answer = client.search_many([query], k, name, **settings)
    if as_json:
        hits = [asdict(hit) for hit in answer.results[0]]
        print_json({"query": query, "index": answer.index, "version": answer.version, "hits": hits})
        return
    for hit in answer.results[0]:
        print(hit.rank, hit.docno, hit.docid, sep="\t")

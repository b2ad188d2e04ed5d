"""What is submitted: a verb with its own arguments, checked here as far as that goes without the corpus."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zerogr_ray.cluster import Asked, asked_of
from zerogr_ray.config import DecodeConfig, IndexConfig, dotted, make_config, read_config
from zerogr_ray.errors import InputError
from zerogr_ray.options import setting
from zerogr_ray.store import key_of

PATHS = {
    "index": ("corpus", "out", "work"),
    "train": ("data", "out"),
    "evaluate": ("index", "dataset", "run"),
}
"""The verbs that can be submitted, and which of their parameters are paths that the cluster reads or writes."""

RUN_FILE = "run.toml"
"""What a run file is called in the job's working folder."""


@dataclass(frozen=True)
class Request:
    """One run, as the cluster is to do it."""

    verb: str
    arguments: tuple[str, ...]
    """As given, but for a run file, which travels with the job."""
    parameters: dict[str, Any]
    """What the arguments mean: the same run written in another order has the same parameters."""
    run_file: str | None = None
    """Text of the run file."""
    forwarded: tuple[str, ...] = ()
    """Names of the environment variables that the job gets."""
    asked: Asked = field(default_factory=dict)
    """Resources that the settings name."""

    @property
    def id(self) -> str:
        """The same for the same verb, parameters, run file and version of this package."""
        key = key_of(self.verb, self.parameters, self.run_file, sorted(self.forwarded), version("zerogr-ray"))
        return f"zerogr-{self.verb}-{key[:10]}"

    @property
    def entrypoint(self) -> str:
        """The shell command of the job."""
        return shlex.join(["python", "-m", "zerogr_ray.jobs.remote", version("zerogr-ray"), self.verb, *self.arguments])


def known_verb(verb: str) -> str:
    """`verb` if it can be submitted. Raises InputError with the nearest that can."""
    if verb in PATHS:
        return verb
    near = get_close_matches(verb, PATHS, n=1)
    raise InputError(
        f"{verb!r} cannot be submitted; " + (f"did you mean {near[0]}?" if near else f"choose {', '.join(PATHS)}")
    )


def make_request(verb: str, arguments: Sequence[str], given: dict[str, Any], forwarded: Sequence[str] = ()) -> Request:
    """The request of `zerogr VERB ARGUMENTS`, whose parsed parameters are `given`.

    Raises InputError for a path that only this machine sees, a wrong setting, a run file that cannot be read.
    """
    for name in PATHS[verb]:
        value = given.get(name)
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if path is not None and "://" not in str(path) and not Path(path).is_absolute():
                raise InputError(
                    f"{path} is a path on this machine, and the job runs on the cluster; "
                    "give s3://… or an absolute path that the cluster sees"
                )
    run_file, arguments = _take_run_file(given.get("config"), list(arguments))
    settings = dict(map(setting, given.get("set_") or []))
    asked: Asked = {}
    models: dict[str, Any] = settings | {"encoder": given.get("encoder")}
    if verb == "index" and (run_file is not None or given.get("config") is None):
        cfg = _index_config(given.get("config"), settings, given.get("instruction"))
        asked = asked_of(cfg.training, cfg.llm, cfg.workers)
        models = cfg.model_dump()
    elif verb == "evaluate":
        make_config(DecodeConfig, {}, settings)
    elif verb == "train":
        from zerogr_ray.training.finetune import finetune_config

        tuning = finetune_config(settings)
        asked, models = asked_of(tuning.training), tuning.model_dump()
    _refuse_local_models(models)
    parameters = json.loads(json.dumps({name: value for name, value in given.items() if name != "config"}, default=str))
    if run_file is None and given.get("config") is not None:
        parameters["config"] = str(given["config"])
    return Request(verb, tuple(arguments), parameters, run_file, tuple(forwarded), asked)


def _index_config(file: Path | None, settings: dict[str, Any], instruction: str | None) -> IndexConfig:
    overrides = settings | ({} if instruction is None else {"instruction": instruction})
    return read_config(file, IndexConfig, overrides) if file else make_config(IndexConfig, {}, overrides)


def _take_run_file(file: Path | None, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Text of a run file of this machine, and the arguments with the name that it has in the job."""
    if file is None or (file.is_absolute() and not file.exists()):  # one that the cluster has
        return None, arguments
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"there is no run file {file}; see pipelines/ for examples") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not valid TOML: {error}") from None
    for number, argument in enumerate(arguments):
        if argument == "--config":
            arguments[number + 1] = RUN_FILE
        elif argument.startswith("--config="):
            arguments[number] = f"--config={RUN_FILE}"
    return text, arguments


def _refuse_local_models(settings: dict[str, Any]) -> None:
    """Models and adapters by a relative folder are on this machine alone; names and URLs are the cluster's matter."""
    for name, value in dotted(settings):
        if name.rpartition(".")[2] in ("model", "adapter", "encoder") and isinstance(value, str):
            here = "/" in value and "://" not in value and not Path(value).is_absolute() and Path(value).exists()
            if here or value.startswith((".", "~")):
                raise InputError(
                    f"{name} is {value}, a folder of this machine, and the job runs on the cluster; "
                    "give s3://…, a name, or an absolute path that every node sees"
                )

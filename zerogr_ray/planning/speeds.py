"""How fast each stage is on some hardware: as measured by `zerogr plan --calibrate`, or by published throughputs.

A stage takes  fixed + units / per_second  with one worker. What is fixed (a model loaded, an actor started) is measured
apart from what grows with the corpus, so that a small run can speak for a large one.
"""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from zerogr_ray.config import Strict
from zerogr_ray.errors import InputError
from zerogr_ray.planning.work import ModelShape, Texts, Work

LM_STAGES = ("docids", "queries", "training", "expected", "gists", "priors", "decoding", "serving")
"""Those whose speed is the model's."""


class Speed(Strict):
    """Of one worker: a GPU, a CPU core, or for an LM on a CPU the whole machine."""

    unit: str
    per_second: float = Field(gt=0)
    fixed: float = Field(0.0, ge=0)
    """Seconds that it takes whatever the amount."""


class Calibration(Strict):
    """What `zerogr plan --calibrate` measured."""

    format: Literal[1] = 1
    hardware: str
    """For people."""
    device: Literal["cpu", "cuda"]
    cores: int = Field(ge=1)
    model: str
    parameters: int = Field(ge=1)
    documents: int = Field(ge=1)
    """Documents that the LM wrote for and was trained on."""
    bulk: int = Field(ge=1)
    """Documents of the run without LM, by which the stages were measured that have none."""
    docid_answer: float = Field(ge=0)
    """Tokens that the LM wrote for a docid, on the mean; 0 where it was not asked."""
    query_answer: float = Field(ge=0)
    """And for a pseudo-query."""
    kept: float = Field(ge=0, le=1)
    """Share of the pseudo-queries that the filter kept."""
    memory: dict[str, int]
    """Bytes of the largest worker of a stage."""
    stages: dict[str, Speed]

    @model_validator(mode="after")
    def _older(self) -> Calibration:
        """One without gists or expected words, which are forwards of an LM as priors are."""
        for name in ("gists", "expected"):
            self.stages.setdefault(name, self.stages["priors"])
        return self


def read_calibration(path: str | None) -> Calibration:
    """The calibration in a file. Raises InputError, also where none is given: no speed is made up."""
    if path is None:
        raise InputError(
            "a plan needs speeds that were measured; make them once, in minutes: zerogr plan CORPUS --calibrate FILE, "
            "and give --calibration FILE (beside --gpus it serves for the stages that no GPU does)"
        )
    try:
        return Calibration.model_validate_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"the calibration {path} cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path} is no calibration ({first}); make one: zerogr plan --calibrate FILE") from None


class Gpus(Strict):
    """Some GPUs of one kind, with what is known of it."""

    kind: str
    count: int
    facts: dict[str, Any]

    @property
    def memory(self) -> float:
        """Bytes of one."""
        return float(self.facts["memory_gb"]) * 1e9


def gpus_of(text: str) -> Gpus:
    """`8xA100` or `A100`. Raises InputError with the kinds that are known."""
    table: dict[str, dict[str, Any]] = json.loads((files(__package__) / "gpus.json").read_text("utf-8"))
    found = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([\w -]+)", text.strip(), re.I)
    kinds = {kind.lower(): kind for kind in table}
    kind = kinds.get(found[2].strip().lower()) if found else None
    count = int(found[1] or 1) if found else 0
    if kind is None or count < 1:
        raise InputError(
            f"--gpus {text}: give a number and a kind such as 8xA100; the kinds with published throughputs are "
            f"{', '.join(table)}; for any other, measure on one: zerogr plan CORPUS --calibrate FILE"
        )
    return Gpus(kind=kind, count=count, facts=table[kind])


def on_this_model(measured: Calibration, shape: ModelShape) -> Calibration:
    """The same hardware with another model: an LM's speed goes as 1 / parameters, all else stays."""
    scale = measured.parameters / shape.parameters
    return _with_speeds(measured, {name: measured.stages[name].per_second * scale for name in LM_STAGES})


def published(measured: Calibration, gpus: Gpus, shape: ModelShape, work: Work, draws: int) -> Calibration:
    """Speeds of one GPU of this kind by what others have published of it; what no GPU does stays as measured.

    Generation: prefill at p and decoding at d tokens a second, from the published runs,
        answer / throughput = prompt / p + answer / d
    scaled by 1 / parameters and to bfloat16. Training: the published model nearest in size, scaled likewise; a third
    of prefill where none is published, since a training step is three passes.
    """
    generation, training = gpus.facts["generation"], gpus.facts["training"]
    scale = float(generation["of_bf16"] * generation["parameters"] / shape.parameters)
    prefill, decode = (speed * scale for speed in two_speeds(generation["runs"]))

    def of(texts: Texts) -> float:
        return texts.tokens / (texts.prompt / prefill + texts.answer / decode) if texts.tokens else prefill

    trained = prefill / 3
    if training:
        near = min(training["runs"], key=lambda run: abs(math.log(run["parameters"] / shape.parameters)))
        trained = near["tokens_per_second"] * near["parameters"] / shape.parameters
    search = prefill / (work.query_tokens + draws * work.docid_tokens)
    rates = {"docids": of(work.docids), "queries": of(work.queries), "training": trained}
    rates |= {"expected": prefill, "gists": prefill, "priors": prefill, "decoding": search, "serving": search}
    return _with_speeds(measured, rates)


def two_speeds(runs: list[dict[str, float]]) -> tuple[float, float]:
    """(prefill, decode) in tokens a second from one or two published runs; from one, prompt and answer count alike."""
    seconds = [run["answer"] / run["answer_tokens_per_second"] for run in runs]
    if len(runs) == 1:
        both = (runs[0]["prompt"] + runs[0]["answer"]) / seconds[0]
        return both, both
    short, long = runs
    prefill = (long["prompt"] - short["prompt"]) / (seconds[1] - seconds[0])
    return prefill, short["answer"] / (seconds[0] - short["prompt"] / prefill)


def _with_speeds(measured: Calibration, rates: dict[str, float]) -> Calibration:
    changed = {name: measured.stages[name].model_copy(update={"per_second": rate}) for name, rate in rates.items()}
    return measured.model_copy(update={"stages": measured.stages | changed})

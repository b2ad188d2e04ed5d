"""`zerogr plan`: what an index will cost, before it is built."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from zerogr_ray.config import DEFAULT_MODEL, DecodeConfig, IndexConfig, make_config, read_config
from zerogr_ray.errors import InputError
from zerogr_ray.options import Json, print_json, setting


def plan(
    corpus: Annotated[str, typer.Argument(help="As for zerogr index.")],
    model: Annotated[
        str | None, typer.Option(help=f"Retriever and writer (default: the run file's, else {DEFAULT_MODEL}).")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="Of one node: 8xA100. Without, the LM runs on the CPU.")] = None,
    nodes: Annotated[int, typer.Option(help="Machines.", min=1)] = 1,
    cores: Annotated[int | None, typer.Option(help="CPU cores of one node (default: this machine's).", min=1)] = None,
    network: Annotated[float, typer.Option(help="Gbit/s between nodes, and to the store.", min=0.001)] = 100,
    calibration: Annotated[
        str | None, typer.Option(help="What --calibrate wrote, on such a machine. Needed, also with --gpus.")
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="OUT", help="Measure this machine on small runs instead, and write OUT.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            help="Plan for so many, of which CORPUS is a sample (default: count them). With --calibrate: the LM "
            "writes for so many (default: three shards).",
            min=1,
        ),
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Plan for a model of this size with the tokenizer of MODEL: 1.2e9.", min=1)
    ] = None,
    sample: Annotated[int, typer.Option(help="Documents that are looked at.", min=1)] = 256,
    config: Annotated[Path | None, typer.Option(help="Run file (TOML); see pipelines/.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: training.epochs=2. May repeat.")] = None,
    as_json: Json = False,
) -> None:
    """Print what the index of CORPUS will cost: tokens, hours, wall time, memory, storage and network by stage.

    Prompts are counted on a sample with the model's own tokenizer. Speeds are those of a calibration, or published
    ones of a GPU; what is assumed is printed below.

    Example: zerogr plan docs.jsonl --calibration here.json --gpus 8xA100 --config pipelines/gpu.toml
    """
    from zerogr_ray.models import hush

    hush()
    given = dict(map(setting, set_ or []))
    if model is not None:
        given = {"model": model, "llm.model": model} | given
    cfg = read_config(config, IndexConfig, given) if config else make_config(IndexConfig, {}, given)
    if calibrate is not None:
        from zerogr_ray.planning.calibrate import measure

        measured = measure(corpus, cfg, documents)
        Path(calibrate).write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if as_json:
            print_json(measured.model_dump())
            return
        print("calibration", calibrate, measured.hardware, f"{measured.documents} documents", sep="\t")
        for name, speed in measured.stages.items():
            print(name, f"{speed.per_second:.6g} {speed.unit}/s", f"{speed.fixed:.2f} s fixed", sep="\t")
        return
    made = planned(corpus, cfg, gpus, nodes, cores, network * 1e9 / 8, calibration, documents, parameters, sample)
    if as_json:
        print_json(made)
        return
    _print(made)


def planned(
    corpus: str,
    cfg: IndexConfig,
    gpus: str | None = None,
    nodes: int = 1,
    cores: int | None = None,
    network: float = 12.5e9,
    calibration: str | None = None,
    documents: int | None = None,
    parameters: float | None = None,
    sample: int = 256,
) -> dict[str, Any]:
    """The plan as JSON values. Raises InputError and ModelError for what cannot be planned."""
    from zerogr_ray import cluster
    from zerogr_ray.adapters import chosen_adapter, find_adapted_model
    from zerogr_ray.build import writers_of
    from zerogr_ray.generation.engine import choose_engine
    from zerogr_ray.models import find_model, load_format
    from zerogr_ray.planning.costs import Machines, make_plan
    from zerogr_ray.planning.sample import read_sample
    from zerogr_ray.planning.speeds import gpus_of, on_this_model, published, read_calibration
    from zerogr_ray.planning.work import ModelShape, Texts, count_work
    from zerogr_ray.training.tasks import Retrieve

    kind = gpus_of(gpus) if gpus else None
    measured = read_calibration(calibration)
    if measured.device == "cuda" and kind is None:
        raise InputError(f"{calibration} was measured on a GPU ({measured.hardware}); say how many: --gpus 8xA100")
    found = read_sample(corpus, cfg.corpus.text_chars, sample, documents)
    adapter = chosen_adapter(cfg.adapter, cfg.model, Retrieve.name)
    folder = find_adapted_model(cfg.model, adapter) if adapter else find_model(cfg.model)
    shape = ModelShape.of(folder, parameters)
    cfg, writers = writers_of(cfg)
    have = Machines(nodes, cores or cluster.cores(), kind, network, cfg.llm.tensor_parallel)
    if kind and have.tensor_parallel > kind.count:
        raise InputError(
            f"llm.tensor_parallel is {have.tensor_parallel}, one node has {kind.count} {kind.kind}; "
            "an engine's GPUs must be in one node"
        )
    cached = kind is not None or choose_engine(cfg.llm) == "vllm"
    formats = (load_format(writers[0]), load_format(writers[-1]))
    trainers = have.devices if kind else nodes
    work = count_work(found.documents, load_format(folder), formats, cfg, trainers, cached)

    def answered(texts: Texts, mean: float, most: int) -> Texts:
        return replace(texts, answer=texts.count * min(mean, most)) if mean else texts

    work = replace(
        work,
        docids=answered(work.docids, measured.docid_answer, cfg.docids.max_new_tokens),
        queries=answered(work.queries, measured.query_answer, cfg.queries.max_new_tokens),
    )
    speeds = on_this_model(measured, shape)
    if kind and measured.device == "cpu":
        speeds = published(measured, kind, shape, work, DecodeConfig().draws)
    made = make_plan(found.total, work, shape, cfg, speeds, have, len(set(writers)))
    costs = [asdict(cost) for cost in made.costs]
    totals = {"seconds": made.seconds, "gpu_hours": made.hours("GPU"), "core_hours": made.hours("core")}
    return {
        "documents": made.documents,
        "sample": len(found.documents),
        "model": {"name": cfg.model, "parameters": shape.parameters},
        "machines": {"nodes": nodes, "gpus": gpus, "cores": have.cores},
        "stages": costs,
        "total": totals | {"held_hours": made.seconds * have.devices / 3600, "held": have.unit},
        "per_million": {name: value * 1e6 / made.documents for name, value in totals.items()},
        "serving": {
            "queries_per_second": made.queries_per_second,
            "replica_memory": made.replica_memory,
            "index_bytes": made.index_bytes,
        },
        "shards": {
            "rows": cfg.corpus.shard_rows,
            "seconds": made.shard_seconds,
            "rows_for_a_minute": made.shard_rows,
        },
        "work": asdict(work),
        "speeds": {name: speed.model_dump() for name, speed in speeds.stages.items()},
        "assumptions": [*_sources(measured, kind, shape.parameters), *made.assumptions],
    }


def _sources(measured: Any, kind: Any, parameters: int) -> list[str]:
    """Where the speeds are from, and how they were carried over to this model."""
    said = [f"stages without LM: measured on {measured.hardware}, on {measured.bulk} documents"]
    own = f"measured with {measured.model} ({measured.parameters / 1e6:.0f}M parameters) on {measured.hardware}"
    if measured.device == "cuda" or kind is None:
        said.append(f"the LM's speed: {own}" + _scaled(measured.parameters, parameters))
        return said
    generation, training = kind.facts["generation"], kind.facts["training"]
    precision, factor = generation["precision"], generation["of_bf16"]
    lower = "" if factor == 1 else f", {precision}, taken times {factor} for bf16"
    sizes = f"{generation['parameters'] / 1e9:g}B to {parameters / 1e9:.2f}B parameters"
    said.append(
        f"writing, priors and searches: {generation['what']}{lower}, scaled from {sizes} by 1 / parameters: "
        f"{generation['source']}"
    )
    said.append(
        f"training: {training['what']}, from the model nearest in size by 1 / parameters: {training['source']}"
        if training
        else "training: no published figure was found; a third of the prefill, as a step is three passes"
    )
    said.append(f"{kind.facts['name']}, memory and links: {kind.facts['hardware_source']}")
    said.append(f"starting engines and workers takes as long as {own}")
    return said


def _scaled(measured: int, parameters: int) -> str:
    if abs(parameters / measured - 1) < 0.01:
        return ""
    return f", scaled to {parameters / 1e6:.0f}M by 1 / parameters"


def _print(made: dict[str, Any]) -> None:
    model, total, serving, shards = made["model"], made["total"], made["serving"], made["shards"]
    machines, each = made["machines"], made["per_million"]
    print(
        f"{made['documents']} documents (looked at {made['sample']}), {model['name']}, "
        f"{model['parameters'] / 1e6:.0f}M parameters, {machines['nodes']} x {machines['gpus'] or 'no GPU'}, "
        f"{machines['cores']} cores a node\n"
    )
    sizes = ("memory", "storage", "network")
    print(f"{'stage':<9}{'amount':>9} {'unit':<10}{'hours':>9} {'of':<5}{'wall':>9}", *(f"{n:>9}" for n in sizes))
    for row in made["stages"]:
        amount, hours, wall = short(row["amount"]), f"{row['hours']:.3g}", duration(row["seconds"])
        print(
            f"{row['stage']:<9}{amount:>9} {row['unit']:<10}{hours:>9} {row['on']:<5}{wall:>9}",
            *(f"{short(row[name], 'B'):>9}" for name in sizes),
        )
    print(
        f"\nin all {duration(total['seconds'])}: {total['gpu_hours']:.3g} GPU-hours and {total['core_hours']:.3g} "
        f"core-hours of work, {total['held_hours']:.3g} {total['held']}-hours if all are held to the end"
    )
    print(f"per million documents: {each['gpu_hours']:.3g} GPU-hours, {each['core_hours']:.3g} core-hours")
    print(
        f"serving: a replica answers {serving['queries_per_second']:.3g} queries/s in "
        f"{short(serving['replica_memory'], 'B')}; the index is {short(serving['index_bytes'], 'B')}"
    )
    print(
        f"a lost engine costs {duration(shards['seconds'])} with corpus.shard_rows={shards['rows']}, a minute at most "
        f"with corpus.shard_rows={shards['rows_for_a_minute']}"
    )
    print("\nassumed:", *made["assumptions"], sep="\n- ")


def short(value: float, unit: str = "") -> str:
    """Three digits and k, M, G, T."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """In seconds, minutes, hours or days."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"

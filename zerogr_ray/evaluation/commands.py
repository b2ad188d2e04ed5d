"""The verbs `zerogr report` and `zerogr suite`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from zerogr_ray.errors import InputError
from zerogr_ray.options import Decoding, Draws, Json, Quiet, Seed, decoding, load, print_json, setting


def report(
    index: Annotated[str, typer.Argument(help="Folder of the index.")],
    dataset: Annotated[str, typer.Argument(help="A BEIR or MAIR folder with queries and judgements.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="A folder for the pictures, as PNG files.")] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help='A decoding mode, with settings behind "+": top_k, exact+order=docid. May repeat.'),
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    seed: Seed = None,
    draws: Draws = None,
    set_: Decoding = None,
    bm25: Annotated[bool, typer.Option(help="BM25 on the same queries beside it.")] = True,
    dense: Annotated[bool, typer.Option("--dense", help="all-MiniLM-L6-v2 on the same queries beside it.")] = False,
    encoder: Annotated[str | None, typer.Option(help="A sentence encoder instead: a folder or org/name.")] = None,
    run: Annotated[Path | None, typer.Option(help="A folder for every system's run, in TREC format.")] = None,
    date: Annotated[str, typer.Option(help="A date to show; without one the same input gives the same bytes.")] = "",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one page about INDEX on the queries of DATASET: tables, curves by mode, docids, training, ten queries.

    Without --mode it shows what the index's build chose (named index), reference, exact, sampling, beam, top_k,
    best_first, the order by whole docids, up to 1000 documents exhaustive, and what the index carries data for: edge
    priors, postings for plan_ahead, a rerank head.
    --json prints every figure of the page.

    Example: zerogr report indexes/scifact data/scifact --out scifact.html --png figures --dense
    """
    from zerogr_ray.corpus.collections import read_collection
    from zerogr_ray.corpus.trec import write_run
    from zerogr_ray.evaluation.figures import png as as_png
    from zerogr_ray.evaluation.modes import check_modes, left_out, usual_modes
    from zerogr_ray.evaluation.page import charts, render
    from zerogr_ray.evaluation.report import make_report
    from zerogr_ray.models import DEFAULT_ENCODER

    if any(setting(text)[0] == "mode" for text in set_ or []):
        raise InputError("a report shows modes side by side; write --mode NAME instead of --set mode=NAME")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the page: --out {out / 'report.html'}")
    for package in ("jinja2", "matplotlib"):  # a package that is missing is said before hours of searching
        import_module(package)
    base = decoding(index, True, seed, draws, set_)
    collection = read_collection(dataset, split)
    retriever = load(index)
    modes = check_modes(retriever, mode or usual_modes(retriever.bundle), base)
    for folder in (out.parent, png, run):  # before the searches, so that a folder that cannot be made costs nothing
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    facts, runs = make_report(
        retriever,
        collection,
        modes,
        bm25,
        encoder or (DEFAULT_ENCODER if dense else None),
        quiet,
        {} if mode else left_out(retriever.bundle),
    )
    out.write_text(render(facts, date), encoding="utf-8")
    if png is not None:
        for chart in charts(facts):
            (png / f"{chart.name}.png").write_bytes(as_png(chart))
    if run is not None:
        for name, found in runs.items():
            write_run(str(run / f"{name}.trec"), found, name)
    if as_json:
        print_json(asdict(facts))
    else:
        print(out)


def suite(
    file: Annotated[Path, typer.Argument(help="The suite (TOML); see pipelines/suites/example.toml.")],
    metric: Annotated[str, typer.Option(help="Of the table: ndcg@10, acc@1, recall@100 or mrr@10.")] = "ndcg@10",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate many collections and print one table with the mean of each domain and of all.

    BM25 stands beside ours, and the published algorithm where any of the indexes searches in another way.

    Every run is kept. Run it again after an interruption and it goes on; a finished collection is searched again only
    when its index, its queries, its corpus or the settings have changed.

    Example: zerogr suite pipelines/suites/example.toml --metric recall@100
    """
    from zerogr_ray.evaluation.metrics import METRICS
    from zerogr_ray.evaluation.suite import plan_suite, read_suite, run_suite, suite_table

    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    config = read_suite(file)
    result = run_suite(plan_suite(config, file), config, quiet)
    if as_json:
        print_json(asdict(result))
        return
    for folder in result.skipped:
        print(f"left out: {folder} has no queries", file=sys.stderr)
    if kept := sum(row.kept for row in result.collections):
        print(f"{kept} of {len(result.collections)} collections unchanged since the last time", file=sys.stderr)
    print(suite_table(result, metric))

"""The `zerogr` command: verbs on a corpus or an index. Heavy imports wait inside the verbs."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zerogr_ray.config import IndexConfig, make_config, read_config
from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.evaluation import commands
from zerogr_ray.jobs import commands as jobs
from zerogr_ray.options import Decoding, Draws, Json, Published, Quiet, Seed, decoding, load, print_json, setting
from zerogr_ray.planning import commands as planning
from zerogr_ray.serving import commands as serving

app = typer.Typer(
    help="Generative retrieval on Ray: build an index whose posting list is a language model, and search it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def index(
    corpus: Annotated[
        str, typer.Argument(help="jsonl, parquet, a folder of them, a BEIR or a MAIR folder; also s3://.")
    ],
    out: Annotated[str, typer.Argument(help="Folder of the index, on a disk or s3://.")],
    instruction: Annotated[str | None, typer.Option(help="The retrieval task in natural language.")] = None,
    config: Annotated[Path | None, typer.Option(help="Run file (TOML); see pipelines/.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: training.epochs=2. May repeat.")] = None,
    work: Annotated[str | None, typer.Option(help="Folder of intermediate results (default: OUT.work).")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build the index of CORPUS in OUT: docids, pseudo-queries, training, trie.

    Run it again after an interruption and it goes on; run it with nothing changed and it does nothing.

    Example: zerogr index docs.jsonl indexes/docs --instruction "Given a question, retrieve the page that answers it."
    """
    from zerogr_ray.build import build_index
    from zerogr_ray.models import hush

    hush()
    overrides = dict(setting(text) for text in set_ or [])
    if instruction is not None:
        overrides["instruction"] = instruction
    cfg = read_config(config, IndexConfig, overrides) if config else make_config(IndexConfig, {}, overrides)
    report = build_index(corpus, out, cfg, work, quiet)
    if as_json:
        print_json(asdict(report) | {"spent": {name: spent.summary() for name, spent in report.spent.items()}})
        return
    print(f"documents\t{report.documents}")
    print(f"docids\t{report.docids}")
    if report.collisions:
        print("distinct", *(f"{number} {name}" for name, number in report.collisions.items()), sep="\t")
    if report.queries:
        print("queries", *(f"{number} {name}" for name, number in report.queries.items()), sep="\t")
    if report.rejected:
        print(f"rejected\t{report.rejected}\tsee {report.rejects}")
    print(f"index\t{report.index}" + ("\tunchanged: nothing to do" if report.unchanged else ""))


@app.command()
def search(
    index: Annotated[str, typer.Argument(help="Folder of the index, also s3://, or http://HOST:PORT of a service.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="Documents to return.")] = 10,
    instruction: Annotated[str | None, typer.Option(help="Instead of the index's own.")] = None,
    seed: Seed = None,
    draws: Draws = None,
    set_: Decoding = None,
    published: Published = False,
    name: Annotated[str | None, typer.Option(help="Which index of a service; its first where none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Print the k best documents for QUERY, one `rank<TAB>docno<TAB>docid` per line.

    A service that wants a key finds it in $ZEROGR_KEY.

    Example: zerogr search indexes/docs "how do I parse command line flags" -k 5
    """
    if index.startswith(("http://", "https://")):
        given = dict(map(setting, set_ or [])) | {"seed": seed, "draws": draws, "instruction": instruction}
        serving.search_service(index, query, k, name, given, as_json)
        return
    cfg = decoding(index, published, seed, draws, set_)
    retriever = load(index)
    hits = retriever.search(query, k, instruction, cfg)
    if as_json:
        print_json({"query": query, "index": retriever.bundle.manifest["key"], "hits": [asdict(hit) for hit in hits]})
        return
    for hit in hits:
        print(hit.rank, hit.docno, hit.docid, sep="\t")


@app.command()
def evaluate(
    index: Annotated[str, typer.Argument(help="Folder of the index, on a disk or s3://.")],
    dataset: Annotated[str, typer.Argument(help="A BEIR or MAIR folder with queries and judgements.")],
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    k: Annotated[int, typer.Option("-k", help="Documents per query.")] = 100,
    seed: Seed = None,
    draws: Draws = None,
    set_: Decoding = None,
    published: Published = False,
    paper: Annotated[bool, typer.Option(help="The published algorithm on the same queries beside it.")] = True,
    bm25: Annotated[bool, typer.Option(help="BM25 on the same queries beside it.")] = True,
    dense: Annotated[bool, typer.Option("--dense", help="all-MiniLM-L6-v2 on the same queries beside it.")] = False,
    encoder: Annotated[str | None, typer.Option(help="A sentence encoder instead: a folder or org/name.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Write our run here, in TREC format; into a folder, every system's.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure nDCG@10, Acc@1, Recall@100 and MRR@10 on the queries of DATASET, beside BM25 and an encoder.

    Where the index searches in another way than the published algorithm, that has a row too. --json says them of every
    query as well.

    Example: zerogr evaluate indexes/scifact data/scifact --dense --run scifact.trec
    """
    from zerogr_ray.corpus.collections import read_collection
    from zerogr_ray.corpus.trec import write_run
    from zerogr_ray.evaluation.evaluate import evaluate_index
    from zerogr_ray.evaluation.report import table
    from zerogr_ray.models import DEFAULT_ENCODER

    cfg = decoding(index, published, seed, draws, set_)
    collection = read_collection(dataset, split)
    retriever = load(index)
    encoder = encoder or (DEFAULT_ENCODER if dense else None)
    result = evaluate_index(retriever, collection, cfg, k, bm25, quiet, encoder, paper)
    if as_json:
        about = {"dataset": collection.name, "split": split, "queries": result.queries, "decode": cfg.model_dump()}
        figures = {**result.figures, "per_query": result.per_query}
        print_json({**about, **figures, "seconds": round(result.seconds, 1)})
    else:
        print(table(result.figures))
    if run is not None:  # last, so that a path that cannot be written does not cost the figures
        files = {run / f"{name}.trec": name for name in result.runs} if run.is_dir() else {run: "zerogr"}
        for file, name in files.items():
            write_run(str(file), result.runs[name], name)


app.command()(commands.report)
app.command()(commands.suite)
app.command()(planning.plan)
app.command()(serving.serve)
app.command()(serving.key)
app.command(context_settings=jobs.ANY_OPTIONS)(jobs.submit)
app.command()(jobs.jobs)
app.command()(jobs.logs)
app.command()(jobs.stop)


@app.command()
def compare(
    qrels: Annotated[str, typer.Argument(help="Judgements: TREC qrels, or BEIR's qrels/test.tsv.")],
    run_a: Annotated[str, typer.Argument(help="A run in TREC format.")],
    run_b: Annotated[str, typer.Argument(help="Another.")],
    metric: Annotated[str, typer.Option(help="ndcg@10, acc@1, recall@100 or mrr@10.")] = "ndcg@10",
    seed: Annotated[int, typer.Option(help="Of the resamples and the random signs.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Is RUN_A better than RUN_B? Means and difference with 95 % intervals, p of a paired randomisation test.

    A judged query that a run lacks counts 0. Wins are the queries on which RUN_A is better.

    Example: zerogr compare data/scifact/qrels/test.tsv runs/zerogr.trec runs/bm25.trec
    """
    from zerogr_ray.corpus.trec import read_qrels, read_run
    from zerogr_ray.evaluation import metrics, significance

    if metric not in metrics.METRICS:
        raise InputError(f"there is no metric {metric!r}; choose one of {', '.join(metrics.METRICS)}")
    judged = read_qrels(qrels)
    runs = {"A": read_run(run_a), "B": read_run(run_b)}
    paths = {"A": run_a, "B": run_b}
    found = {name: len(judged.keys() & run.keys()) for name, run in runs.items()}
    for name, path in paths.items():
        if not found[name]:
            raise InputError(f"{path} has none of the {len(judged)} queries of {qrels}; do the query ids match?")
    values = [
        {qid: row[metric] for qid, row in metrics.evaluate(judged, run).items()} for run in (runs["A"], runs["B"])
    ]
    result = significance.compare(values[0], values[1], seed)
    if as_json:
        print_json({"metric": metric, "level": significance.LEVEL, "runs": paths, "found": found, **asdict(result)})
        return
    print("system", metric, "low", "high", "queries", "run", sep="\t")
    for name, row in (("A", result.a), ("B", result.b)):
        print(name, *(f"{x:.4f}" for x in (row.mean, row.low, row.high)), found[name], paths[name], sep="\t")
    row = result.difference
    print("A-B", *(f"{x:+.4f}" for x in (row.mean, row.low, row.high)), result.queries, f"p={result.p:.4g}", sep="\t")
    print("A wins", result.wins, "ties", result.ties, "B wins", result.losses, sep="\t")


@app.command()
def overlap(
    pool: Annotated[str, typer.Argument(metavar="TRAIN_POOL", help="File or folder that training read.")],
    collections: Annotated[list[str], typer.Argument(metavar="COLLECTION...", help="BEIR or MAIR folders.")],
    without: Annotated[list[str] | None, typer.Option(help="A task that training left out. May repeat.")] = None,
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    encoder: Annotated[
        str | None, typer.Option(help="Compare instructions by this sentence encoder, not by tf-idf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Did training resemble the test? Nearest training instructions, and test queries in the training pool.

    TRAIN_POOL is .jsonl with query or instruction and perhaps task, .tsv with such columns, .json of task: instruction.
    One verdict per collection: clean, similar instruction, leaked queries.

    Example: zerogr overlap train_pools/triples.jsonl data/scifact data/metatool --without scifact
    """
    from zerogr_ray.corpus.collections import read_collection
    from zerogr_ray.evaluation import overlap as check

    trained = check.read_pool(pool, without or [])
    evaluated = [read_collection(path, split) for path in collections]
    near, similarity = check.NEAR_TFIDF, None
    if encoder is not None:
        from zerogr_ray.evaluation.dense import SentenceEncoder, embed
        from zerogr_ray.models import hush

        hush()
        sentences = SentenceEncoder(encoder)
        near, similarity = check.NEAR_ENCODER, lambda a, b: embed(a, sentences) @ embed(b, sentences).T
    results = check.overlap(trained, evaluated, similarity, near)
    measure = "cosine of the encoder" if encoder else "tf-idf cosine of word 1-3-grams"
    if as_json:
        limits = {"instruction": near, "instruction_by": measure, "query": check.NEAR_QUERY}
        print_json({"near": limits, "collections": [asdict(result) for result in results]})
        return
    print(
        "near", f"instruction: {measure} >= {near}", f"query: Jaccard of word trigrams >= {check.NEAR_QUERY}", sep="\t"
    )
    for result in results:
        print(result.as_text())


@app.command()
def inspect(
    index: Annotated[str, typer.Argument(help="Folder of the index, on a disk or s3://.")],
    samples: Annotated[int, typer.Option(help="Documents to show.", min=1)] = 10,
    as_json: Json = False,
) -> None:
    """Verify the index and say what is in it: docids (how unique, how short, what they cover), sizes, examples.

    Example: zerogr inspect indexes/docs
    """
    from zerogr_ray.index.inspect import inspect_index

    facts = inspect_index(index, samples)
    if as_json:
        print_json(facts)
        return
    for name in ("index", "key", "instruction"):
        print(name, facts[name], sep="\t")
    for group in ("model", "docids", "coverage", "collisions", "queries", "decode", "trie", "bytes"):
        for name, value in facts[group].items():
            print(f"{group}.{name}", value, sep="\t")
    for row in facts["tried"]:
        settings = [f"{name}={value}" for name, value in row.items() if name not in ("ndcg@10", "ahead", "error")]
        # An index that was built before this was measured has the mean alone.
        ahead = f"{row['ahead']:+.4f} ± {row['error']:.4f}" if "ahead" in row else "–"
        print("tried", row["ndcg@10"], ahead, " ".join(settings) or "the published algorithm", sep="\t")
    for row in facts["samples"]:
        print("sample", row["docno"], row["docid"], sep="\t")


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="queries, docids or retriever.")],
    data: Annotated[list[str], typer.Argument(help="jsonl of instruction, query, positive, title, task. May repeat.")],
    out: Annotated[str, typer.Argument(help="Folder of the adapter, on a disk or s3://.")],
    without: Annotated[list[str] | None, typer.Option(help="Leave out the rows of this task. May repeat.")] = None,
    most: Annotated[int | None, typer.Option(help="Rows of one task at most.", min=1)] = None,
    licence: Annotated[str, typer.Option(help="For the model card.")] = "not given",
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting: training.epochs=2. May repeat.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a query generator, a docid generator or a retriever on rows of DATA; OUT is a LoRA adapter.

    Run it again after an interruption and it goes on. --set training.method=full trains and writes a whole model.

    Example: zerogr train queries triples.jsonl adapters/queries --without scifact --set training.epochs=2
    """
    from zerogr_ray.models import hush
    from zerogr_ray.training.finetune import finetune, finetune_config

    if task not in ("queries", "docids", "retriever"):
        raise InputError(f"there is no task {task!r} to train; choose queries, docids or retriever")
    hush()
    cfg = finetune_config(dict(map(setting, set_ or [])))
    report = finetune(task, data, out, cfg, without or [], most, licence, quiet)  # type: ignore[arg-type]
    if as_json:
        print_json(asdict(report))
        return
    print(f"examples\t{report.examples}\theld out {report.held_out}")
    if report.rejected:
        print(f"rejected\t{report.rejected}\tsee {report.rejects}")
    print(f"steps\t{report.steps}\tloss {report.loss:.3f}")
    if report.validation_loss is not None:
        print(f"held out\tloss {report.validation_loss:.3f}\tat step {report.best_step}")
    print(f"adapter\t{report.out}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the corpus and the index go.")] = Path("demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Index the documentation of this Python's standard library, evaluate it, answer three queries.

    Beside what the index chose stand the published algorithm and BM25, on the same queries.

    Example: zerogr demo --folder demo
    """
    from zerogr_ray.demo.run import run_demo

    report = run_demo(folder, quiet)
    if as_json:
        print_json(report.as_dict())
        return
    print(report.as_text())


def main() -> None:
    """Entry point: errors that a user can act on become one sentence and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            print("zerogr: interrupted; run the same command again to go on", file=sys.stderr)
        raise
    except ZeroGRError as error:
        complaint = str(error)
    except ModuleNotFoundError as error:
        complaint = f"the package {error.name} is not installed; pip install 'zerogr-ray[cpu]' or 'zerogr-ray[gpu]'"
    except OSError as error:  # a full disk, a folder that may not be written
        complaint = str(error)
        if error.errno == errno.ENOSPC:
            complaint += "; make room and run the same command again"
    print(f"zerogr: {complaint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()

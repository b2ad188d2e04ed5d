"""The `zerogr` command: verbs on a corpus or an index. Heavy imports wait inside the verbs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zerogr_ray.config import DecodeConfig, IndexConfig, make_config, read_config
from zerogr_ray.errors import InputError, ZeroGRError

app = typer.Typer(
    help="Generative retrieval on Ray: build an index whose posting list is a language model, and search it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Seed = Annotated[int, typer.Option(help="Key of the noise: same index, query and seed, same hits.")]
Draws = Annotated[int, typer.Option(help="K, docids drawn per query.")]
Decoding = Annotated[
    list[str] | None, typer.Option("--set", help="One setting of the search: mode=top_k, order=docid. May repeat.")
]


@app.command()
def index(
    corpus: Annotated[str, typer.Argument(help="jsonl, parquet, a folder of them, a BEIR or a MAIR folder.")],
    out: Annotated[str, typer.Argument(help="Folder of the index.")],
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
    from zerogr_ray.index.build import build_index
    from zerogr_ray.models import hush

    hush()
    overrides = dict(_setting(text) for text in set_ or [])
    if instruction is not None:
        overrides["instruction"] = instruction
    cfg = read_config(config, IndexConfig, overrides) if config else make_config(IndexConfig, {}, overrides)
    report = build_index(corpus, out, cfg, work, quiet)
    if as_json:
        _print_json(asdict(report))
        return
    print(f"documents\t{report.documents}")
    print(f"docids\t{report.docids}")
    if report.rejected:
        print(f"rejected\t{report.rejected}\tsee {report.rejects}")
    print(f"index\t{report.index}" + ("\tunchanged: nothing to do" if report.unchanged else ""))


@app.command()
def search(
    index: Annotated[str, typer.Argument(help="Folder of the index.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="Documents to return.")] = 10,
    instruction: Annotated[str | None, typer.Option(help="Instead of the index's own.")] = None,
    seed: Seed = 0,
    draws: Draws = 100,
    set_: Decoding = None,
    as_json: Json = False,
) -> None:
    """Print the k best documents for QUERY, one `rank<TAB>docno<TAB>docid` per line.

    Example: zerogr search indexes/docs "how do I parse command line flags" -k 5
    """
    cfg = _decoding(seed, draws, set_)
    retriever = _load(index)
    hits = retriever.search(query, k, instruction, cfg)
    if as_json:
        _print_json({"query": query, "index": retriever.bundle.manifest["key"], "hits": [asdict(hit) for hit in hits]})
        return
    for hit in hits:
        print(hit.rank, hit.docno, hit.docid, sep="\t")


@app.command()
def evaluate(
    index: Annotated[str, typer.Argument(help="Folder of the index.")],
    dataset: Annotated[str, typer.Argument(help="A BEIR or MAIR folder with queries and judgements.")],
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    k: Annotated[int, typer.Option("-k", help="Documents per query.")] = 100,
    seed: Seed = 0,
    draws: Draws = 100,
    set_: Decoding = None,
    bm25: Annotated[bool, typer.Option(help="BM25 on the same queries beside it.")] = True,
    run: Annotated[Path | None, typer.Option(help="Write our run here, in TREC format.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure nDCG@10, Acc@1, Recall@100 and MRR@10 on the queries of DATASET, beside BM25.

    Example: zerogr evaluate indexes/scifact data/scifact --run scifact.trec
    """
    from zerogr_ray.corpus.collections import read_collection
    from zerogr_ray.corpus.trec import write_run
    from zerogr_ray.evaluation.evaluate import evaluate_index
    from zerogr_ray.evaluation.report import table

    cfg = _decoding(seed, draws, set_)
    collection = read_collection(dataset, split)
    retriever = _load(index)
    result = evaluate_index(retriever, collection, cfg, k, bm25, quiet)
    if as_json:
        about = {"dataset": collection.name, "split": split, "queries": result.queries, "seed": seed}
        _print_json({**about, **result.figures, "seconds": round(result.seconds, 1)})
    else:
        print(table(result.figures))
    if run is not None:  # last, so that a path that cannot be written does not cost the figures
        write_run(str(run), result.runs["zerogr"], "zerogr")


@app.command()
def inspect(
    index: Annotated[str, typer.Argument(help="Folder of the index.")],
    samples: Annotated[int, typer.Option(help="Documents to show.", min=1)] = 10,
    as_json: Json = False,
) -> None:
    """Verify the index and say what is in it: documents, docids, collisions, sizes, some examples.

    Example: zerogr inspect indexes/docs
    """
    from zerogr_ray.index.inspect import inspect_index
    from zerogr_ray.store import local_path

    facts = inspect_index(local_path(index), samples)
    if as_json:
        _print_json(facts)
        return
    for name in ("index", "key", "instruction"):
        print(name, facts[name], sep="\t")
    for group in ("model", "docids", "trie", "bytes"):
        for name, value in facts[group].items():
            print(f"{group}.{name}", value, sep="\t")
    for row in facts["samples"]:
        print("sample", row["docno"], row["docid"], sep="\t")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the corpus and the index go.")] = Path("demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Index the documentation of this Python's standard library, evaluate it beside BM25, answer three queries.

    Example: zerogr demo --folder demo
    """
    from zerogr_ray.demo.run import run_demo

    report = run_demo(folder, quiet)
    if as_json:
        _print_json(report.as_dict())
        return
    print(report.as_text())


def _load(path: str) -> Any:
    """The retriever at `path`, with the libraries' own chatter off."""
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.models import hush

    hush()
    return Retriever.load(path)


def _setting(text: str) -> tuple[str, Any]:
    """`training.epochs=2` as ("training.epochs", 2); what is no TOML value is taken as a string."""
    import tomllib

    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: write it as NAME=VALUE, for example training.epochs=2")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value


def _decoding(seed: int, draws: int, settings: list[str] | None) -> DecodeConfig:
    if draws < 1:
        raise InputError(f"--draws is {draws}; it must be at least 1")
    return make_config(DecodeConfig, {"seed": seed, "draws": draws}, dict(map(_setting, settings or [])))


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


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
    print(f"zerogr: {complaint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()

"""What the cluster does of an index: it tokenises the docids shard by shard, and sorts them by ranges.

    docids ── tokenised ─┬─ one table, memory-mapped ──────────────┬─ trie, documents in its order
                         └─ first tokens, packed ── sorted (Ray) ──┘

Only numbers pass through the object store: 40 bytes of every docid of 12 16-bit tokens, on their way to the sort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import spare_cpus
from zerogr_ray.index.bundle import DOCUMENTS
from zerogr_ray.index.table import CHUNK
from zerogr_ray.index.trie import Trie
from zerogr_ray.index.trie_build import KEY, Keys, beyond_key, docid_rows, sorted_arrays
from zerogr_ray.stage import Output, ShardWorker, map_shards, quiet_ray_data
from zerogr_ray.store import Folder, key_of

if TYPE_CHECKING:
    from ray.data import DataContext

Build = Callable[[pa.ChunkedArray, int], tuple[Trie, NDArray[np.int64]]]
"""Trie.build, or what does the same."""


@dataclass(frozen=True)
class Tokenise:
    """Turn documents with docids into what the index holds of them."""

    source: Output
    docids: Output
    fmt: PromptFormat
    name: str = "documents"

    def read(self, shard: str) -> pa.Table:
        """docno, docid and title of a shard's documents."""
        titles = self.source.folder.read_table(shard, ["title"])
        return self.docids.folder.read_table(shard, ["docno", "docid"]).append_column("title", titles["title"])

    def __call__(self, documents: pa.Table, engine: None = None) -> pa.Table:
        """Rows of DOCUMENTS, in the documents' order."""
        tokens = self.fmt.docids(documents["docid"].to_pylist())
        return documents.add_column(2, DOCUMENTS.field("tokens"), pa.array(tokens, DOCUMENTS.field("tokens").type))


class Tokeniser(ShardWorker):
    """The Ray Data actor around Tokenise."""

    def work(self, shard: str, task: Tokenise, output: Output) -> tuple[int, int]:
        """Tokenise one shard."""
        documents = task(task.read(shard))
        output.folder.write_table(shard, documents)
        return documents.num_rows, pc.sum(pc.list_value_length(documents["tokens"])).as_py()


NEAR = 1 << 18
"""Documents below which one process has tokenised them before the actors of a cluster have started."""

FAR = 1 << 24
"""Documents below which one process has sorted them before Ray Data has: it takes half a minute for any number."""


def index_documents(
    task: Tokenise, work: Folder, key: str, sizes: dict[str, int], quiet: bool = False
) -> tuple[Iterator[pa.Table], Build]:
    """What write_index takes: the documents, and how the trie is built; by the cluster where there are many.

    `key` is that of the docids, `sizes` gives the documents of each shard. Ray must be initialised.
    """
    if sum(sizes.values()) < NEAR:
        return (task(task.read(shard)) for shard in sorted(sizes)), Trie.build
    made = tokenise(task, work, key, sizes, spare_cpus(), quiet)
    tables = (made.folder.read_table(shard) for shard in sorted(sizes))
    return tables, Trie.build if sum(sizes.values()) < FAR else partial(trie_on_cluster, made, sizes)


def tokenise(task: Tokenise, work: Folder, key: str, sizes: dict[str, int], actors: int, quiet: bool = False) -> Output:
    """The output `documents` under the work folder: rows of DOCUMENTS for every shard; `key` is that of the docids."""
    output = Output.at(work, "documents", key_of("documents", 1, key, task.fmt.fingerprint))
    if output.done() is None:
        one_core = {"num_cpus": 1, "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}}
        map_shards(task.docids, [(task, output)], Tokeniser, {}, one_core, actors, sizes.__getitem__, quiet)
        output.finish(sum(sizes.values()))
    return output


def trie_on_cluster(
    documents: Output, sizes: dict[str, int], docids: pa.ChunkedArray, end: int
) -> tuple[Trie, NDArray[np.int64]]:
    """As Trie.build(docids, end), the sort done by the cluster; `docids` are the column "tokens" of `documents`.

    This process holds the sorted keys (8 bytes for 4 tokens of 16 bits), a number for each, and what the trie takes.
    """
    longest = pc.max(pc.list_value_length(docids)).as_py()
    largest = max(end, *(pc.max(chunk.flatten()).as_py() or 0 for chunk in docids.chunks))
    keys, order = sorted_keys(documents, sizes, end, min(longest, KEY), largest.bit_length())
    token_type = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)
    return Trie.of_arrays(sorted_arrays(keys, order, token_type, end, beyond_key(docids, end)))


def sorted_keys(
    documents: Output, sizes: dict[str, int], end: int, columns: int, bits: int
) -> tuple[Keys, NDArray[np.int64]]:
    """The first `columns` tokens of every docid in order, and the row of each; equal ones in the order of their rows.

    Ray Data's sort: it draws a sample, deals the keys into ranges, and sorts each range in a task of its own.
    Raises ValueError for an empty docid, and a docid that holds `end`.
    """
    import ray

    names = [f"word{number}" for number in range(len(Keys.of(np.zeros((1, columns), np.uint8), bits).words))]
    firsts = np.cumsum([0, *(sizes[shard] for shard in sorted(sizes))])
    shards = [{"shard": shard, "row": int(row)} for shard, row in zip(sorted(sizes), firsts[:-1], strict=True)]

    def pack(batch: dict[str, NDArray[Any]]) -> Iterator[pa.Table]:
        for shard, first in zip(batch["shard"], batch["row"], strict=True):
            rows = docid_rows(documents.folder.read_table(str(shard), ["tokens"])["tokens"], end, columns)
            more = np.full((len(rows), columns - rows.shape[1]), end, dtype=rows.dtype)
            words = Keys.of(np.concatenate([rows, more], axis=1), bits).words
            yield pa.table([*words, np.arange(first, first + len(rows))], [*names, "row"])

    count = int(firsts[-1])
    keys = Keys([np.empty(count, dtype=np.uint64) for _ in names], bits, columns)
    order, start = np.empty(count, dtype=np.int64), 0
    with _in_order(quiet_ray_data()):
        packed = ray.data.from_items(shards, override_num_blocks=-(-count // CHUNK)).map_batches(pack, batch_size=None)
        for part in packed.sort([*names, "row"]).iter_batches(batch_size=None, batch_format="pyarrow"):
            for into, name in zip([*keys.words, order], [*names, "row"], strict=True):
                into[start : start + len(part)] = part[name].to_numpy()
            start += len(part)
    return keys, order


@contextmanager
def _in_order(context: DataContext) -> Iterator[None]:
    """Ray Data gives blocks in their order until the block ends."""
    options: Any = context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before

"""A trie too large to be held twice, and how much of it a process holds."""

from __future__ import annotations

from pathlib import Path


def large_index(folder: Path, model: Path, megabytes: int) -> Path:
    """An index whose trie takes so many megabytes: pairs of docids that part only at their thousandth token."""
    import numpy as np
    import pyarrow as pa

    from zerogr_ray.index.bundle import DOCUMENTS, write_index
    from zerogr_ray.models import load_format

    fmt, depth = load_format(model), 1000
    pairs = megabytes * 1_000_000 // (6 * depth)  # a node has a 16-bit token and a 32-bit first child
    number = np.arange(2 * pairs) // 2
    rows = np.full((2 * pairs, depth), 50, dtype=np.uint32)
    for place in range(3):
        rows[:, place] = 20 + number // 200**place % 200
    rows[:, -1] = 20 + np.arange(2 * pairs) % 2
    tokens = pa.ListArray.from_arrays(np.arange(0, rows.size + 1, depth, dtype=np.int32), rows.ravel())
    docnos = [f"d{i}" for i in range(2 * pairs)]
    table = pa.table([docnos, docnos, tokens, docnos], schema=DOCUMENTS)
    facts = {"instruction": "Retrieve.", "prompt_format": fmt.fingerprint, "key": "large", "model": {}}
    write_index(folder / "index", table, fmt.end, model, facts)
    return folder / "index"


def held_of_trie(pid: int) -> dict[str, int]:
    """Bytes: the process's share of the object store and of mapped trie files, and its largest private mapping."""
    found, private, path = 0, 0, ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {"pss": 0, "private": 0}
    for line in lines:
        name, *rest = line.split()
        if not name.endswith(":"):
            path = rest[4] if len(rest) > 4 else ""
        elif name == "Pss:" and ("plasma" in path or "/trie/" in path):
            found += int(rest[0]) * 1024
        elif name == "Anonymous:":
            private = max(private, int(rest[0]) * 1024)
    return {"pss": found, "private": private}

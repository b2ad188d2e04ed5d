"""Does `zerogr plan` foresee what a build takes? Calibrate on a few documents, predict ten times as many, build them.

The corpus is this Python's own documentation, the settings are the demo's with one document a shard. Every build is a
process of its own. Prints JSON: predicted and measured seconds of every stage. FOLDER keeps the calibration, which is
used again, so that the two halves can be run apart. On a machine that others use as well, bind it to one core: where
two threads wait for each other and one of them has lost its core, everything takes ten times as long, now and then.

    taskset -c 1 python -m benchmarks.plan_check FOLDER --only-calibrate
    taskset -c 1 python -m benchmarks.plan_check FOLDER --out benchmarks/results/plan_check.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from zerogr_ray.demo.collection import INSTRUCTION
from zerogr_ray.demo.stdlib import stdlib_documents

FEW, TIMES = 4, 10
SETTINGS = ["--config", str(files("zerogr_ray.demo") / "run.toml"), "--set", "corpus.shard_rows=1"]
SETTINGS += ["--set", "calibration.texts=2", "--set", f"instruction={json.dumps(INSTRUCTION)}"]
WITHIN = 0.25


def main() -> None:
    """Run what is missing and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only-calibrate", action="store_true")
    parser.add_argument("--beside", default="not said", help="what else ran on the machine, for the record")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    calibration = folder / "calibration.json"
    if not calibration.exists():
        corpus, load = write(folder / "all.jsonl"), os.getloadavg()
        zerogr("plan", corpus, "--calibrate", calibration, "--documents", FEW, *SETTINGS)
        (folder / "load.json").write_text(json.dumps([load, os.getloadavg()]))
    if args.only_calibrate:
        return
    result = check(folder, calibration) | {"beside": args.beside}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def check(folder: Path, calibration: Path) -> dict[str, Any]:
    """Predict, build, compare."""
    corpus = write(folder / "target.jsonl", FEW * TIMES)
    plan = zerogr("plan", corpus, "--calibration", calibration, *SETTINGS, "--json")
    for old in (folder / "index", folder / "index.work"):
        shutil.rmtree(old, ignore_errors=True)
    before, began = os.getloadavg(), time.monotonic()
    report = zerogr("index", corpus, folder / "index", *SETTINGS, "--json", "--quiet")
    wall, seconds = time.monotonic() - began, report["seconds"]
    predicted: dict[str, float] = {}
    for row in plan["stages"]:
        name = {"docids": "docids + queries", "queries": "docids + queries"}.get(row["stage"], row["stage"])
        predicted[name] = predicted.get(name, 0.0) + row["seconds"]
    stages = {
        name: {
            "predicted": round(predicted.get(name, 0.0), 1),
            "measured": round(seconds.get(name, 0.0), 1),
            "error": round(predicted.get(name, 0.0) / seconds[name] - 1, 3) if seconds.get(name) else None,
        }
        for name in [*predicted, *(seconds.keys() - predicted.keys())]
    }
    measured = sum(seconds.values())
    error = plan["total"]["seconds"] / measured - 1
    long = {name: row for name, row in stages.items() if row["measured"] >= 0.1 * measured}
    return {
        "documents": {"calibrated": FEW, "predicted": FEW * TIMES},
        "hardware": json.loads(calibration.read_text())["hardware"],
        "stages": stages,
        "total": {
            "predicted": round(plan["total"]["seconds"], 1),
            "measured": round(measured, 1),
            "error": round(error, 3),
        },
        "process_seconds": round(wall, 1),
        "within": WITHIN,
        "total_within": abs(error) <= WITHIN,
        "stages_of_a_tenth_or_more_within": all(abs(row["error"]) <= WITHIN for row in long.values()),
        "load": {"calibration": json.loads((folder / "load.json").read_text()), "build": [before, os.getloadavg()]},
        "speeds": plan["speeds"],
        "spent": report["spent"],
    }


def write(path: Path, most: int | None = None) -> Path:
    """The documentation, or `most` documents spread over it, as jsonl."""
    found = stdlib_documents()
    chosen = found if most is None else [found[i * len(found) // most] for i in range(most)]
    path.write_text("".join(json.dumps({"_id": d.docno} | asdict(d)) + "\n" for d in chosen))
    return path


def zerogr(*arguments: Any) -> Any:
    """Run the command as a process; its JSON, if it prints any."""
    command = [sys.executable, "-m", "zerogr_ray.cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"zerogr {arguments[0]} ended with status {done.returncode}")
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


if __name__ == "__main__":
    main()

"""Parallel starts on a store that is not there yet: ``python -m benchmarks.cold_store --out benchmarks/cold_store.md``.

In each round eight processes begin at the same moment, in one empty folder or each in one of its own, with a cell each;
four of them share a network that is not trained yet, the other four another one. A round is good if all eight succeed,
every cell is complete exactly once, and there are two trainings. The processes are forked from one that has imported
everything, so that they meet in the store at the same moment.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pandas as pd

from analysis.store import load_runs
from pipelines import attack
from pipelines.cli import launch

WORKERS = 8
CELLS = [(bits, name, seed) for bits in ("FP", "1") for name in ("fgsm", "jsma") for seed in (0, 1)]
QUICK = ["training.epochs=1", "+training.steps_per_epoch=3", "n=5", "trainer.threads=1", "trainer.accelerator=cpu"]


def run_cell(folder: Path, uri: str, cell: tuple[str, str, int], ready: Barrier) -> None:
    bits, name, seed = cell
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    asked = [f"bits={bits}", f"attack={name}", f"seed={seed}", f"tracking.uri={uri}"]
    sys.argv = [f"pipelines.{attack.KIND}", *asked, *QUICK]
    said = io.StringIO()
    ready.wait()
    with redirect_stderr(said):
        status = launch("attack")
    if status:
        print(said.getvalue(), flush=True)
    os._exit(status)


def one_round(folders: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        uri = f"sqlite:///{Path(place) / 'mlflow.db'}"
        context = multiprocessing.get_context("fork")
        ready = context.Barrier(WORKERS)
        processes = [
            context.Process(target=run_cell, args=(Path(place) / str(number % folders), uri, cell, ready))
            for number, cell in enumerate(CELLS)
        ]
        started = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        runs = load_runs("attack", uri)
        complete = Counter(runs["fingerprint"]) if len(runs) else Counter()
        return {
            "folders": folders,
            "succeeded": sum(process.exitcode == 0 for process in processes),
            "cells complete": len(complete),
            "complete more than once": sum(count > 1 for count in complete.values()),
            "trainings": len(load_runs("train", uri)),
            "seconds": f"{time.perf_counter() - started:.0f}",
        }


def is_good(result: dict[str, object]) -> bool:
    expected = {"succeeded": WORKERS, "cells complete": WORKERS, "complete more than once": 0, "trainings": 2}
    return all(result[name] == value for name, value in expected.items())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    rows = []
    for number in range(1, chosen.rounds + 1):
        rows.append({"round": number, **one_round(folders=1 if number % 2 else WORKERS)})
        print(rows[-1], flush=True)
    good = sum(map(is_good, rows))
    table = pd.DataFrame(rows).to_markdown(index=False)
    text = f"# {WORKERS} parallel starts on a cold SQLite store\n\n{good} of {len(rows)} rounds good.\n\n{table}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()

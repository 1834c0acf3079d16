"""Cells per hour by launcher: ``python -m benchmarks.launchers --out benchmarks/launchers.md``.

The same sweep of attacks on networks that are trained before, launched one cell after the other and by 2 and 4
workers of joblib, each time as a new process that redoes every cell. The launchers take turns, `--repeats` times, so
that what else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import pandas as pd

from pipelines.environment import environment_tags

NETWORKS = ["bits=FP,1,2,4", "training.epochs=2"]
LAUNCHERS = {
    "serial": [],
    "joblib, 2 workers": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "joblib, 4 workers": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"],
}


def sweep(folder: Path, pipeline: str, *overrides: str) -> float:
    """Seconds of a sweep, from the start of its process to the end."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "QNN_SWEEP"))}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"pipelines.{pipeline}", "-m", *overrides],
        cwd=folder,
        env=kept,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--attacks", default="fgsm,jsma,uap,cw,boundary")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--n", type=int, default=200)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    seeds = ",".join(map(str, range(chosen.seeds)))
    cells = 4 * len(chosen.attacks.split(",")) * chosen.seeds
    taken: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory() as folder:
        sweep(Path(folder), "train", *NETWORKS)
        asked = [f"attack={chosen.attacks}", f"seed={seeds}", f"n={chosen.n}", "force=true"]
        for name, launcher in list(LAUNCHERS.items()) * chosen.repeats:
            taken[name].append(sweep(Path(folder), "attack", *NETWORKS, *asked, *launcher))
    rows = [
        {
            "launcher": name,
            "seconds": ", ".join(f"{s:.0f}" for s in times),
            "cells per hour": f"{3600 * cells * len(times) / sum(times):.0f}",
            "of serial": f"{sum(taken['serial']) / sum(times):.2f} ×",
        }
        for name, times in taken.items()
    ]
    tags = environment_tags()
    about = (
        f"{cells} cells ({chosen.attacks}, n = {chosen.n}) of Mnist A on the digits; {date.today()},"
        f" {tags['hardware']}, {tags['versions']}; load average at the end {os.getloadavg()[0]:.1f}."
    )
    text = f"# Cells per hour by launcher\n\n{about}\n\n{pd.DataFrame(rows).to_markdown(index=False)}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()

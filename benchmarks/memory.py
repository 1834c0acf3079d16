"""Peak memory of each attack on 1,000 images: ``python -m benchmarks.memory FOLDER... --out benchmarks/memory.md``.

Each attack runs in a process of its own. Few steps are made: the largest tensors exist from the first on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from pathlib import Path

import pandas as pd
import torch

import attacks
from benchmarks.attacks import SETTINGS, correct_images, quiet
from qnn.checkpoint import read_description, rebuild
from qnn.freezing import freeze

SHORT: dict[str, dict[str, float]] = {
    "jsma": {"gamma": 0.01},
    "carlini_wagner": {"max_iter": 2, "binary_search_steps": 2},
    "boundary": {"max_iter": 2},
    "uap": {"max_iter": 1},
}


def peak(folder: Path, attack: str | None, root: str, n: int) -> float:
    """GiB of resident memory at most, the libraries included; without an attack: of what is there before it."""
    quiet()
    torch.set_num_threads(4)
    data = read_description(folder)["data"]
    net = freeze(rebuild(folder))
    x, y = correct_images(net, data, root, n)
    if attack is not None:
        getattr(attacks, attack)(net, x, y, **{**SETTINGS[data][attack], **SHORT.get(attack, {})})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("networks", nargs="+", type=Path)
    options.add_argument("--data-root", default="data")
    options.add_argument("--n", type=int, default=1000)
    options.add_argument("--out", type=Path, default=Path("benchmarks/memory.md"))
    chosen = options.parse_args()
    rows = []
    for folder in chosen.networks:
        about = read_description(folder)
        row: dict[str, str] = {"network": f"{about['model']} {about['bits']}"}
        for attack in (None, *SETTINGS[about["data"]]):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                used = pool.apply(peak, (folder, attack, chosen.data_root, chosen.n))
            row[attack or "before the attack"] = f"{used:.2f}"
        rows.append(row)
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    chosen.out.write_text(f"# Peak resident memory, GiB, {chosen.n:,} images\n\n{table}\n")
    print(chosen.out.read_text())


if __name__ == "__main__":
    main()

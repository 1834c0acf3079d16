"""What freezing changes: ``python -m benchmarks.freezing FOLDER... --out benchmarks/freezing.md``.

For each stored network, on the whole test set: predictions that differ between the network in eval mode
and its frozen copy, the largest difference of a logit, and the time of a bare forward pass of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.attacks import typical
from qnn import data as datasets
from qnn.checkpoint import read_description, rebuild
from qnn.evaluation import predict
from qnn.freezing import freeze


def compare(folder: Path, root: str) -> dict[str, object]:
    about = read_description(folder)
    test = getattr(datasets, about["data"])(root=root).test
    images = test.pixels(torch.arange(len(test)))
    net = rebuild(folder)
    frozen = freeze(net)
    before, after = predict(net, images), predict(frozen, images)
    return {
        "network": f"{about['model']} {about['bits']}",
        "images": len(images),
        "predictions differing": int((before.argmax(1) != after.argmax(1)).sum()),
        "largest logit difference": f"{float((before - after).abs().max()):.2g}",
        "eval, µs per image": f"{forward_us(net, images[:64]):.0f}",
        "frozen, µs per image": f"{forward_us(frozen, images[:64]):.0f}",
    }


def forward_us(net: nn.Module, block: torch.Tensor) -> float:
    with torch.no_grad():
        return typical(lambda: net(block)) / len(block) * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("networks", nargs="+", type=Path)
    options.add_argument("--data-root", default="data")
    options.add_argument("--out", type=Path, default=Path("benchmarks/freezing.md"))
    chosen = options.parse_args()
    table = pd.DataFrame([compare(folder, chosen.data_root) for folder in chosen.networks])
    text = f"# Frozen against eval mode, {torch.get_num_threads()} threads, blocks of 64\n\n"
    chosen.out.write_text(text + table.to_markdown(index=False, disable_numparse=True) + "\n")
    print(chosen.out.read_text())


if __name__ == "__main__":
    main()

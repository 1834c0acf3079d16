"""What keeping freed memory saves: ``python -m benchmarks.allocator --out benchmarks/allocator.md``.

A training step and an input gradient of ResNet-20 at 4 bits on one core, in processes that keep freed memory and in
processes that do not, in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.attacks import quiet
from pipelines.workers import keep_freed_memory
from qnn.freezing import freeze
from qnn.models import ResNet
from qnn.quantizers import DoReFa

BATCH = 128


def training_step(net: nn.Module) -> Callable[[], object]:
    net = net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def input_gradient(net: nn.Module) -> Callable[[], object]:
    frozen = freeze(net)
    images, labels = torch.rand(BATCH, 3, 32, 32, requires_grad=True), torch.randint(10, (BATCH,))
    return lambda: torch.autograd.grad(F.cross_entropy(frozen(images), labels), images)


WORK = {"training step": training_step, "input gradient": input_gradient}


def timed(what: str, kept: bool, repeats: int) -> tuple[float, float, float]:
    """Median ms of one call, page faults per call, and GiB of resident memory at most."""
    quiet()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kept:
        keep_freed_memory()
    work = WORK[what](ResNet(DoReFa(4), n=3))
    for _ in range(3):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * median(seconds), (used.ru_minflt - before) / repeats, used.ru_maxrss / 2**20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--out", type=Path, default=Path("benchmarks/allocator.md"))
    chosen = options.parse_args()
    rows = []
    for turn in range(chosen.turns):
        for what in WORK:
            for kept in (False, True):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    ms, faults, gib = pool.apply(timed, (what, kept, chosen.repeats))
                figures = {"ms": f"{ms:.0f}", "page faults": f"{faults:,.0f}", "peak, GiB": f"{gib:.2f}"}
                rows.append(
                    {"turn": turn + 1, "work": what, "freed memory": "kept" if kept else "given back", **figures}
                )
    table = pd.DataFrame(rows).sort_values(["work", "turn"], kind="stable").to_markdown(index=False)
    chosen.out.write_text(f"# ResNet-20 at 4 bits, {BATCH} images, one core: freed memory kept or not\n\n{table}\n")
    print(chosen.out.read_text())


if __name__ == "__main__":
    main()

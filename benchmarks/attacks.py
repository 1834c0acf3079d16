"""Time and strength of every attack: stock ART, ART behind our estimator, Foolbox, and native.

    python -m benchmarks.attacks FOLDER... --out benchmarks/attacks.md

Each folder holds a stored network (the `network` artifact of a training run). All contenders attack the
same images one after the other in this process. Stock ART runs on the network as it was trained, on one
core and on all of them, and its better time counts; the others attack the frozen network on all cores.
Every row goes to `OUT.csv` as soon as it is measured, and an interrupted run goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import attacks
import attacks.art
from attacks.art.estimator import PyTorchClassifier, seeded
from attacks.evaluation import Evaluator
from attacks.losses import logit
from qnn import data as datasets
from qnn.checkpoint import read_description, rebuild
from qnn.evaluation import predict
from qnn.freezing import freeze

SEED = 0
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        "fgsm": {"eps": 0.25},
        "jsma": {"theta": 1.0, "gamma": 0.10},
        "uap": {"eps": 0.6, "attacker_eps": 0.1},
        "carlini_wagner": {"confidence": 5, "max_iter": 25, "binary_search_steps": 20},
        "boundary": {"max_iter": 15},
    },
    "cifar10": {
        "fgsm": {"eps": 0.05},
        "jsma": {"theta": 0.3, "gamma": 0.05},
        "uap": {"eps": 0.1, "attacker_eps": 0.01},
        "carlini_wagner": {"confidence": 5, "max_iter": 25, "binary_search_steps": 20},
        "boundary": {"max_iter": 12},
    },
}
"""The seed paper's Table 5."""

IMAGES = {
    "mnist": {"fgsm": 1000, "jsma": 100, "uap": 500, "carlini_wagner": 20, "boundary": 40},
    "cifar10": {"fgsm": 200, "jsma": 16, "uap": 100, "carlini_wagner": 2, "boundary": 8},
}
"""Images for the slow contenders; native runs on these too, for strength, and on `NATIVE_IMAGES` for time."""

NATIVE_IMAGES = {
    "mnist": {"fgsm": 1000, "jsma": 1000, "uap": 500, "carlini_wagner": 1000, "boundary": 1000},
    "cifar10": {"fgsm": 1000, "jsma": 256, "uap": 100, "carlini_wagner": 80, "boundary": 256},
}


@dataclass(frozen=True)
class Run:
    """What one contender did: seconds, adversarial images, evaluations where they are counted."""

    seconds: float
    x_adv: Tensor
    threads: int
    forwards: int = 0
    backwards: int = 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("networks", nargs="+", type=Path)
    options.add_argument("--data-root", default="data")
    options.add_argument("--out", type=Path, default=Path("benchmarks/attacks.md"))
    options.add_argument("--only", nargs="*", help="attacks to measure (default: all)")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="cores used at most")
    options.add_argument("--native-only", action="store_true", help="time, evaluations and floor of native alone")
    chosen = options.parse_args()
    quiet()
    log = chosen.out.with_suffix(".csv")
    rows: list[Any] = pd.read_csv(log).to_dict("records") if log.exists() else []
    done = {(row["network"], row["attack"]) for row in rows}
    for folder in chosen.networks:
        about = read_description(folder)
        name = f"{about['model']} {about['bits']}"
        for attack in chosen.only or SETTINGS[about["data"]]:
            if (name, attack) not in done:
                rows.append(measure(folder, attack, name, chosen.data_root, chosen.threads, chosen.native_only))
                pd.DataFrame(rows).to_csv(log, index=False)
                print(json.dumps(rows[-1]), flush=True)
    chosen.out.write_text(report(pd.DataFrame(rows), chosen.threads))
    print(chosen.out.read_text())


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("art").setLevel(logging.ERROR)


def measure(folder: Path, attack: str, name: str, root: str, threads: int, alone: bool) -> dict[str, Any]:
    """One row of the table."""
    about = read_description(folder)
    data, settings = about["data"], SETTINGS[about["data"]][attack]
    net = rebuild(folder)
    frozen = freeze(net)
    torch.set_num_threads(threads)
    few, many = IMAGES[data][attack], NATIVE_IMAGES[data][attack]
    x, y = correct_images(frozen, data, root, max(few, many))
    row = {"network": name, "attack": attack, "n": few, **native_cost(frozen, x[:many], y[:many], attack, settings)}
    x, y = x[:few], y[:few]
    contenders = {"native": native_run(frozen, x, y, attack, settings)}
    if not alone:
        stock = (stock_run(net, x, y, attack, settings, cores) for cores in sorted({1, threads}))
        contenders["stock"] = min(stock, key=lambda run: run.seconds)
        contenders["art"] = art_run(frozen, x, y, attack, settings, threads)
        if found := foolbox_run(frozen, x, y, attack, settings, threads):
            contenders["foolbox"] = found
    for contender, run in contenders.items():
        row.setdefault(f"{contender}_ms", run.seconds / few * 1e3)
        row |= strength(contender, net, x, y, run.x_adv)
    if not alone:
        row |= {"stock_threads": contenders["stock"].threads, "speedup": row["stock_ms"] / row["native_ms"]}
    return row


def native_cost(net: nn.Module, x: Tensor, y: Tensor, attack: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Time, evaluations and distance from the floor."""
    before = bare_costs(net, x)
    repeats = 3 if attack == "fgsm" else 1
    run = min((native_run(net, x, y, attack, settings) for _ in range(repeats)), key=lambda run: run.seconds)
    # machines drift: the cost of an evaluation is taken before and after
    forward, backward = (statistics.mean(pair) for pair in zip(before, bare_costs(net, x), strict=True))
    floor = run.forwards * forward + run.backwards * backward
    return {
        "native_n": len(x),
        "native_ms": run.seconds / len(x) * 1e3,
        "forwards": run.forwards / len(x),
        "backwards": run.backwards / len(x),
        "forward_us": forward * 1e6,
        "backward_us": backward * 1e6,
        "floor_ms": floor / len(x) * 1e3,
        "over_floor": run.seconds / floor,
    }


def correct_images(net: nn.Module, data: str, root: str, n: int) -> tuple[Tensor, Tensor]:
    test = getattr(datasets, data)(root=root).test
    chosen = attacks.select_correct(lambda images: predict(net, images), test.pixels, test.labels, n=n, seed=SEED)
    return test.pixels(chosen.indices), chosen.labels


def native_run(net: nn.Module, x: Tensor, y: Tensor, attack: str, settings: dict[str, Any]) -> Run:
    extra = {"art_defects": True} if attack == "carlini_wagner" else {}
    started = time.perf_counter()
    result = getattr(attacks, attack)(net, x, y, **settings, **extra)
    return Run(time.perf_counter() - started, result.x_adv, torch.get_num_threads(), result.forwards, result.backwards)


def art_run(net: nn.Module, x: Tensor, y: Tensor, attack: str, settings: dict[str, Any], threads: int) -> Run:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    result = getattr(attacks.art, attack)(net, x, y, **settings)
    return Run(time.perf_counter() - started, result.x_adv, threads, result.forwards, result.backwards)


class _Float32Classifier(PyTorchClassifier):
    """ART's own classifier; its Boundary attack fails under NumPy 2 unless float64 is cast."""

    def predict(self, x, *args, **kwargs):
        return super().predict(x.astype(np.float32), *args, **kwargs)


def stock_run(net: nn.Module, x: Tensor, y: Tensor, attack: str, settings: dict[str, Any], threads: int) -> Run:
    """ART as its manual has it, all images in one batch where the attack has batches."""
    from art.attacks import evasion

    estimator = _Float32Classifier(
        net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    batch = {"batch_size": len(x), "verbose": False}
    build: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: evasion.FastGradientMethod(estimator, batch_size=len(x), **settings),
        "jsma": lambda: evasion.SaliencyMapMethod(estimator, **settings, **batch),
        "uap": lambda: evasion.UniversalPerturbation(
            estimator, attacker="fgsm", eps=settings["eps"], attacker_params={"eps": settings["attacker_eps"]}, **batch
        ),
        "carlini_wagner": lambda: evasion.CarliniL2Method(estimator, **settings, **batch),
        "boundary": lambda: evasion.BoundaryAttack(estimator, targeted=False, **settings, **batch),
    }
    torch.set_num_threads(threads)
    with seeded(SEED):
        started = time.perf_counter()
        x_adv = build[attack]().generate(x.numpy(), y=None if attack == "jsma" else y.numpy())
    return Run(time.perf_counter() - started, torch.from_numpy(np.asarray(x_adv, dtype=np.float32)), threads)


def foolbox_run(
    net: nn.Module, x: Tensor, y: Tensor, attack: str, settings: dict[str, Any], threads: int
) -> Run | None:
    """Foolbox's attacks of the same name; None where it has none or is not installed.

    Its Boundary attack makes one or two queries a step instead of about forty, and gets forty times the
    steps; its Carlini-Wagner descends with Adam, with as many steps as ART's.
    """
    try:
        import foolbox
    except ImportError:
        return None
    torch.set_num_threads(threads)
    chosen: Any
    if attack == "carlini_wagner":
        chosen = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=settings["binary_search_steps"],
            steps=settings["max_iter"],
            stepsize=0.01,
            confidence=settings["confidence"],
            initial_const=0.01,
        )
    elif attack == "boundary":
        chosen = foolbox.attacks.BoundaryAttack(steps=40 * settings["max_iter"])
    else:
        return None
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    started = time.perf_counter()
    _, x_adv, _ = chosen(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=None)
    return Run(time.perf_counter() - started, x_adv.detach(), threads)


def strength(contender: str, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> dict[str, float]:
    """Adversarial accuracy and mean L2 over successes, both on the network as it was trained."""
    evaded = predict(net, x_adv).argmax(1) != y
    l2 = (x_adv - x).flatten(1).norm(dim=1)[evaded].mean()
    return {f"{contender}_accuracy": 1 - float(evaded.float().mean()), f"{contender}_l2": float(l2)}


def bare_costs(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Seconds per image of a forward pass, and of a backward pass on top of one, in the attacks' own blocks."""
    with Evaluator(net, x) as network:
        block = x[: network.block]
        classes = torch.zeros(len(block), dtype=torch.int64)
        forward = typical(lambda: network.logits(block)) / len(block)
        both = typical(lambda: network.gradients(block, logit(classes))) / len(block)
    return forward, both - forward


def typical(run: Callable[[], object], seconds: float = 2.0) -> float:
    """The median of the runs that fit into about `seconds`."""
    run()
    times: list[float] = []
    while sum(times) < seconds:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def report(rows: pd.DataFrame, threads: int) -> str:
    """The Markdown table with what it was measured on."""

    def strength_of(row: pd.Series, contender: str) -> str:
        return f"{row[f'{contender}_accuracy']:.3f} / {row[f'{contender}_l2']:.2f}"

    def cell(row: pd.Series, contender: str) -> str:
        time_ = row.get(f"{contender}_ms", np.nan)
        return "" if pd.isna(time_) else f"{time_:.3g} ({strength_of(row, contender)})"

    columns: dict[str, Any] = {"network": rows["network"], "attack": rows["attack"], "n": rows["n"]}
    if "stock_ms" in rows:
        columns["stock ART"] = rows.apply(lambda row: f"{cell(row, 'stock')}, {row['stock_threads']:.0f} thr.", axis=1)
        columns["ART, our estimator"] = rows.apply(lambda row: cell(row, "art"), axis=1)
    if "foolbox_ms" in rows:
        columns["Foolbox"] = rows.apply(lambda row: cell(row, "foolbox"), axis=1)
    columns["native"] = rows.apply(lambda row: cell(row, "native"), axis=1)
    columns["native n"] = rows["native_n"]
    if "speedup" in rows:
        columns["× stock"] = rows["speedup"].map("{:.1f}".format)
    columns["forwards"] = rows["forwards"].map("{:.1f}".format)
    columns["backwards"] = rows["backwards"].map("{:.1f}".format)
    if "over_floor" in rows:
        columns["× floor"] = rows["over_floor"].map("{:.2f}".format)
    table = pd.DataFrame(columns)
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("torch", "adversarial-robustness-toolbox", "foolbox", "numpy")
        if _installed(name)
    )
    return "\n".join(
        [
            f"# Attacks: time per image on {threads} core{'s' * (threads > 1)}",
            "",
            f"{_processor()}, {threads} threads at most, Python {platform.python_version()}, {versions}.",
            "",
            "Each cell: milliseconds per image (adversarial accuracy / mean L2 of successes on the same first n",
            "images). Native is timed on its own, larger n, as in a sweep. Forwards and backwards are evaluations per",
            "image; the floor is their number times the median time of a bare evaluation in blocks of the same size.",
            "The seed paper's hyper-parameters (Table 5).",
            "",
            table.to_markdown(index=False, disable_numparse=True),
            "",
        ]
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

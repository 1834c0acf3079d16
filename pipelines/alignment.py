"""How alike the input gradients of one network are at different widths: ``python -m pipelines.alignment data=cifar10``.

A grid with ``-m``, as in ``defence=none,qadt_r``. The networks are trained first where needed, and with ``patched=FP``
the images are attacked first at that width.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from attacks.alignment import input_gradients
from pipelines import attack, networks, settings, train
from pipelines.cells import Done, leaf, process
from pipelines.errors import InputError
from pipelines.evaluate import read_examples
from pipelines.fingerprints import fingerprint as fingerprint_of
from pipelines.progress import note
from pipelines.results import Result
from pipelines.tracking import Tracker
from qnn.data import ImageData
from qnn.freezing import freeze
from qnn.precision import Precision
from qnn.similarity import gradient_similarity

KIND = "alignment"
TABLE = "alignment.json"
MEASURES = ("cosine", "edge_iou", "hog_cosine", "hog_cosine_centred")

_OWN = {"compare", "patched", "cell"}
_BLOCK = 128
_NORMAL_95 = 1.959964


def check(cfg: DictConfig) -> None:
    for one in networks.compared(cfg).values():
        networks.check(one)
    images = len(settings.load_data(cfg).test)
    settings.check_whole_number("n", cfg.n, least=2, most=images)
    settings.check_whole_number("seed", cfg.seed)
    settings.check_whole_number("cell", cfg.cell, least=1, most=min(settings.load_data(cfg).shape[1:]))
    if cfg.patched is not None:
        _check_patched(cfg)


def _check_patched(cfg: DictConfig) -> None:
    try:
        Precision.parse(cfg.patched)
    except ValueError as error:
        raise InputError(f"patched={cfg.patched}: {error}") from error
    if not cfg.attack.name.startswith("patch_"):
        raise InputError(f"attack={cfg.attack.name} makes no patches: use a patch attack, or patched=null")
    attack.check(_attack(cfg))


def identity(cfg: DictConfig) -> dict[str, Any]:
    data = settings.load_data(cfg)
    return {
        "kind": KIND,
        "networks": [networks.network_fingerprint(one, data) for one in networks.compared(cfg).values()],
        "data": data.digest,
        "n": cfg.n,
        "seed": cfg.seed,
        "cell": cfg.cell,
        **({} if cfg.patched is None else {"patched": fingerprint_of(attack.identity(_attack(cfg)))}),
    }


def label(cfg: DictConfig) -> str:
    images = "" if cfg.patched is None else f" on {cfg.attack.name} at {cfg.patched}"
    return f"gradient alignment of {train.compared_name(cfg)}{images}, seed {cfg.seed}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Compare the widths of one network and track it: one row per pair of widths and null."""
    data, device = settings.load_data(cfg), settings.device(cfg)
    found = {width: networks.obtain(one, data, tracker, parent) for width, one in networks.compared(cfg).items()}
    nets = {width: freeze(network.net.to(device), compile=cfg.trainer.compile) for width, network in found.items()}
    attacked = None if cfg.patched is None else process(attack, _attack(cfg), tracker, parent)
    x, y = _clean(cfg, data) if attacked is None else _patched(attacked, tracker)
    params = {
        **({} if attacked is None else {**attacked.params, "patched": cfg.patched}),
        **train.parameters(cfg, data),
        "bits": " ".join(nets),
        "network": " ".join(network.description["fingerprint"] for network in found.values()),
        **{name: cfg[name] for name in ("seed", "n", "cell")},
    }
    about = f"{label(cfg)}: {len(x)} images of {data.name}; null rows: gradients of different images, and white noise."
    with leaf(
        cfg, tracker, label(cfg), kind=KIND, fingerprint=fingerprint, params=params, parent=parent, note=about
    ) as result:
        result.log_data(data, context=KIND)
        note(f"comparing {len(nets)} widths", of=label(cfg))
        started = time.perf_counter()
        table = alignment_table(nets, x.to(device), y.to(device), seed=cfg.seed, cell=cfg.cell)
        result.log_table(table, TABLE)
        measured = table[table["kind"] == "measured"]
        means = {f"mean_{name}": float(measured[name].mean()) for name in MEASURES}
        result.log_metrics({**means, "seconds": time.perf_counter() - started})
    return result


def _attack(cfg: DictConfig) -> DictConfig:
    """The config of the attack whose patched images are compared on."""
    return OmegaConf.merge(attack.within(cfg, own=_OWN), {"bits": cfg.patched})  # type: ignore[return-value]


def _clean(cfg: DictConfig, data: ImageData) -> tuple[Tensor, Tensor]:
    """Images and labels, whatever the network makes of them."""
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.n]
    return data.test.pixels(chosen), data.test.labels[chosen]


def _patched(attacked: Done, tracker: Tracker) -> tuple[Tensor, Tensor]:
    examples = read_examples(attacked.artifact(attack.EXAMPLES, tracker))
    return examples.x_adv, examples.labels


def alignment_table(
    nets: Mapping[str, nn.Module], x: Tensor, y: Tensor, *, seed: int = 0, cell: int = 4
) -> pd.DataFrame:
    """How alike the cross-entropy's input gradients are, for every pair of networks and two nulls.

    Columns: `pair`, the names of the two networks as in ``FP-2``; `kind`: ``measured`` (the gradients of the same
    image), ``shuffled`` (those of different images) or ``noise`` (white Gaussian noise of the same shape, in place of
    both); `n`, the images that have a gradient on both networks, the others being left out of all three rows; each of
    `MEASURES` (see `gradient_similarity`), a mean over the n images, with its 95 % interval `…_low`, `…_high`; and
    in measured rows `…_excess`, the mean over images of measured minus shuffled, with its interval too. Intervals
    are the normal approximation over images: they say nothing of other trainings of the networks. Where fewer than
    two images are left, n is 0 and every mean NaN.

    Args:
        nets: name, as ``FP`` or ``4``, to network; pairs are in the order of these.
        x, y: images (n, c, h, w) in [0, 1] and labels (n,), on the networks' device.
        seed: of the pairing of different images, and of the noise.
        cell: pixels along a cell of the histograms.

    Raises:
        ValueError: fewer than two networks or images, or `x` and `y` are not as above.
    """
    if len(nets) < 2 or len(x) < 2:
        raise ValueError(f"nothing to compare: {len(nets)} networks and {len(x)} images, of both at least 2 are needed")
    gradients = {name: input_gradients(net, x, y) for name, net in nets.items()}
    generator = torch.Generator().manual_seed(seed)
    return pd.DataFrame(
        {"pair": "-".join(pair), **row}
        for pair in combinations(nets, 2)
        for row in _rows(gradients[pair[0]], gradients[pair[1]], generator, cell)
    )


def _rows(a: Tensor, b: Tensor, generator: torch.Generator, cell: int) -> Iterator[dict[str, Any]]:
    measured = _similarities(a, b, cell)
    known = measured["cosine"].isfinite()
    known &= known.sum() > 1  # a single image has no other to be held against
    measured = {name: values[known] for name, values in measured.items()}
    a, b = a[known], b[known]
    shuffled = _similarities(a, b[_other_images(len(b), generator)], cell)
    noise = [torch.randn(a.shape, generator=generator) for _ in range(2)]
    unrelated = _similarities(noise[0], noise[1], cell)
    excess = {f"{name}_excess": measured[name] - shuffled[name] for name in MEASURES}
    for kind, found in (("measured", {**measured, **excess}), ("shuffled", shuffled), ("noise", unrelated)):
        means = [_mean(name, values) for name, values in found.items()]
        yield {"kind": kind, "n": len(a), **{key: value for mean in means for key, value in mean.items()}}


def _similarities(a: Tensor, b: Tensor, cell: int) -> dict[str, Tensor]:
    """Each measure (n,) as float64 on the CPU."""
    blocks = zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)
    parts = [gradient_similarity(of_a, of_b, cell) for of_a, of_b in blocks]
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in MEASURES}


def _other_images(n: int, generator: torch.Generator) -> Tensor:
    """For each of n images another one, each used once."""
    order = torch.randperm(n, generator=generator)
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)
    return partners


def _mean(name: str, values: Tensor) -> dict[str, float]:
    """The mean with its 95 % interval; NaN where there are too few values for it."""
    n = len(values)
    mean = float(values.mean())
    half = _NORMAL_95 * float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("alignment"))

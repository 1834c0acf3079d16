"""Where on an image a patch does most harm, at different widths: ``python -m pipelines.sensitivity data=cifar10``.

The patch is that of a universal patch attack (`pipelines.attack`, run first where needed) on each width; noise of
the same size is the control, which tells what covering the place does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from attacks.sensitivity import compare_maps, sensitivity_map
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

KIND = "sensitivity"
TABLE = "sensitivity.json"
AGREEMENT = "agreement.json"
_OWN = {"compare", "images", "stride"}


def check(cfg: DictConfig) -> None:
    for one in _attacks(cfg).values():
        attack.check(one)
    makes_one = cfg.attack.get("universal", "craft" in cfg.attack)
    if not (cfg.attack.name.startswith("patch_") and makes_one) or settings.draws(cfg):
        raise InputError(
            f"attack={cfg.attack.name} makes no one patch for all images on a width of its own:"
            " use patch_lavan, patch_google, or another with attack.universal=true, and inference=fixed"
        )
    for name in ("images", "stride"):
        settings.check_whole_number(name, cfg[name], least=1)


def identity(cfg: DictConfig) -> dict[str, Any]:
    return {
        "kind": KIND,
        "attacks": [fingerprint_of(attack.identity(one)) for one in _attacks(cfg).values()],
        "images": cfg.images,
        "stride": cfg.stride,
    }


def label(cfg: DictConfig) -> str:
    return f"sensitivity of {train.compared_name(cfg)} to {cfg.attack.name}, seed {cfg.seed}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Map one patch per width and track it: one row per width, patch or noise, and place."""
    data = settings.load_data(cfg)
    configs = _attacks(cfg)
    attacked = {width: process(attack, one, tracker, parent) for width, one in configs.items()}
    params = {
        **next(iter(attacked.values())).params,
        "bits": " ".join(configs),
        **{name: cfg[name] for name in ("images", "stride")},
    }
    about = f"{label(cfg)}: success rate at each place, every {cfg.stride} pixels; noise of the same size as control."
    with leaf(
        cfg, tracker, label(cfg), kind=KIND, fingerprint=fingerprint, params=params, parent=parent, note=about
    ) as result:
        result.log_data(data, context=KIND)
        started = time.perf_counter()
        maps: dict[tuple[str, str], Tensor] = {}
        counts: dict[str, int] = {}
        for width, one in configs.items():
            note(f"mapping {width} bits", of=label(cfg))
            patch = _patch(tracker, attacked[width])
            noise = torch.rand(patch.shape, generator=torch.Generator().manual_seed(cfg.seed))
            net, x, y = _network_and_images(one, cfg.images, data, tracker, parent)
            counts[width] = len(x)
            for kind, laid in (("patch", patch), ("noise", noise)):
                laid, opacity = laid.to(x.device), cfg.attack.opacity
                maps[width, kind] = sensitivity_map(net, x, y, laid, stride=cfg.stride, opacity=opacity)
        result.log_table(_table(maps, counts, cfg.stride), TABLE)
        result.log_table(_agreement(maps), AGREEMENT)
        result.log_metrics({**_means(maps), "seconds": time.perf_counter() - started})
    return result


def _attacks(cfg: DictConfig) -> dict[str, DictConfig]:
    """The config of the attack at each width."""
    return {width: attack.within(one, own=_OWN) for width, one in networks.compared(cfg).items()}


def _patch(tracker: Tracker, attacked: Done) -> Tensor:
    patch = read_examples(attacked.artifact(attack.EXAMPLES, tracker)).patch
    if patch is None or patch.ndim != 3:
        raise InputError(f"run {attacked.run_id} holds no universal patch: redo it with pipelines.attack force=true")
    return patch


def _network_and_images(
    cfg: DictConfig, n: int, data: ImageData, tracker: Tracker, parent: str | None
) -> tuple[torch.nn.Module, Tensor, Tensor]:
    device = settings.device(cfg)
    net = freeze(networks.obtain(cfg, data, tracker, parent).net.to(device), compile=cfg.trainer.compile)
    chosen = networks.images_right(net, data.test, device, n=n, seed=cfg.seed, besides=attack.target_class(cfg))
    return net, data.test.pixels(chosen.indices).to(device), chosen.labels.to(device)


def _table(maps: dict[tuple[str, str], Tensor], counts: dict[str, int], stride: int) -> pd.DataFrame:
    """Upper left pixel of each place, and the success rate there among n images."""
    return pd.DataFrame(
        {
            "bits": bits,
            "kind": kind,
            "row": i * stride,
            "column": j * stride,
            "success_rate": rate,
            "n": counts[bits],
        }
        for (bits, kind), rates in maps.items()
        for i, row in enumerate(rates.tolist())
        for j, rate in enumerate(row)
    )


def _agreement(maps: dict[tuple[str, str], Tensor]) -> pd.DataFrame:
    """Each pair of widths: do they agree on which places are weak? `spearman` and `top_overlap` of patch and noise."""
    widths = list(dict.fromkeys(bits for bits, _ in maps))
    return pd.DataFrame(
        {"pair": f"{a}-{b}", "kind": kind, **compare_maps(maps[a, kind], maps[b, kind])}
        for i, a in enumerate(widths)
        for b in widths[i + 1 :]
        for kind in ("patch", "noise")
    )


def _means(maps: dict[tuple[str, str], Tensor]) -> dict[str, float]:
    return {f"mean_success_rate.{kind}.{bits}": float(rates.mean()) for (bits, kind), rates in maps.items()}


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("sensitivity"))

"""Attack networks: ``python -m pipelines.attack -m model=mnist_a bits=FP,1 attack=fgsm,cw seed=0,1``.

The network is trained first if the tracking store has none like it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from attacks import (
    AdversarialExamples,
    AttackResult,
    choose_targets,
    per_image_record,
    save_examples,
    summarise,
    visibility,
)
from attacks.parameters import accepted_parameters
from pipelines import networks, settings, train, victims
from pipelines.cells import leaf
from pipelines.errors import InputError
from pipelines.pictures import save_grid, save_patches, triptych
from pipelines.progress import note
from pipelines.results import Result
from pipelines.tracking import Tracker
from qnn.data import ImageData
from qnn.evaluation import predict

KIND = "attack"
_CRAFTING = {"craft": "attacked", "craft_n": 1, "universal": True}
EXAMPLES = "examples/adversarial.safetensors"
SNAPSHOTS = "examples/snapshots.safetensors"
TABLE = "per_image.json"
GRID = "images.png"
PATCHES = "patches.png"
PROGRESS = "progress.json"


def within(cfg: DictConfig, own: Collection[str]) -> DictConfig:
    """The config of the attack that another pipeline needs, without that pipeline's `own` settings.

    `force` redoes the cell that was asked for, not what it needs.
    """
    plain = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in own])
    plain.force = False
    return plain


def check(cfg: DictConfig) -> None:
    victims.check(cfg)
    settings.attack_parameters(cfg)
    settings.check_whole_number("n", cfg.n, least=1)
    settings.check_whole_number("seed", cfg.seed)
    classes = len(settings.load_data(cfg).class_names)
    _check_crafting(cfg)
    _rehearse(cfg, settings.load_data(cfg).shape)
    target = cfg.attack.get("target")
    try:
        choose_targets(target, torch.zeros(1, classes), torch.zeros(1, dtype=torch.int64), seed=0)
    except ValueError as error:
        raise InputError(str(error)) from error


def _rehearse(cfg: DictConfig, shape: tuple[int, int, int]) -> None:
    """Have a native attack check its parameters, on no images of the data set."""
    if settings.backend(cfg) != "native":
        return
    attack = settings.attack_function(cfg)
    provided = {"variant": cfg.attack.variant} if "variant" in accepted_parameters(attack) else {}
    nothing, no_labels = torch.zeros(0, *shape), torch.zeros(0, dtype=torch.int64)
    try:
        attack(torch.nn.Flatten(), nothing, no_labels, **settings.attack_parameters(cfg), **provided)
    except ValueError as error:
        raise InputError(f"attack={cfg.attack.name}: {settings.one_line(error)}") from error


def _check_crafting(cfg: DictConfig) -> None:
    on, n, universal = (cfg.attack.get(name, default) for name, default in _CRAFTING.items())
    if on not in ("attacked", "train"):
        raise InputError(f"attack.craft={on} is unknown: use attacked or train")
    settings.check_whole_number("attack.craft_n", n, least=1)
    if not universal and on == "train":
        raise InputError("attack.universal=false makes a patch for each image: it needs attack.craft=attacked")
    if universal and cfg.attack.name.startswith("patch_") and isinstance(cfg.attack.get("target"), str):
        raise InputError(f"attack.target={cfg.attack.target}: a universal patch has one target, so give it a class")


def identity(cfg: DictConfig) -> dict[str, Any]:
    return {
        "kind": "attack",
        **victims.identity(cfg),
        "data": settings.load_data(cfg).digest,
        "attack": cfg.attack.name,
        "variant": cfg.attack.variant,
        "backend": settings.backend(cfg),
        "parameters": settings.attack_parameters(cfg),
        "target": cfg.attack.get("target"),
        **_crafting(cfg),
        **_surrogate(cfg),
        "n": cfg.n,
        "seed": cfg.seed,
    }


def label(cfg: DictConfig) -> str:
    return f"{cfg.attack.name} on {victims.name(cfg)}, seed {cfg.seed}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Attack one network and track it: figures, per-image table, pictures, adversarial examples."""
    data = settings.load_data(cfg)
    device = settings.device(cfg)
    victim = victims.obtain(cfg, data, tracker, parent, device)
    net = victim.net
    note("choosing images", of=label(cfg))
    selection = networks.images_right(net, data.test, device, n=cfg.n, seed=cfg.seed, besides=target_class(cfg))
    x, y = data.test.pixels(selection.indices).to(device), selection.labels.to(device)
    clean_logits = predict(net, x)
    targets = choose_targets(cfg.attack.get("target"), clean_logits, y, seed=cfg.seed)
    params = {**train.parameters(cfg, data), **_parameters(cfg), **victim.params}
    about = (
        f"{cfg.attack.name} ({cfg.attack.variant}) against {victims.name(cfg)}"
        f" on {len(selection)} images of {data.name}."
    )
    with leaf(
        cfg,
        tracker,
        label(cfg),
        kind=KIND,
        fingerprint=fingerprint,
        params=params,
        parent=parent,
        note=about,
        source=victim.source,
    ) as result:
        result.log_data(data, context="attack")
        note(f"attacking {len(selection)} images", of=label(cfg))
        started = time.perf_counter()
        outcome = _attack(cfg, victim.made_on, x, y, targets, data)
        seconds = time.perf_counter() - started
        record = per_image_record(
            selection.indices.to(device), y, x, outcome.x_adv, clean_logits, predict(net, outcome.x_adv), targets
        )
        result.log_metrics(
            {
                **summarise(record),
                **outcome.extra,
                **victim.metrics,
                **(visibility(x, outcome.x_adv) if outcome.patch is not None else {}),
                "forwards_per_image": outcome.forwards / len(selection),
                "backwards_per_image": outcome.backwards / len(selection),
                "seconds": seconds,
            }
        )
        result.log_table(record, TABLE)
        folder, shown = result.artifacts, slice(cfg.tracking.image_rows)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        save_grid(folder / GRID, x[shown], outcome.x_adv[shown], record[shown], data.class_names)
        facts = {key: str(v) for key, v in {**params, "data_digest": data.digest, "fingerprint": fingerprint}.items()}
        made = AdversarialExamples(
            outcome.x_adv,
            selection.indices,
            selection.labels,
            facts,
            targets,
            outcome.perturbation,
            outcome.patch,
            outcome.corners,
        )
        save_examples(folder / EXAMPLES, made)
        if outcome.patch is not None:
            save_patches(folder / PATCHES, outcome.patch[shown] if outcome.patch.ndim == 4 else outcome.patch[None])
        if outcome.snapshots:
            _save_snapshots(folder / SNAPSHOTS, x[shown], outcome.snapshots)
            result.log_table(_progress(net, x, y, outcome.snapshots), PROGRESS)
        for step, (clean, adversarial) in enumerate(zip(x[shown], outcome.x_adv[shown], strict=True)):
            result.log_image(triptych(clean, adversarial), key="clean_adversarial_difference", step=step)
    return result


def _surrogate(cfg: DictConfig) -> dict[str, Any]:
    return {} if cfg.surrogate is None else {"surrogate": str(cfg.surrogate)}


def _progress(net: torch.nn.Module, x: Tensor, y: Tensor, snapshots: dict[int, Tensor]) -> pd.DataFrame:
    """One row per kept iteration: adversarial accuracy, and mean and median L2 of the images it is wrong on."""
    rows = []
    for iteration, images in snapshots.items():
        evaded = predict(net, images).argmax(1) != y
        l2 = (images - x).flatten(1).norm(dim=1)[evaded]
        rows.append(
            {
                "iteration": iteration,
                "adversarial_accuracy": 1 - float(evaded.float().mean()),
                "l2": float(l2.mean()),
                "l2_median": float(l2.median()) if len(l2) else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _save_snapshots(path: Path, clean: Tensor, snapshots: dict[int, Tensor]) -> None:
    """The images after each kept iteration: `clean` (k, c, h, w), `images` (iterations, k, c, h, w), `iterations`."""
    images = torch.stack([after[: len(clean)].cpu() for after in snapshots.values()])
    save_file({"clean": clean.cpu(), "images": images, "iterations": torch.tensor(list(snapshots))}, path)


def _attack(
    cfg: DictConfig, net: torch.nn.Module, x: Tensor, y: Tensor, targets: Tensor | None, data: ImageData
) -> AttackResult:
    attack = settings.attack_function(cfg)
    accepted = accepted_parameters(attack)
    extras: dict[str, Any] = {"seed": cfg.seed, "targets": targets, "variant": cfg.attack.variant}
    if _crafting(cfg):
        extras["craft_on"] = _crafting_images(cfg, net, data, x.device)
    provided = {name: value for name, value in extras.items() if name in accepted}
    result = attack(net, x, y, **settings.attack_parameters(cfg), **provided)
    x_adv = result.x_adv
    if x_adv.shape != x.shape or not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        raise RuntimeError(f"{cfg.attack.function} returned images of another shape or outside [0, 1]")
    return result


def target_class(cfg: DictConfig) -> int | None:
    """The class that all images are to be taken for, if there is one."""
    target = cfg.attack.get("target")
    return target if isinstance(target, int) else None


def _crafting(cfg: DictConfig) -> dict[str, Any]:
    """Where a universal perturbation is grown, if not on the attacked images."""
    on = cfg.attack.get("craft", "attacked")
    return {} if on == "attacked" else {"craft": on, "craft_n": cfg.attack.craft_n}


def _crafting_images(
    cfg: DictConfig, net: torch.nn.Module, data: ImageData, device: torch.device
) -> tuple[Tensor, Tensor]:
    wanted = {"n": cfg.attack.craft_n, "seed": cfg.seed, "besides": target_class(cfg)}
    chosen = networks.images_right(net, data.train, device, **wanted)
    return data.train.pixels(chosen.indices).to(device), chosen.labels.to(device)


def _parameters(cfg: DictConfig) -> dict[str, Any]:
    return {
        "attack": cfg.attack.name,
        "variant": cfg.attack.variant,
        "backend": settings.backend(cfg),
        "seed": cfg.seed,
        "n_requested": cfg.n,
        "attack.target": cfg.attack.get("target"),
        **_surrogate(cfg),
        **{f"attack.{name}": value for name, value in {**settings.attack_parameters(cfg), **_crafting(cfg)}.items()},
    }


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("attack"))

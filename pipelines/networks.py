"""Networks for the pipelines: trained once whoever asks first, or loaded from where they are stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from attacks.selection import Selection, select_correct
from pipelines import released, settings, train
from pipelines.cells import FETCHED, open_tracker, process
from pipelines.errors import InputError
from pipelines.fingerprints import fingerprint, plain, quantizer_identity
from pipelines.tracking import Tracker
from qnn.checkpoint import CheckpointError, load_weights, read_description
from qnn.data import ImageData, Split
from qnn.evaluation import EVALUATION_BATCH, evaluate, predict
from qnn.precision import Precision
from qnn.switchable import RandomWidth, add_width, at_width, widths_of

_NEEDED = {"fingerprint", "model", "net", "quantizer", "bits", "test_accuracy"}
CALIBRATION_IMAGES = 2000
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Network:
    """A trained network, where it comes from, and what its description says.

    Attributes:
        source: the fingerprint and the run id of its training, as far as they are known (see `Facts.source`).
        switchable: the network at all widths it was trained for; None where that is one.
    """

    net: nn.Module
    description: dict[str, Any]
    source: tuple[str, str]
    switchable: nn.Module | None


def obtain(cfg: DictConfig, data: ImageData, tracker: Tracker, parent: str | None) -> Network:
    """The network of a config: the stored one it names, or the one its settings describe, trained if need be."""
    if is_stored(cfg):
        folder, run_id = locate(cfg, data, tracker)
        source = ("", run_id or "")
    else:
        # `force` redoes the cell that was asked for, not the network it needs
        trained = process(train, _without_force(cfg), tracker, parent)
        folder, source = trained.artifact(train.ARTIFACT, tracker), trained.source
    try:
        net, described = _load(cfg, data, folder)
    except InputError:
        if folder.is_dir():
            raise
        return obtain(cfg, data, tracker, parent)  # it was delivered meanwhile
    switchable = net if widths_of(net) else None
    if switchable is not None:
        net, described = _at_configured_width(cfg, data, switchable, described)
    return Network(net, described, source, switchable)


def images_right(
    net: nn.Module, split: Split, device: torch.device, *, n: int, seed: int, besides: int | None = None
) -> Selection:
    """The first `n` images of a seeded permutation of a split that a network on `device` gets right.

    One whose width is drawn must get them right at every width, or its draws alone would break images.
    """
    members = list(net.nets) if isinstance(net, RandomWidth) else [net]

    def logits(images: Tensor) -> Tensor:
        found = [predict(member, images.to(device)) for member in members]
        classes = torch.stack([part.argmax(1) for part in found])
        odd = (classes != classes[0]).any(0)
        return torch.cat([found[0], torch.where(odd, torch.inf, -torch.inf)[:, None]], 1)  # no label is that class

    return select_correct(logits, split.pixels, split.labels, n=n, seed=seed, besides=besides)


def compared(cfg: DictConfig) -> dict[str, DictConfig]:
    """A config for each of the widths that `cfg.compare` lists.

    Raises:
        InputError: fewer than two of them, or something else than widths.
    """
    try:
        widths = dict.fromkeys(str(Precision.parse(width)) for width in cfg.compare)
    except (TypeError, ValueError) as error:
        raise InputError(f"compare={cfg.compare}: {error}") from error
    if len(widths) < 2:
        raise InputError(f"compare={cfg.compare} leaves nothing to compare: give at least two widths")
    return {width: OmegaConf.merge(cfg, {"bits": width}) for width in widths}  # type: ignore[misc]


def is_stored(cfg: DictConfig) -> bool:
    """Whether the network is one that a folder or a run holds, or a released one, so that nothing is trained."""
    return cfg.network is not None or cfg.weights == "released"


def check(cfg: DictConfig) -> None:
    """Raise InputError unless the network of a config can be built and, if stored, is whole and the one asked for."""
    train.check_network(cfg)
    if is_stored(cfg):
        data = settings.load_data(cfg)
        folder, _ = locate(cfg, data, None)
        _load(cfg, data, folder)


def _load(cfg: DictConfig, data: ImageData, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    described = matching_description(cfg, folder)
    try:
        return load_weights(settings.build_network(cfg, data), folder).eval(), described
    except CheckpointError as error:
        raise InputError(str(error)) from error


def _at_configured_width(
    cfg: DictConfig, data: ImageData, net: nn.Module, described: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network at `bits` alone; a width it was not trained at is measured first, on always the same training images.

    They are drawn, because stored images may be in the order of their classes.
    """
    bits = str(Precision.parse(cfg.bits))
    accuracy = described["test_accuracies"].get(bits)
    if accuracy is None:
        drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
        images = data.train.pixels(drawn)
        try:
            add_width(net, bits, settings.network_builder(cfg, data), images.split(EVALUATION_BATCH // 10))
        except ValueError as error:
            raise InputError(f"bits={bits}: {error}") from error
        accuracy = evaluate(net, data.test)["accuracy"]
    named = {"fingerprint": _at(described["fingerprint"], bits), "bits": bits, "test_accuracy": accuracy}
    return at_width(net, bits), {**described, **named}


def _at(trained: str, bits: str) -> str:
    return f"{trained}@{bits}"


def network_fingerprint(cfg: DictConfig, data: ImageData) -> str:
    """The fingerprint of the network `obtain` would return, without training it."""
    trained = trained_fingerprint(cfg, data)
    return _at(trained, str(Precision.parse(cfg.bits))) if settings.trained_widths(cfg) else trained


def trained_fingerprint(cfg: DictConfig, data: ImageData) -> str:
    """The fingerprint of the training, which gives one network for all of `defence.widths`."""
    if not is_stored(cfg):
        return fingerprint(train.identity(cfg))
    folder, _ = locate(cfg, data, None)
    return str(matching_description(cfg, folder)["fingerprint"])


def locate(cfg: DictConfig, data: ImageData, tracker: Tracker | None) -> tuple[Path, str | None]:
    """The folder of the stored network that a config names or chooses, and its run id if it is a run's."""
    if cfg.weights == "released":
        return released.choose(cfg, data), None
    named = str(cfg.network)
    if _RUN_ID.fullmatch(named):
        keep_in = settings.work_folder(cfg) / FETCHED / named
        return (tracker or open_tracker(cfg)).download(named, train.ARTIFACT, keep_in), named
    folder = Path(named)
    if not folder.is_dir():
        raise InputError(f"network={named} is neither a folder with a stored network nor an MLflow run id")
    return folder, None


def matching_description(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The description of a stored network, which must be the network the config asks for.

    Raises:
        InputError: it is another one; says which.
    """
    try:
        described = read_description(folder)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if lacking := sorted(_NEEDED - described.keys()):
        raise InputError(f"the network stored in {folder} is not described well enough: no {', '.join(lacking)}")
    bits = train.trained_bits(cfg)
    asked = {"net": plain(cfg.model.net), "quantizer_settings": None, **quantizer_identity(cfg), "bits": bits}
    stored = {name: described.get(name) for name in asked}
    if asked != stored:
        raise InputError(
            f"the network stored in {folder} is model={described.get('model')} bits={described.get('bits')}"
            f" quantizer={described.get('quantizer')}, not model={cfg.model.name} bits={bits}"
            f" quantizer={cfg.quantizer.name}: ask for what is stored"
        )
    return described


def _without_force(cfg: DictConfig) -> DictConfig:
    relaxed = cfg.copy()
    relaxed.force = False
    return relaxed

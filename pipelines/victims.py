"""What an attack is up against, and what it is made on.

The victim classifies at `bits` or, with ``inference=random``, each image at a width drawn from those it was trained
for (DWQ's inference). The attack is made on the victim, or with `surrogate` on other widths of the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from omegaconf import DictConfig
from torch import device, nn

from pipelines import networks, settings, train
from pipelines.errors import InputError
from pipelines.networks import Network
from pipelines.tracking import Tracker
from qnn.data import ImageData
from qnn.freezing import freeze
from qnn.precision import Precision
from qnn.switchable import MeanProbability, RandomWidth, at_width


@dataclass(frozen=True)
class Victim:
    """A network under attack.

    Attributes:
        net: what classifies, frozen.
        made_on: what the attack is made on, frozen.
        params: which network it is, and `bits` where that is not the configured one.
        metrics: `clean_accuracy`, and as `width_in_bits` (32 at FP) its width as a number, for charts.
        source: see `Facts.source`.
    """

    net: nn.Module
    made_on: nn.Module
    params: dict[str, str]
    metrics: dict[str, float]
    source: tuple[str, str]


def check(cfg: DictConfig) -> None:
    """Raise InputError unless the network can be had and has the widths that are asked of it."""
    networks.check(cfg)
    widths = settings.trained_widths(cfg)
    if cfg.surrogate is not None and str(cfg.surrogate) not in (*widths, *(["all"] if widths else [])):
        has = f"all or one of {', '.join(widths)}" if widths else "a network of several widths (defence.widths)"
        raise InputError(f"surrogate={cfg.surrogate} is not there: it needs {has}")
    if cfg.inference not in ("fixed", "random"):
        raise InputError(f"inference={cfg.inference} is unknown: use fixed or random")
    if settings.draws(cfg) and not widths:
        raise InputError(
            "inference=random draws a width for each image: it needs a network of several (defence.widths)"
        )


def name(cfg: DictConfig) -> str:
    return f"{train.trained_name(cfg)}, widths drawn" if settings.draws(cfg) else train.network_name(cfg)


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Which network it is, without training it."""
    data = settings.load_data(cfg)
    if settings.draws(cfg):
        return {"network": networks.trained_fingerprint(cfg, data), "inference": "random"}
    return {"network": networks.network_fingerprint(cfg, data)}


def obtain(cfg: DictConfig, data: ImageData, tracker: Tracker, parent: str | None, on: device) -> Victim:
    """The victim of a config on a device; its network is trained first if need be."""
    network = networks.obtain(cfg, data, tracker, parent)
    described = network.description
    if settings.draws(cfg):
        net: nn.Module = RandomWidth(_frozen(cfg, network, settings.trained_widths(cfg), on), seed=cfg.seed)
        params = {"network": described["fingerprint"].partition("@")[0], "inference": "random", "bits": "random"}
        metrics = {"clean_accuracy": fmean(described["test_accuracies"].values())}
    else:
        net = freeze(network.net.to(on), compile=cfg.trainer.compile)
        params = {"network": described["fingerprint"]}
        width = Precision.parse(cfg.bits).weights or 32
        metrics = {"clean_accuracy": described["test_accuracy"], "width_in_bits": width}
    made_on = net if cfg.surrogate is None else _surrogate(cfg, network, on)
    return Victim(net, made_on, params, metrics, network.source)


def _surrogate(cfg: DictConfig, network: Network, on: device) -> nn.Module:
    if cfg.surrogate == "all":
        return MeanProbability(_frozen(cfg, network, settings.trained_widths(cfg), on))
    (net,) = _frozen(cfg, network, [str(cfg.surrogate)], on)
    return net


def _frozen(cfg: DictConfig, network: Network, widths: Sequence[str], on: device) -> list[nn.Module]:
    assert network.switchable is not None
    return [freeze(at_width(network.switchable, width).to(on), compile=cfg.trainer.compile) for width in widths]

"""The networks shipped with the package, as a config asks for them (``weights=released``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from analysis.cells import bits_order
from pipelines.errors import InputError
from pipelines.fingerprints import plain
from qnn import released
from qnn.checkpoint import CheckpointError, read_description
from qnn.data import ImageData
from qnn.precision import Precision


def choose(cfg: DictConfig, data: ImageData) -> Path:
    """The folder of the released network of a config: its model, quantiser, bits, data set and training seed.

    Where there are several, that of the config's training recipe.

    Raises:
        InputError: there is none; says which there are.
    """
    if cfg.defence.name != "none" or cfg.defence.widths:
        raise InputError("weights=released: no defended networks are released; leave it out to train one")
    bits, seed = str(Precision.parse(cfg.bits)), cfg.training.seed
    try:
        found = released.find(
            released.FOLDER,
            net=plain(cfg.model.net),
            quantizer=cfg.quantizer.name,
            bits=bits,
            data=data.name,
            training_seed=seed,
            recipe=cfg.training.name,
        )
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if found is None:
        controls = "".join(f" {name}" for name in departures({"net": cfg.model.net, "quantizer": cfg.quantizer.name}))
        raise InputError(
            f"no {cfg.model.name} with bits={bits} data={data.name} training.seed={seed}{controls} is released:"
            f" {_available(cfg.model.name)}; weights=trained trains it"
        )
    return found


def training(cfg: DictConfig, data: ImageData) -> dict[str, Any]:
    """How the released network of a config was trained."""
    return read_description(choose(cfg, data))["training"]


def departures(described: dict[str, Any]) -> list[str]:
    """What tells a control network from the plain one, as on the command line."""
    topology = described["net"].get("topology", "auto")
    return [
        *([f"quantizer={described['quantizer']}"] if described["quantizer"] != "dorefa" else []),
        *([f"model.net.topology={topology}"] if topology != "auto" else []),
    ]


def _available(model: str) -> str:
    """The released networks of a model as overrides, or the models there are networks of."""
    listed = list(released.descriptions(released.FOLDER).values())
    widths: dict[str, set[str]] = {}
    for described in listed:
        if described["model"] == model:
            others = [f"data={described['data']}", f"training.seed={described['training']['seed']}"]
            widths.setdefault(" ".join([*others, *departures(described)]), set()).add(described["bits"])
    if widths:
        by_width = {others: ",".join(sorted(bits, key=bits_order)) for others, bits in widths.items()}
        return "there are " + ", ".join(f"bits={bits} {others}" for others, bits in by_width.items())
    models = sorted({described["model"] for described in listed})
    return f"there are networks of {', '.join(models)} only" if models else "there are no released networks"

"""Fingerprints: hashes of what determines an outcome, and of nothing else.

Paths, devices, thread counts and logging are left out; the data set enters by its digest. A cell whose
fingerprint is tagged complete in the tracking store is done.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qnn.precision import Precision

FORMAT = 1
UNDEFENDED = {"name": "none", "widths": None, "norms": "switchable", "objective": None, "start": None}


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of a JSON value, independent of key order."""
    canonical = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def network_identity(cfg: DictConfig, data_digest: str) -> dict[str, Any]:
    """What determines a trained network; where it is trained for several widths, `bits` is not part of it."""
    defence = plain(cfg.defence)
    return {
        "kind": "network",
        "data": {"name": cfg.data.name, "digest": data_digest},
        "model": plain(cfg.model.net),
        **quantizer_identity(cfg),
        **({} if defence["widths"] else {"bits": str(Precision.parse(cfg.bits))}),
        "training": plain(cfg.training),
        **({} if defence == UNDEFENDED else {"defence": defence}),
    }


def quantizer_identity(cfg: DictConfig) -> dict[str, Any]:
    """A quantiser's name, and what it is given besides its bits; the files of this package's give them nothing."""
    given = {name: value for name, value in plain(cfg.quantizer).items() if name not in ("name", "_target_", "bits")}
    return {"quantizer": cfg.quantizer.name, **({"quantizer_settings": given} if given else {})}


def plain(node: DictConfig) -> dict[str, Any]:
    """A config node as resolved plain values."""
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)  # type: ignore[return-value]

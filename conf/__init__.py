"""The Hydra configuration tree (`pkg://conf`), and the resolvers its files use; Hydra imports this to read them."""

from __future__ import annotations

import warnings
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qnn.precision import Precision


def by_bits(values: DictConfig, default: Any, *, _root_: DictConfig) -> Any:
    """The value for the configured bits, else the default: ``${by_bits:{2:60},20}`` is 60 with ``bits=2``.

    A network trained for several widths takes the default: what it is must not depend on the width it is used at.

    Raises:
        ValueError: `bits` is no bit width.
    """
    if _root_.defence.widths is not None:
        return default
    return {str(bits): value for bits, value in values.items()}.get(str(Precision.parse(_root_.bits)), default)


def workers() -> int:
    """Parallel jobs for this machine: ``${workers:}``."""
    from pipelines.workers import default_workers

    return default_workers()


# the presets of the launchers have the names, and are checked against the schemas, of the plugins they configure
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
OmegaConf.register_new_resolver("by_bits", by_bits, replace=True)
OmegaConf.register_new_resolver("workers", workers, replace=True)

"""The Hydra configuration tree (`pkg://conf`), and the resolver its files use; Hydra imports this to read them."""

from __future__ import annotations

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


OmegaConf.register_new_resolver("by_bits", by_bits, replace=True)

"""Helpers shared by the model files."""

from __future__ import annotations

from torch import nn

from qnn.quantizers import Quantizer

TOPOLOGIES = ("auto", "fp", "quantized")


def uses_quantized_topology(topology: str, quantizer: Quantizer) -> bool:
    """Resolve ``auto``.

    Raises:
        ValueError: unknown topology, or ``fp`` together with a quantiser that needs the other.
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology={topology} is unknown: use one of {', '.join(TOPOLOGIES)}")
    if topology == "fp" and quantizer.topology == "quantized":
        raise ValueError("topology=fp has no place for DoReFa's quantisers: it needs bits=FP or quantizer=uniform")
    return "quantized" in (topology, quantizer.topology)


def he_normal_(module: nn.Module) -> None:
    """Tensorpack's default initialisation: untruncated He normal over fan-in, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

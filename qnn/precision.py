"""Bit widths: how they are written, checked and named."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_BITS, MAX_BITS = 1, 16
_PAIR = re.compile(r"w(FP|\d+)a(FP|\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Precision:
    """Bit widths of hidden weights and activations; ``None`` means full precision (float32)."""

    weights: int | None
    activations: int | None

    @classmethod
    def parse(cls, bits: str | int) -> Precision:
        """Read ``FP`` (or ``32``), ``k`` (weights and activations at k bits) or ``w1a4`` (either may be FP).

        >>> Precision.parse("w1a4")
        Precision(weights=1, activations=4)

        Raises:
            ValueError: not one of these forms, or a width outside 1..16.
        """
        text = str(bits).strip()
        pair = _PAIR.fullmatch(text)
        weights, activations = pair.groups() if pair else (text, text)
        return cls(_width(weights, text), _width(activations, text))

    @property
    def is_full(self) -> bool:
        return self.weights is None and self.activations is None

    def __str__(self) -> str:
        if self.weights == self.activations:
            return _name(self.weights)
        return f"w{_name(self.weights)}a{_name(self.activations)}"


def _name(width: int | None) -> str:
    return "FP" if width is None else str(width)


def _width(part: str, whole: str) -> int | None:
    if part.upper() in ("FP", "32"):
        return None
    if not part.isdecimal() or not MIN_BITS <= int(part) <= MAX_BITS:
        raise ValueError(
            f"bits={whole} is not a bit width: use FP, a whole number from {MIN_BITS} to {MAX_BITS},"
            " or weights and activations apart, as in w1a4"
        )
    return int(part)

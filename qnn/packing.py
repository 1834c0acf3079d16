"""Quantised weights as k-bit codes, packed without gaps.

At k > 1 bits code i stands for the level 2 i / (2^k − 1) − 1. At one bit, 1 stands for +E|w| and 0 for −E|w|,
and that scale is kept beside the codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 16  # bits; the widest code


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (n,) below 2^bits as bytes (⌈n · bits / 8⌉,), the most significant bit first, zeros at the end.

    >>> pack(np.array([1, 2, 3, 0, 2]), bits=2)
    array([108, 128], dtype=uint8)
    """
    words = codes.astype(">u2").view(np.uint8).reshape(-1, WORD // 8)
    return np.packbits(np.unpackbits(words, axis=1)[:, WORD - bits :])


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The `count` codes that `pack` made `packed` of, uint16.

    Raises:
        ValueError: `packed` has another length than so many codes take.
    """
    if len(packed) != packed_length(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {packed_length(count, bits)} bytes, not {len(packed)}")
    words = np.zeros((count, WORD), np.uint8)
    words[:, WORD - bits :] = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(words, axis=1).view(">u2").astype(np.uint16).ravel()


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return math.ceil(count * bits / 8)


def encode(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """A quantised weight tensor in parts: `codes`, uint8 (⌈n · bits / 8⌉,), and at one bit `scale`, float32 ().

    Raises:
        ValueError: `weight` has other values than a DoReFa quantiser of that width returns.
    """
    unit = ~torch.signbit(weight) if bits == 1 else (weight.double() + 1) / 2
    codes = (unit * (2**bits - 1)).round().nan_to_num().clamp(0, 2**bits - 1)
    parts = {"codes": torch.from_numpy(pack(codes.flatten().numpy().astype(np.uint16), bits))}
    if bits == 1:
        parts["scale"] = weight.abs().max()
    if not torch.equal(decode(parts, bits, weight.shape), weight):
        raise ValueError(f"these are not the weights of a {bits}-bit layer: they are off its levels")
    return parts


def decode(parts: dict[str, Tensor], bits: int, shape: Sequence[int]) -> Tensor:
    """The float32 tensor that `encode` took, bit for bit.

    Raises:
        ValueError: the codes are more or fewer than the shape needs.
    """
    unpacked = unpack(parts["codes"].numpy(), bits, math.prod(shape)).astype(np.float32)
    codes = torch.from_numpy(unpacked).reshape(tuple(shape))
    if bits == 1:
        return torch.where(codes > 0, parts["scale"], -parts["scale"])
    return 2 * (codes / (2**bits - 1)) - 1


def blank(shape: Sequence[int], bits: int) -> dict[str, Tensor]:
    """Tensors without values, of the dtypes and shapes of the parts of such a weight tensor."""
    parts = {"codes": torch.empty(packed_length(math.prod(shape), bits), dtype=torch.uint8, device="meta")}
    return parts | ({"scale": torch.empty((), device="meta")} if bits == 1 else {})

"""What a data set is: three splits of uint8 images and int64 labels, with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """Data that is absent, damaged or not what was asked for; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """Images of shape (n, channels, height, width), uint8, and labels of shape (n,), int64.

    Attributes:
        on_disk: `images` is a file mapped into memory that may be larger than it: never read it whole.
    """

    images: Tensor
    labels: Tensor
    on_disk: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Images as float32 in [0, 1]."""
        return self.images[indices].float().div_(255)


@dataclass(frozen=True)
class ImageData:
    """A data set: train, validation (held out from train) and test splits.

    Attributes:
        known_digest: the digest, where it is made of something else than every pixel.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    known_digest: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.test.images.shape[1:])  # type: ignore[return-value]

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all splits, in order, or `known_digest`."""
        if self.known_digest is not None:
            return self.known_digest
        sha = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for tensor in (split.images, split.labels):
                sha.update(str(tuple(tensor.shape)).encode())
                sha.update(np.ascontiguousarray(tensor.numpy()).data)
        return sha.hexdigest()[:16]


def assemble(
    name: str,
    class_names: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    validation: int | float,
    split_seed: int,
) -> ImageData:
    """Check the arrays and hold out the validation split.

    Args:
        train, test: images (n, c, h, w) uint8 and labels (n,).
        validation: how many training images to hold out: a count, or a fraction below 1.
        split_seed: seed of the permutation that picks them.

    Raises:
        DataError: labels out of range, no images, or nothing left to train on.
    """
    for part, (images, labels) in (("train", train), ("test", test)):
        if len(images) == 0:
            raise DataError(f"{name}: the {part} split has no images")
        if len(images) != len(labels):
            raise DataError(f"{name}: the {part} split has {len(images)} images but {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise DataError(
                f"{name}: labels of the {part} split run from {labels.min()} to {labels.max()},"
                f" outside 0..{len(class_names) - 1}"
            )
    total = len(train[0])
    held_out = count_held_out(name, validation, total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(split_seed))
    whole = _split(*train)
    picked, kept = order[:held_out].sort().values, order[held_out:].sort().values
    return ImageData(
        name=name,
        class_names=tuple(class_names),
        train=Split(whole.images[kept], whole.labels[kept]),
        validation=Split(whole.images[picked], whole.labels[picked]),
        test=_split(*test),
    )


def count_held_out(name: str, validation: int | float, total: int) -> int:
    """How many of `total` training images a count, or a fraction below 1, is.

    Raises:
        DataError: none, or all of them.
    """
    held_out = round(validation * total) if validation < 1 else int(validation)
    if not 0 < held_out < total:
        raise DataError(f"{name}: data.validation={validation} leaves nothing of {total} training images to one side")
    return held_out


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.array(images, dtype=np.uint8)), torch.from_numpy(np.array(labels, dtype=np.int64)))

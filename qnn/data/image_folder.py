"""Any images sorted into one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from qnn.data.images import DataError, ImageData, assemble

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def image_folder(
    root: str | Path,
    *,
    size: Sequence[int] = (32, 32),
    channels: int = 3,
    test_fraction: float = 0.2,
    validation: int | float = 0.1,
    split_seed: int = 0,
) -> ImageData:
    """Images from ROOT/train/CLASS/* and ROOT/test/CLASS/*, or from ROOT/CLASS/* with a stratified test split.

    Args:
        size: (height, width) every image is resized to (bilinear).
        channels: 1 (grey) or 3 (RGB).
        test_fraction: share of each class that becomes the test split where there is no test folder.

    Raises:
        DataError: no such folder, no classes in it, or an image that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder: give one that holds a folder of images per class")
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise DataError(f"data.channels={channels}: use 1 (grey) or 3 (RGB)")
    height, width = size
    if (root / "train").is_dir() and (root / "test").is_dir():
        classes = _classes(root / "train")
        if unseen := sorted(set(_classes(root / "test")) - set(classes)):
            raise DataError(f"{root / 'test'} has classes that {root / 'train'} lacks: {', '.join(unseen)}")
        train, test = (_read(root / part, classes, mode, height, width) for part in ("train", "test"))
    else:
        classes = _classes(root)
        images, labels = _read(root, classes, mode, height, width)
        try:
            kept, picked = train_test_split(
                np.arange(len(labels)), test_size=test_fraction, random_state=split_seed, stratify=labels
            )
        except ValueError as error:
            raise DataError(f"{root}: no stratified test split of {test_fraction} is possible: {error}") from error
        train, test = (images[kept], labels[kept]), (images[picked], labels[picked])
    return assemble("image_folder", classes, train, test, validation=validation, split_seed=split_seed)


def _classes(folder: Path) -> list[str]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{folder} holds {len(classes)} class folder(s): it needs at least two")
    return classes


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, which Pillow's own conversion would clip."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _read(folder: Path, classes: list[str], mode: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() not in SUFFIXES:
                continue
            try:
                with Image.open(path) as image:
                    pixels = _eight_bits(image).convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{path} cannot be read as an image ({error})") from error
            images.append(np.asarray(pixels))
            labels.append(label)
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) in its class folders")
    stacked = np.stack(images)
    return (stacked[:, None] if mode == "L" else stacked.transpose(0, 3, 1, 2)), np.array(labels, dtype=np.int64)

"""ImageNet from ROOT/train/WNID/*.JPEG and ROOT/val/WNID/*.JPEG, decoded once into files that are mapped into memory.

The decoded files lie in ROOT/decoded: 200 GB for the 1.33 million images at 224×224. They are named by the names
and sizes of the images, so that changed images are decoded anew, and left for you to delete. Where the images are
on a disk that cannot be written to, let ROOT be a folder with links to train and val.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from qnn.data.images import DataError, ImageData, Split, count_held_out

SUFFIXES = {".jpeg", ".jpg", ".png"}
FORMAT = 1  # of the decoded files; raise it when `decode` or the order of the training images changes
BLOCK = 256

Listing = list[tuple[str, int]]


def imagenet(root: str | Path, *, size: int = 224, validation: int | float = 10_000) -> ImageData:
    """Colour images (3, size, size) of as many classes as ROOT/train has folders; ROOT/val is the test split.

    The validation split is the first `validation` images of a fixed permutation of the training images, in which
    they are decoded. The digest is of the names and sizes of the image files, not of what is in them.

    Args:
        size: each image is resized (bilinear) so that its shorter side is 256/224 of this, then cropped at its centre.
        validation: how many training images to hold out: a count, or a fraction below 1.

    Raises:
        DataError: no such folders, classes of the test split that the training images lack, an image that cannot
            be read (it is named), or no space for the decoded files.
    """
    if size < 1:
        raise DataError(f"data.size={size} is out of range: it must be at least 1")
    train, test = (_listing(Path(root) / part) for part in ("train", "val"))
    classes = sorted({_class(name) for name, _ in train})
    if unseen := sorted({_class(name) for name, _ in test} - set(classes)):
        raise DataError(f"{root}/val has classes that {root}/train lacks: {', '.join(unseen)}")
    held_out = count_held_out("imagenet", validation, len(train))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = _split(Path(root), "train", [train[i] for i in order], classes, size)
    return ImageData(
        name="imagenet",
        class_names=tuple(classes),
        train=_rows(mixed, slice(held_out, None)),
        validation=_rows(mixed, slice(held_out)),
        test=_split(Path(root), "val", test, classes, size),
        known_digest=_digest(FORMAT, size, held_out, train, test),
    )


def _listing(folder: Path) -> Listing:
    """The images of a folder, as ``CLASS/NAME`` and bytes, sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: data.root must hold train/WNID/*.JPEG and val/WNID/*.JPEG")
    listing = [
        (f"{kind.name}/{image.name}", image.stat().st_size)
        for kind in os.scandir(folder)
        if kind.is_dir() and not kind.name.startswith(".")
        for image in os.scandir(kind)
        if Path(image.name).suffix.lower() in SUFFIXES and not image.name.startswith(".")
    ]
    if not listing:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) in folders named by their class")
    return sorted(listing)


def _class(name: str) -> str:
    return name.partition("/")[0]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _rows(split: Split, rows: slice) -> Split:
    return Split(split.images[rows], split.labels[rows], on_disk=split.on_disk)


def _split(root: Path, part: str, listing: Listing, classes: Sequence[str], size: int) -> Split:
    path = root / "decoded" / f"{part}-{size}-{_digest(FORMAT, listing)}.u8"
    if not path.is_file():
        _write(path, [root / part / name for name, _ in listing], size)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[_class(name)] for name, _ in listing])
    return Split(_mapped(path, (len(listing), 3, size, size)), labels, on_disk=True)


def _write(path: Path, images: Sequence[Path], size: int) -> None:
    """Decode images into one file of bytes, (n, 3, size, size), going on where an earlier call was cut off."""
    try:
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                _append(path.with_suffix(".part"), images, size)
                path.with_suffix(".part").replace(path)
    except OSError as error:
        advice = "make space, or let data.root be a folder you can write to, with links to train and val"
        raise DataError(f"{path} cannot be written ({error.strerror or error}): {advice}") from error


def _append(path: Path, images: Sequence[Path], size: int) -> None:
    each = 3 * size**2
    with path.open("ab") as file, ThreadPoolExecutor() as pool:
        done = file.tell() // each
        file.truncate(done * each)
        _check_space(path.parent, (len(images) - done) * each)
        with tqdm(desc=f"decoding {path.stem}", total=len(images), initial=done, unit="image", mininterval=2) as bar:
            for start in range(done, len(images), BLOCK):
                block = images[start : start + BLOCK]
                file.write(b"".join(pool.map(lambda image: decode(image, size).tobytes(), block)))
                file.flush()
                bar.update(len(block))


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB free, but the images need {needed / 1e9:.1f} GB decoded")


def decode(path: Path, size: int) -> np.ndarray:
    """An image as (3, size, size) uint8: RGB, shorter side resized to 256/224 of `size`, cropped at the centre.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            colours = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): replace it") from error
    shorter = round(size * 256 / 224)
    width, height = (shorter * side // min(colours.size) for side in colours.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = colours.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes of a file as a tensor that is read when it is indexed; writing to it ends the process."""
    if path.stat().st_size != math.prod(shape):
        raise DataError(f"{path} is damaged: delete it, and the images are decoded again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that it knows no read-only tensors
        return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r", shape=shape))

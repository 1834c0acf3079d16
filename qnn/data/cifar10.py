"""CIFAR-10 from the official Python batches: ROOT/cifar-10-batches-py/{data_batch_1..5,test_batch}."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from qnn.data.download import fetch
from qnn.data.images import DataError, ImageData, assemble

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
NOT_ORIGINAL = "not_original.json"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def cifar10(
    root: str | Path, *, validation: int | float = 5000, split_seed: int = 0, download: bool = True
) -> ImageData:
    """60,000 colour images (3, 32, 32) of ten classes.

    Copies of the data set in which some images are not the original pixels list those in
    ``not_original.json`` beside the batches, as ``{"train": [positions], "test": [positions]}``. The
    listed test images are left out, so that no figure rests on them.

    Raises:
        DataError: files absent and not to be downloaded, cut short, damaged, or holding anything but
            arrays and plain values (such a pickle is refused unread).
    """
    folder = Path(root) / FOLDER
    absent = [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]
    advice = f"put the batches of CIFAR-10's Python version in {folder}, or set data.root"
    if absent:
        if not download:
            raise DataError(f"{folder} lacks {', '.join(absent)}: {advice}")
        archive = fetch([URL], folder=Path(root), name="cifar-10-python.tar.gz", md5=MD5, advice=advice)
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="data")
    train, (images, labels) = (_read(folder, names, advice) for names in (TRAIN, TEST))
    original = np.delete(np.arange(len(labels)), _not_original(folder, len(labels)))
    test = images[original], labels[original]
    return assemble("cifar10", CLASSES, train, test, validation=validation, split_seed=split_seed)


def _not_original(folder: Path, count: int) -> list[int]:
    """Positions, among `count` test images, of those that are not the original pixels."""
    path = folder / NOT_ORIGINAL
    if not path.is_file():
        return []
    try:
        positions = [int(position) for position in json.loads(path.read_text())["test"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} is not {{"train": [positions], "test": [positions]}} ({error!r}): mend it') from error
    if not all(0 <= position < count for position in positions):
        raise DataError(f"{path} names positions beyond the {count} test images: mend it")
    return positions


def _read(folder: Path, names: tuple[str, ...], advice: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            batch = safe_unpickle(path.read_bytes())
            data, listed = np.asarray(batch["data"]), np.asarray(batch["labels"])
            images.append(data.reshape(-1, 3, 32, 32))
            labels.append(listed.astype(np.int64))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:
            raise DataError(f"{path} is damaged or cut short ({error}): delete it and {advice}") from error
        if len(data) != len(listed):
            raise DataError(f"{path} is damaged: {len(data)} images but {len(listed)} labels")
    return np.concatenate(images), np.concatenate(labels)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused: it wants to import {module}.{name}, which no CIFAR-10 batch needs")
        return super().find_class(module, name)


def safe_unpickle(raw: bytes) -> dict[str, Any]:
    """Unpickle a dictionary of NumPy arrays and plain values; keys come back as str.

    Raises:
        DataError: the pickle names anything else.
    """
    loaded = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
    if not isinstance(loaded, dict):
        raise DataError("refused: it holds no dictionary")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}

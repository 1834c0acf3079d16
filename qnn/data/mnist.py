"""MNIST from its original IDX files, in torchvision's layout: ROOT/MNIST/raw/*-ubyte[.gz]."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from qnn.data.download import fetch
from qnn.data.images import DataError, ImageData, assemble

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist(root: str | Path, *, validation: int | float = 5000, split_seed: int = 0, download: bool = True) -> ImageData:
    """70,000 grey images (1, 28, 28) of ten classes.

    Raises:
        DataError: files absent and not to be downloaded, cut short, damaged, or not MNIST-shaped.
    """
    folder = Path(root) / "MNIST" / "raw"
    arrays = {name: _read(folder, name, md5, download) for name, md5 in FILES.items()}

    def part(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images = arrays[f"{prefix}-images-idx3-ubyte"]
        if images.shape[1:] != (28, 28):
            raise DataError(f"MNIST: {prefix} images are {images.shape[1:]}, not 28×28")
        return images[:, None], arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int64)

    names = [str(i) for i in range(10)]
    return assemble("mnist", names, part("train"), part("t10k"), validation=validation, split_seed=split_seed)


def _read(folder: Path, name: str, md5: str, download: bool) -> np.ndarray:
    plain, packed = folder / name, folder / f"{name}.gz"
    advice = f"put the original MNIST files in {folder}, or set data.root, or use data=digits"
    if not plain.is_file() and not packed.is_file():
        if not download:
            raise DataError(f"{packed} is missing: {advice}")
        urls = [mirror + packed.name for mirror in MIRRORS]
        fetch(urls, folder=folder, name=packed.name, md5=md5, advice=advice)
    path = plain if plain.is_file() else packed
    try:
        raw = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({error}): delete it and {advice}") from error
    return parse_idx(raw, str(path))


def parse_idx(raw: bytes, source: str) -> np.ndarray:
    """Read an IDX file of unsigned bytes: big-endian magic 0x0000 08 ndim, then the sizes, then the data.

    Raises:
        DataError: not such a file, or its length is not what its header says.
    """
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] not in (1, 3):
        raise DataError(f"{source} is not an IDX file of unsigned bytes")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{source} is damaged or cut short: it ends inside its header")
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header], dtype=">u4"))
    if len(raw) - header != math.prod(shape):
        raise DataError(f"{source} is damaged or cut short: {len(raw) - header} bytes of data, its header says {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from qnn.data import ImageData, mnist
from qnn.data.images import DataError
from qnn.data.mnist import parse_idx

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def arrays() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        (part, kind): rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        if kind == "images"
        else np.arange(n, dtype=np.uint8) % 10
        for part, n in (("train", 30), ("test", 12))
        for kind in ("images", "labels")
    }


def write(root: Path, arrays: dict[tuple[str, str], np.ndarray], *, packed: bool = True) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        name = NAMES[key]
        (folder / (f"{name}.gz" if packed else name)).write_bytes(
            gzip.compress(idx(array), 1) if packed else idx(array)
        )
    return folder


def load(root: Path) -> ImageData:
    return mnist(root, validation=5, download=False)


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_files_are_read_as_written(tmp_path: Path, arrays: dict, packed: bool):
    write(tmp_path, arrays, packed=packed)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (25, 5, 12)
    assert data.class_names == tuple("0123456789")
    assert torch.equal(data.test.images, torch.from_numpy(arrays["test", "images"])[:, None])
    assert torch.equal(data.test.labels, torch.from_numpy(arrays["test", "labels"]).long())
    rows = {
        image.tobytes(): label
        for image, label in zip(arrays["train", "images"], arrays["train", "labels"], strict=True)
    }
    for split in (data.train, data.validation):
        assert [rows[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


def test_packed_and_plain_files_have_one_digest(tmp_path: Path, arrays: dict):
    write(tmp_path / "a", arrays, packed=True)
    write(tmp_path / "b", arrays, packed=False)
    digests = {load(tmp_path / part).digest for part in "ab"}
    assert len(digests) == 1


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        mnist(tmp_path / "nowhere", download=False)
    assert str(tmp_path / "nowhere" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz") in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_short_archive_is_named(tmp_path: Path, arrays: dict, keep: int):
    path = write(tmp_path, arrays) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is (damaged|not an IDX file)"):
        load(tmp_path)


NOT_IDX = [b"<html>not found</html>", gzip.compress(b"PK\3\4 something else", mtime=0)]


@pytest.mark.parametrize("content", NOT_IDX, ids=["page", "archive of something else"])
def test_anything_but_idx_is_refused(tmp_path: Path, arrays: dict, content: bytes):
    (write(tmp_path, arrays) / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is (damaged|not an IDX file)"):
        load(tmp_path)


def test_flipped_bit_in_an_archive_is_found(tmp_path: Path, arrays: dict):
    path = write(tmp_path, arrays) / "t10k-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "change", "complaint"),
    [
        (("train", "images"), lambda a: a[:, :27], "train images are .27, 28., not 28×28"),
        (("test", "images"), lambda a: a.reshape(24, 14, 28), "t10k images are .14, 28., not 28×28"),
        (("train", "labels"), lambda a: a[:-1], "30 images but 29 labels"),
        (("test", "labels"), lambda a: a + 1, "from 1 to 10, outside 0..9"),
        (("train", "images"), lambda a: a[:0], "30 labels|no images"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict, key: tuple[str, str], change, complaint: str):
    write(tmp_path, {**arrays, key: np.ascontiguousarray(change(arrays[key]))})
    with pytest.raises(DataError, match=complaint):
        load(tmp_path)


def test_parse_idx_reads_big_endian_sizes():
    raw = b"\0\0\x08\x03" + b"\0\0\0\2" + b"\0\0\0\1" + b"\0\0\0\3" + bytes(range(6))
    assert parse_idx(raw, "here").tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\x08",
        b"\1\0\x08\x01\0\0\0\1\7",
        b"\0\0\x0d\x01\0\0\0\1\7",
        b"\0\0\x08\x02\0\0\0\1\0\0\0\1\7",
        b"\0\0\x08\x01\0\0\0\2\7",
        b"\0\0\x08\x01\0\0\0\1\7\7",
        b"\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\7",
    ],
    ids=["empty", "no header", "magic", "floats", "two axes", "too short", "too long", "huge"],
)
def test_parse_idx_refuses_what_is_not_such_a_file(raw: bytes):
    with pytest.raises(DataError, match=r"^here is (damaged|not an IDX file)"):
        parse_idx(raw, "here")


def test_parse_idx_refuses_a_file_cut_anywhere():
    raw = idx(np.ones((2, 1, 3), dtype=np.uint8))
    for length in range(len(raw)):
        with pytest.raises(DataError, match=r"^here is (damaged|not an IDX file)"):
            parse_idx(raw[:length], "here")

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from qnn.data import ImageData, cifar10
from qnn.data.cifar10 import CLASSES, NOT_ORIGINAL, TEST, TRAIN, safe_unpickle
from qnn.data.images import DataError

PER_FILE = 4


def contents(number: int, *, as_bytes: bool = False) -> dict:
    rng = np.random.default_rng(number)
    batch = {
        "batch_label": f"batch {number}",
        "labels": rng.integers(0, 10, PER_FILE).tolist(),
        "data": rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8),
        "filenames": ["a.png"] * PER_FILE,
    }
    return {key.encode(): value for key, value in batch.items()} if as_bytes else batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, as_bytes=False)


def write(root: Path, *, as_bytes: bool) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate((*TRAIN, *TEST)):
        (folder / name).write_bytes(pickle.dumps(contents(number, as_bytes=as_bytes), protocol=2))
    return folder


def load(folder: Path) -> ImageData:
    return cifar10(folder.parent, validation=5, download=False)


@pytest.mark.parametrize("as_bytes", [False, True], ids=["str keys", "bytes keys"])
def test_batches_are_read_as_written(tmp_path: Path, as_bytes: bool):
    data = load(write(tmp_path, as_bytes=as_bytes))
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 4)
    assert data.shape == (3, 32, 32)
    assert data.class_names == CLASSES
    expected = contents(len(TRAIN))
    assert torch.equal(data.test.images, torch.from_numpy(expected["data"]).view(-1, 3, 32, 32))
    assert data.test.labels.tolist() == expected["labels"]
    rows = {
        row.tobytes(): label
        for number in range(len(TRAIN))
        for row, label in zip(contents(number)["data"], contents(number)["labels"], strict=True)
    }
    for split in (data.train, data.validation):
        assert [rows[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


def test_test_images_that_are_not_original_are_left_out(folder: Path):
    (folder / NOT_ORIGINAL).write_text('{"train": [0, 1], "test": [1, 3]}')
    data, expected = load(folder), contents(len(TRAIN))
    assert torch.equal(data.test.images, torch.from_numpy(expected["data"][[0, 2]]).view(-1, 3, 32, 32))
    assert data.test.labels.tolist() == [expected["labels"][0], expected["labels"][2]]
    assert len(data.train) + len(data.validation) == 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "mend it"), ("{}", "mend it"), ('{"test": 3}', "mend it"), ('{"test": [4]}', "beyond the 4")],
)
def test_a_bad_list_of_images_that_are_not_original_is_refused(folder: Path, text: str, reason: str):
    (folder / NOT_ORIGINAL).write_text(text)
    with pytest.raises(DataError, match=reason):
        load(folder)


def test_missing_batches_are_named(tmp_path: Path, folder: Path):
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3:") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 50, -1000, -1])
def test_cut_short_batch_is_named(folder: Path, keep: int):
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="data_batch_2 is damaged or cut short"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": [1, 2, 3]}, "4 images but 3 labels"),
        ({"labels": [1, 2, 3, 10]}, "from 1 to 10, outside 0..9"),
        ({"labels": None}, "test_batch is damaged"),
        ({"data": np.zeros((4, 3000), dtype=np.uint8)}, "test_batch is damaged"),
        ({"data": np.zeros((5, 3072), dtype=np.uint8)}, "5 images but 4 labels"),
    ],
)
def test_wrong_contents_are_refused(folder: Path, change: dict, complaint: str):
    (folder / "test_batch").write_bytes(pickle.dumps({**contents(5), **change}, protocol=2))
    with pytest.raises(DataError, match=complaint):
        load(folder)


class Runs:
    """An object whose unpickling calls `function(*arguments)`."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["whole", "value", "beside the data"])
@pytest.mark.parametrize("call", ["os.system", "builtins.eval", "builtins.open"])
def test_a_pickle_that_runs_code_is_refused_unrun(folder: Path, call: str, place: str, protocol: int):
    marker = folder / "marker"
    harm = {
        "os.system": Runs(os.system, f"touch {marker}"),
        "builtins.eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.open": Runs(open, str(marker), "w"),
    }[call]
    batch = {"whole": harm, "value": {**contents(0), "data": harm}, "beside the data": {**contents(0), "x": harm}}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch[place], protocol=protocol))
    with pytest.raises(DataError, match="data_batch_1: refused: it wants to import"):
        load(folder)
    assert not marker.exists()


def test_the_harm_in_these_tests_is_real(tmp_path: Path):
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {tmp_path / 'marker'}")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["load", "ndarray.tofile", "dtype.__class__"])
def test_only_the_listed_names_of_numpy_are_allowed(name: str):
    imported = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    with pytest.raises(DataError, match=f"refused: it wants to import numpy.{name}"):
        safe_unpickle(imported)


@pytest.mark.parametrize("value", [[1, 2], "text", None])
def test_a_pickle_of_anything_but_a_dictionary_is_refused(value: object):
    with pytest.raises(DataError, match="holds no dictionary"):
        safe_unpickle(pickle.dumps(value, protocol=2))

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qnn.data import image_folder
from qnn.data.images import DataError

COLOURS = {"blue": (0, 0, 200), "green": (0, 150, 0), "red": (100, 0, 0)}


def paint(folder: Path, count: int, classes: tuple[str, ...] = ("red", "blue"), suffix: str = ".png") -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6 + i, 9), COLOURS[name]).save(folder / name / f"{i}{suffix}")
    return folder


def colours_of(split) -> list[tuple[int, ...]]:
    assert (split.images == split.images[:, :, :1, :1]).all()
    return [tuple(image[:, 0, 0].tolist()) for image in split.images]


def test_folder_of_classes_is_split_by_class(tmp_path: Path):
    data = image_folder(paint(tmp_path, 10, ("red", "green", "blue")), size=(8, 5), test_fraction=0.3, validation=6)
    assert data.class_names == ("blue", "green", "red")
    assert data.shape == (3, 8, 5)
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 6, 9)
    assert data.test.labels.bincount().tolist() == [3, 3, 3]
    for split in (data.train, data.validation, data.test):
        assert colours_of(split) == [COLOURS[data.class_names[label]] for label in split.labels]


def test_given_test_folder_is_the_test_split(tmp_path: Path):
    paint(tmp_path / "train", 5)
    paint(tmp_path / "test", 3)
    data = image_folder(tmp_path, size=(4, 4), validation=2)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 6)
    assert data.class_names == ("blue", "red")
    assert colours_of(data.test) == [COLOURS[data.class_names[label]] for label in data.test.labels]


def test_split_depends_on_its_seed_alone(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (3, 3), 10 * i + (name == "b")).save(tmp_path / name / f"{i}.png")
    one, same, other = (image_folder(tmp_path, size=(3, 3), channels=1, split_seed=s).digest for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_grey_images_have_one_channel(tmp_path: Path):
    data = image_folder(paint(tmp_path, 5), size=(4, 6), channels=1)
    assert data.shape == (1, 4, 6)
    grey = np.asarray(Image.new("RGB", (1, 1), COLOURS["red"]).convert("L")).item()
    assert (data.test.images[data.test.labels == 1] == grey).all()


def test_channel_order_is_kept(tmp_path: Path):
    data = image_folder(paint(tmp_path, 5), size=(4, 4))
    assert data.test.images[data.test.labels == 0][0, :, 0, 0].tolist() == [0, 0, 200]
    assert data.test.images.dtype == torch.uint8


def test_other_files_and_hidden_folders_are_passed_over(tmp_path: Path):
    paint(tmp_path, 5)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    (tmp_path / "readme.md").write_text("not a class")
    data = image_folder(tmp_path, size=(4, 4))
    assert data.class_names == ("blue", "red")
    assert len(data.train) + len(data.validation) + len(data.test) == 10


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif"])
def test_damaged_image_is_named(tmp_path: Path, suffix: str):
    path = paint(tmp_path, 5, suffix=suffix) / "red" / f"3{suffix}"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        image_folder(tmp_path)
    assert str(path) in str(caught.value)


def test_text_in_place_of_an_image_is_named(tmp_path: Path):
    (paint(tmp_path, 5) / "red" / "oops.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"oops\.jpg cannot be read as an image"):
        image_folder(tmp_path)


def test_image_too_large_to_decode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (50, 50)).save(paint(tmp_path, 5) / "red" / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"huge\.png cannot be read as an image"):
        image_folder(tmp_path)


def test_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.root=.*nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("classes", [(), ("red",)])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, classes: tuple[str, ...]):
    paint(tmp_path, 5, classes)
    with pytest.raises(DataError, match=rf"holds {len(classes)} class folder\(s\)"):
        image_folder(tmp_path)


def test_class_folders_without_images_are_refused(tmp_path: Path):
    paint(tmp_path, 0)
    with pytest.raises(DataError, match="holds no images"):
        image_folder(tmp_path)


@pytest.mark.parametrize("test_fraction", [0.01, 0.99])
def test_every_class_needs_a_test_image(tmp_path: Path, test_fraction: float):
    with pytest.raises(DataError, match=f"no stratified test split of {test_fraction}"):
        image_folder(paint(tmp_path, 5), test_fraction=test_fraction)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_images_are_grey_or_rgb(tmp_path: Path, channels: int):
    with pytest.raises(DataError, match=f"data.channels={channels}"):
        image_folder(paint(tmp_path, 5), channels=channels)

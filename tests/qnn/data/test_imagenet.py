import math
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qnn.data import Batches, Split, imagenet
from qnn.data.imagenet import _mapped, decode
from qnn.data.images import DataError, ImageData

MODULE = import_module("qnn.data.imagenet")  # its name in the package is the function's
SPLITS = ("train", "validation", "test")
WNIDS = ("n01440764", "n01443537", "n02105855")
SIZES = ((70, 41), (33, 90), (64, 64), (300, 224), (19, 23))
SIZE = 28


def photograph(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """Coarse noise, so that compression and resizing leave something of it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def photographs(root: Path, per_class: int = 5) -> Path:
    """`train` and `val` folders of odd sizes, with a grey and a CMYK image and a PNG named JPEG in each class."""
    for part, count in (("train", per_class), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                path = root / part / wnid / f"{wnid}_{i}.JPEG"
                mode, kind = (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"))[i % 4]
                photograph(SIZES[(i + label) % len(SIZES)], 100 * label + i, mode).save(path, kind, quality=95)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs(tmp_path)


def load(root: Path, **settings) -> ImageData:
    return imagenet(root, **{"size": SIZE, "validation": 4, **settings})


def decoded(root: Path) -> list[Path]:
    return sorted((root / "decoded").glob("*.u8"))


def names(split: Split, root: Path, part: str) -> list[str]:
    """Which file each image of a split was decoded from."""
    known = {decode(path, SIZE).tobytes(): path.name for path in (root / part).rglob("*.JPEG")}
    return [known[image.numpy().tobytes()] for image in split.images]


def test_images_are_those_of_the_files_with_the_labels_of_their_folders(root: Path):
    data = load(root)
    assert data.shape == (3, SIZE, SIZE)
    assert data.class_names == WNIDS
    assert (len(data.train), len(data.validation), len(data.test)) == (11, 4, 6)
    found = {part: names(getattr(data, part), root, "val" if part == "test" else "train") for part in SPLITS}
    assert sorted(found["train"] + found["validation"]) == sorted(p.name for p in (root / "train").rglob("*.JPEG"))
    assert found["test"] == sorted(path.name for path in (root / "val").rglob("*.JPEG"))
    for part in SPLITS:
        assert [name.partition("_")[0] for name in found[part]] == [WNIDS[i] for i in getattr(data, part).labels]


def test_training_images_are_in_a_fixed_mixed_order(root: Path, tmp_path: Path):
    data, again = load(root), load(photographs(tmp_path / "copy"))
    assert data.train.labels.tolist() != sorted(data.train.labels.tolist())
    for part in SPLITS:
        assert torch.equal(getattr(data, part).images, getattr(again, part).images)
    assert data.digest == again.digest


def test_another_number_of_validation_images_decodes_nothing(root: Path):
    whole = load(root).train.images[-8:].clone()
    files = decoded(root)
    other = load(root, validation=7)
    assert decoded(root) == files
    assert torch.equal(other.train.images, whole)
    assert other.digest != load(root).digest


def test_digest_is_of_names_sizes_and_settings(root: Path):
    digests = {load(root).digest, load(root, size=32).digest}
    (root / "train" / WNIDS[0] / "zzz.JPEG").write_bytes((root / "val" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").read_bytes())
    digests.add(load(root).digest)
    photograph((50, 60), 7).save(root / "val" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG")
    digests.add(load(root).digest)
    assert len(digests) == 4


@pytest.mark.parametrize("size", [(448, 224), (224, 448), (300, 300)])
def test_what_is_kept_is_the_centre_of_the_shorter_side(size: tuple[int, int], tmp_path: Path):
    photograph(size, 3).save(tmp_path / "a.png")
    kept = decode(tmp_path / "a.png", 224)
    side = min(size) * 224 / 256
    box = ((size[0] - side) / 2, (size[1] - side) / 2, (size[0] + side) / 2, (size[1] + side) / 2)
    expected = photograph(size, 3).resize((224, 224), Image.Resampling.BILINEAR, box=box)
    assert kept.shape == (3, 224, 224)
    assert np.abs(kept - np.asarray(expected, dtype=float).transpose(2, 0, 1)).mean() < 1


def test_grey_and_cmyk_images_become_rgb(tmp_path: Path):
    for mode in ("L", "CMYK", "P", "RGBA"):
        photograph((40, 30), 0, "RGB").convert(mode).save(tmp_path / f"{mode}.tif")
        assert decode(tmp_path / f"{mode}.tif", 16).shape == (3, 16, 16)
    assert (np.diff(decode(tmp_path / "L.tif", 16), axis=0) == 0).all()


def test_decoding_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = load(photographs(tmp_path / "whole")).train.images
    root = photographs(tmp_path / "cut")
    seen: list[Path] = []

    def interrupted(path: Path, size: int) -> np.ndarray:
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(path)
        return decode(path, size)

    def noted(path: Path, size: int) -> np.ndarray:
        seen.append(path)
        return decode(path, size)

    monkeypatch.setattr(MODULE, "BLOCK", 4)
    monkeypatch.setattr(MODULE, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    (part,) = (root / "decoded").glob("*.part")
    with part.open("ab") as file:
        file.write(b"half an image")
    first = set(seen[:8])
    seen.clear()
    monkeypatch.setattr(MODULE, "decode", noted)
    assert torch.equal(load(root).train.images, expected)
    assert len(seen) == 15 - 8 + 6
    assert not first & set(seen)
    assert not list((root / "decoded").glob("*.part"))


def test_damaged_image_is_named(root: Path):
    path = root / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        load(root)
    assert str(path) in str(caught.value)
    photograph((50, 50), 1).save(path)
    assert len(load(root).train) == 11


def test_damaged_decoded_file_is_named(root: Path):
    load(root)
    path = decoded(root)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"\.u8 is damaged: delete it"):
        load(root)
    path.unlink()
    assert len(load(root).train) == 11


def test_missing_space_is_told_before_anything_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(root)._replace(free=20_000_000)
    monkeypatch.setattr(MODULE.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"decoded has 0\.0 GB free, but the images need 3\.4 GB decoded"):
        load(root, size=8640)


def test_disk_that_fills_up_is_told(root: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"u8 cannot be written \(No space left on device\): make space"):
        load(root)


@pytest.mark.parametrize("part", ["train", "val"])
def test_missing_folder_is_named(root: Path, part: str):
    shutil.rmtree(root / part)
    with pytest.raises(DataError, match=rf"{part} is not a folder: data\.root must hold train/WNID/\*\.JPEG"):
        load(root)


def test_images_outside_class_folders_are_none(root: Path):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    photograph((30, 30), 0).save(root / "val" / "ILSVRC2012_val_00000001.JPEG", "JPEG")
    with pytest.raises(DataError, match=r"val holds no images \(.*\) in folders named by their class"):
        load(root)


def test_other_files_and_hidden_ones_are_passed_over(root: Path):
    before = load(root).digest
    (root / "train" / ".cache").mkdir()
    for name in (".cache/a.JPEG", f"{WNIDS[0]}/._a.JPEG", f"{WNIDS[0]}/notes.txt", "list.txt"):
        (root / "train" / name).write_text("not an image")
    assert load(root).digest == before


def test_class_without_training_images_is_named(root: Path):
    (root / "val" / WNIDS[0]).rename(root / "val" / "n99999999")
    with pytest.raises(DataError, match=r"val has classes that .*train lacks: n99999999"):
        load(root)


@pytest.mark.parametrize(("settings", "message"), [({"validation": 15}, "validation=15"), ({"size": 0}, "size=0")])
def test_settings_out_of_range_are_refused(root: Path, settings: dict[str, int], message: str):
    with pytest.raises(DataError, match=message):
        load(root, **settings)


def test_links_to_folders_that_cannot_be_written_to_serve(root: Path, tmp_path: Path):
    elsewhere = tmp_path / "links"
    elsewhere.mkdir()
    for part in ("train", "val"):
        (elsewhere / part).symlink_to(root / part)
    assert load(elsewhere).digest == load(root).digest
    assert decoded(elsewhere)


def test_a_split_larger_than_memory_is_read_a_batch_at_a_time(tmp_path: Path):
    shape = (2_000_000, 3, 224, 224)
    path = tmp_path / "sparse.u8"
    with path.open("wb") as file:
        file.truncate(math.prod(shape))
    split = Split(_mapped(path, shape), torch.arange(shape[0]), on_disk=True)
    images, labels = next(iter(Batches(split, 4, shuffle=True, crop=16, flip=True)))
    assert images.shape == (4, *shape[1:])
    assert len(set(labels.tolist())) == 4
    assert split.pixels(slice(-2, None)).shape == (2, *shape[1:])

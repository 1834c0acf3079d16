import dataclasses

import numpy as np
import pytest
import torch

from qnn.data.images import DataError, ImageData, Split, assemble


def arrays(count: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose every pixel is their own number, of three classes in turn."""
    numbers = np.arange(start, start + count)
    return np.broadcast_to(numbers[:, None, None, None], (count, 1, 4, 5)).astype(np.uint8), numbers % 3


def assembled(validation: float = 5, split_seed: int = 0, count: int = 30) -> ImageData:
    return assemble(
        "numbers", ["a", "b", "c"], arrays(count), arrays(9, start=100), validation=validation, split_seed=split_seed
    )


def numbers(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("validation", "held_out"), [(5, 5), (0.1, 3), (0.5, 15), (29, 29)])
def test_validation_is_held_out_of_train(validation: float, held_out: int):
    data = assembled(validation)
    assert (len(data.train), len(data.validation), len(data.test)) == (30 - held_out, held_out, 9)
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(30))
    assert numbers(data.test) == list(range(100, 109))
    for split in (data.train, data.validation, data.test):
        assert split.labels.tolist() == [number % 3 for number in numbers(split)]


def test_split_depends_on_its_seed_alone():
    assert numbers(assembled().validation) == numbers(assembled().validation)
    assert numbers(assembled().validation) != numbers(assembled(split_seed=1).validation)


def test_tensors_are_uint8_and_int64():
    data = assembled()
    assert data.shape == (1, 4, 5)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64


def test_pixels_are_float32_from_zero_to_one():
    split = Split(torch.tensor([[[[0, 51]]], [[[102, 255]]]], dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert split.pixels().dtype == torch.float32
    torch.testing.assert_close(split.pixels().flatten(), torch.tensor([0, 0.2, 0.4, 1]))
    assert torch.equal(split.pixels(torch.tensor([1])), split.pixels()[1:])
    assert split.images.dtype == torch.uint8


def test_digest_changes_with_any_pixel_label_or_split():
    data = assembled()
    digests = {data.digest, assembled(split_seed=1).digest, assembled(6).digest}
    for part in ("images", "labels"):
        changed = {"images": data.test.images.clone(), "labels": data.test.labels.clone()}
        changed[part].view(-1)[-1] ^= 1
        digests.add(dataclasses.replace(data, test=Split(**changed)).digest)
    assert len(digests) == 5
    assert assembled().digest == data.digest
    assert len(data.digest) == 16


@pytest.mark.parametrize("validation", [0, 30, 31, -1, 0.0])
def test_both_sides_of_the_split_need_images(validation: float):
    with pytest.raises(DataError, match=f"data.validation={validation}"):
        assembled(validation)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (0, [], "the test split has no images"),
        (3, [0, 1], "3 images but 2 labels"),
        (3, [0, 1, 3], "from 0 to 3, outside 0..2"),
        (3, [0, -1, 2], "from -1 to 2, outside 0..2"),
    ],
)
def test_labels_must_fit_the_images_and_classes(images: int, labels: list[int], complaint: str):
    test = arrays(images)[0], np.array(labels, dtype=np.int64)
    with pytest.raises(DataError, match=complaint):
        assemble("numbers", ["a", "b", "c"], arrays(9), test, validation=2, split_seed=0)

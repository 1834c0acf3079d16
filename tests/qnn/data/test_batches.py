import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qnn.data import Batches, Split


def numbered(count: int) -> Split:
    """Images whose every pixel, and whose label, is their own number."""
    numbers = torch.arange(count)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous(), numbers)


def copies(count: int, height: int = 5, width: int = 7) -> Split:
    """Copies of one image of two channels whose pixels all differ and are never 0."""
    image = torch.randperm(2 * height * width, generator=torch.Generator().manual_seed(0)).add(1).to(torch.uint8)
    return Split(image.view(1, 2, height, width).repeat(count, 1, 1, 1), torch.arange(count))


def variants(image: Tensor, crop: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop and flip of an image, and how it came about."""
    _, height, width = image.shape
    padded = F.pad(image, (crop,) * 4)
    made = {}
    for top, left, mirrored in itertools.product(range(2 * crop + 1), range(2 * crop + 1), {False, flip}):
        part = padded[:, top : top + height, left : left + width]
        made[(part.flip(2) if mirrored else part).contiguous().numpy().tobytes()] = (top, left, mirrored)
    return made


def order(batches: Batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def in_epoch(split: Split, epoch: int, **settings) -> list[tuple[Tensor, Tensor]]:
    batches = Batches(split, 8, **settings)
    batches.set_epoch(epoch)
    return list(batches)


def test_batches_are_float32_and_belong_to_their_labels():
    batches = Batches(numbered(50), 16, shuffle=True)
    assert len(batches) == 4
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert torch.equal(images, labels.view(-1, 1, 1, 1).expand_as(images).float() / 255)


def test_pixels_run_from_zero_to_one():
    split = Split(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))
    ((images, _),) = Batches(split, 2)
    assert images.flatten().tolist() == [0, 1]


def test_without_shuffling_the_order_is_kept():
    assert order(Batches(numbered(20), 6)) == list(range(20))


def test_each_epoch_is_another_permutation():
    batches = Batches(numbered(40), 8, shuffle=True)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders.append(order(batches))
    assert all(sorted(shuffled) == list(range(40)) for shuffled in orders)
    assert len({tuple(shuffled) for shuffled in orders}) == 3


def test_an_epoch_depends_on_seed_and_epoch_alone():
    settings = {"shuffle": True, "crop": 2, "flip": True, "seed": 7}
    walked = Batches(copies(30), 8, **settings)
    list(walked)
    torch.manual_seed(99)
    walked.set_epoch(4)
    direct = in_epoch(copies(30), 4, **settings)
    for (images, labels), (expected_images, expected_labels) in zip(walked, direct, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 5}])
def test_another_seed_or_epoch_gives_other_batches(other: dict[str, int]):
    settings = {"shuffle": True, "seed": 7, "epoch": 4}
    first, second = (in_epoch(numbered(30), **{**settings, **change}) for change in ({}, other))
    assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in second]


@pytest.mark.parametrize(("steps", "sizes"), [(2, [4, 4]), (3, [4, 4, 2]), (5, [4, 4, 2, 4, 4]), (6, [4, 4, 2] * 2)])
def test_steps_chain_whole_passes(steps: int, sizes: list[int]):
    batches = Batches(numbered(10), 4, shuffle=True, steps=steps)
    seen = list(batches)
    assert len(batches) == steps
    assert [len(labels) for _, labels in seen] == sizes
    passes = [torch.cat([labels for _, labels in seen[i : i + 3]]).tolist() for i in range(0, steps, 3)]
    for numbers in passes:
        assert len(set(numbers)) == len(numbers)
    assert len(passes) == 1 or passes[0][: len(passes[1])] != passes[1]


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (2, True), (1, True)])
def test_augmented_images_are_crops_and_flips_of_the_padded_original(crop: int, flip: bool):
    split = copies(600)
    possible = variants(split.images[0], crop, flip)
    ((images, _),) = Batches(split, 600, crop=crop, flip=flip)
    seen = [possible[image.mul(255).round().byte().contiguous().numpy().tobytes()] for image in images]
    assert set(seen) == set(possible.values()), "every crop and flip occurs in 600 draws"
    mirrored = sum(flipped for _, _, flipped in seen) / len(seen)
    assert mirrored == pytest.approx(0.5 if flip else 0, abs=0.1)
    for axis in (0, 1):
        assert sum(draw[axis] for draw in seen) / len(seen) == pytest.approx(crop, abs=0.25)


def test_augmentation_keeps_labels_and_shape():
    ((images, labels),) = Batches(numbered(20), 20, shuffle=True, crop=1, flip=True)
    assert images.shape == (20, 3, 4, 4)
    assert torch.equal(images.amax((1, 2, 3)), labels / 255)

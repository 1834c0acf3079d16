import torch

from qnn.data import ImageData, digits


def fingerprints(data: ImageData) -> list[bytes]:
    return sorted(image.numpy().tobytes() for split in (data.train, data.validation) for image in split.images)


def test_shapes_and_splits():
    data = digits()
    assert data.shape == (1, 28, 28)
    assert data.class_names == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (1212, 135, 450)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.min() == 0
    assert data.train.images.max() == 255


def test_test_split_is_stratified():
    counts = digits().test.labels.bincount(minlength=10)
    assert counts.sum() == 450
    assert counts.min() >= 43
    assert counts.max() <= 47


def test_two_loads_are_the_same():
    assert digits().digest == digits().digest


def test_split_seed_moves_images_between_train_and_validation_only():
    one, other = digits(), digits(split_seed=1)
    assert one.digest != other.digest
    assert torch.equal(one.test.images, other.test.images)
    assert fingerprints(one) == fingerprints(other)


def test_images_match_their_labels():
    """Nearest class mean gets most test images right, so images and labels belong together."""
    data = digits()
    means = torch.stack([data.train.pixels(data.train.labels == label).mean(0) for label in range(10)])
    nearest = torch.cdist(data.test.pixels().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == data.test.labels).float().mean() > 0.85

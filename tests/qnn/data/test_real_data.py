import json
from pathlib import Path

import pytest
import torch

from qnn.data import cifar10, mnist
from qnn.data.cifar10 import NOT_ORIGINAL


def test_real_mnist(real_data: Path):
    data = mnist(real_data, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    whole = torch.cat([data.train.labels, data.validation.labels])
    assert whole.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.pixels(slice(0, 100)).max() == 1
    assert mnist(real_data, download=False).digest == data.digest


def test_real_cifar10(real_data: Path):
    if not (real_data / "cifar-10-batches-py").is_dir():
        pytest.skip("real CIFAR-10 is not at hand: set QNN_DATA")
    data = cifar10(real_data, download=False)
    listed = real_data / "cifar-10-batches-py" / NOT_ORIGINAL
    left_out = len(json.loads(listed.read_text())["test"]) if listed.is_file() else 0
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000 - left_out)
    assert data.shape == (3, 32, 32)
    counts = data.test.labels.bincount()
    assert counts.max() <= 1000
    assert counts.sum() == 10_000 - left_out
    assert torch.cat([data.train.labels, data.validation.labels]).bincount().tolist() == [5000] * 10

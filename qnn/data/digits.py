"""scikit-learn's bundled 8×8 digits, resized to MNIST's 28×28: needs no files and no network."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from qnn.data.images import ImageData, assemble


def digits(*, validation: int | float = 0.1, split_seed: int = 0) -> ImageData:
    """1,797 grey images (1, 28, 28) of ten classes; a fixed stratified 450 of them are the test split."""
    bundle = load_digits()
    small = torch.from_numpy(bundle.images).float().unsqueeze(1) / 16
    images = F.interpolate(small, size=(28, 28), mode="bilinear").mul(255).round().byte().numpy()
    labels = bundle.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=450, random_state=0, stratify=labels)
    return assemble(
        "digits",
        [str(i) for i in range(10)],
        (images[train], labels[train]),
        (images[test], labels[test]),
        validation=validation,
        split_seed=split_seed,
    )

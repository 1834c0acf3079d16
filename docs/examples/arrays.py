"""A data set from one NumPy file."""

import numpy as np

from qnn.data import ImageData
from qnn.data.images import DataError, assemble


def arrays(*, root: str, test: int, validation: int | float = 0.1, split_seed: int = 0) -> ImageData:
    """`images` (n, channels, height, width), uint8, and `labels` (n,) of an `.npz` file; `test` of them for testing."""
    try:
        stored = np.load(root, allow_pickle=False)
        images, labels = stored["images"], stored["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"data.root={root} must be an .npz file with images and labels ({error})") from error
    return assemble(
        "arrays",
        [str(label) for label in range(labels.max() + 1)],
        (images[:-test], labels[:-test]),
        (images[-test:], labels[-test:]),
        validation=validation,
        split_seed=split_seed,
    )

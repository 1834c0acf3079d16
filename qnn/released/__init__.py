"""Networks shipped with this package: one folder each, packed (`qnn.checkpoint.save_packed`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qnn.checkpoint import DESCRIPTION, CheckpointError, read_description

FOLDER = Path(__file__).parent


def descriptions(folder: Path) -> dict[Path, dict[str, Any]]:
    """The folders of released networks in `folder`, and what their descriptions say.

    Raises:
        CheckpointError: a description is damaged.
    """
    return {path.parent: read_description(path.parent) for path in sorted(folder.glob(f"*/{DESCRIPTION}"))}


def find(
    folder: Path, *, net: dict[str, Any], quantizer: str, bits: str, data: str, training_seed: int, recipe: str
) -> Path | None:
    """The folder of the released network with these settings, if there is one.

    Args:
        net: settings of the model class, with its `_target_`.
        bits: as `str(Precision)` writes it.
        data: name of the data set it was trained on.
        recipe: name of the training recipe, which decides between several.

    Raises:
        CheckpointError: a description is damaged.
    """
    wanted = {"net": net, "quantizer": quantizer, "bits": bits, "data": data}
    found: dict[str, Path] = {}
    for path, described in descriptions(folder).items():
        training = described.get("training")
        if not isinstance(training, dict) or not {"name", "seed"} <= training.keys():
            raise CheckpointError(f"{path / DESCRIPTION} does not say what the network was trained with")
        if all(described.get(name) == value for name, value in wanted.items()) and training["seed"] == training_seed:
            found[training["name"]] = path
    return found.get(recipe, next(iter(found.values()), None))

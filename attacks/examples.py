"""Adversarial examples on disk: one safetensors file, readable without running anything in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_TENSORS = ("x_adv", "indices", "labels")
_OPTIONAL = ("targets", "perturbation", "patch", "corners")


@dataclass(frozen=True)
class AdversarialExamples:
    """Adversarial images and where they come from.

    Attributes:
        x_adv: (n, channels, height, width), float32 in [0, 1].
        indices: positions of their clean images in the test split, (n,).
        labels: true labels, (n,).
        metadata: the source in words: data, data_digest, model, bits, attack, …
        targets: classes that a targeted attack was to reach, (n,).
        perturbation: the universal perturbation (channels, height, width), where there is one.
        patch: the patch (channels, k, k), or each image's own (n, channels, k, k), where there is one.
        corners: row and column of each patch's top left pixel, (n, 2).
    """

    x_adv: Tensor
    indices: Tensor
    labels: Tensor
    metadata: dict[str, str]
    targets: Tensor | None = None
    perturbation: Tensor | None = None
    patch: Tensor | None = None
    corners: Tensor | None = None


def save_examples(path: Path, examples: AdversarialExamples) -> None:
    """Write one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {name: getattr(examples, name) for name in (*_TENSORS, *_OPTIONAL)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in given.items() if tensor is not None}
    save_file(tensors, path, metadata=examples.metadata)


def load_examples(path: Path) -> AdversarialExamples:
    """Read a file of `save_examples`.

    Raises:
        ValueError: absent, cut short, not such a file, or its tensors do not fit together.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in _TENSORS}
            present = set(stored.keys()).intersection(_OPTIONAL)
            optional = {name: stored.get_tensor(name) for name in present}
            metadata = dict(stored.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} holds no stored adversarial examples, or is damaged ({error})") from error
    images, *of_each = [tuple(part.shape) for part in (*tensors.values(), optional.get("targets", tensors["labels"]))]
    if len(images) != 4 or any(shape != images[:1] for shape in of_each):
        raise ValueError(f"{path} is damaged: its images, indices and labels do not fit together")
    return AdversarialExamples(**tensors, metadata=metadata, **optional)

"""ART's view of a network, without ART's detours."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.estimators.classification import PyTorchClassifier

from attacks.result import AttackResult

CHUNK = 256


class CountingClassifier(PyTorchClassifier):
    """`PyTorchClassifier` that casts to float32, counts evaluations and takes one backward pass.

    ART's own passes float64 on under NumPy 2 (its Boundary attack then fails), builds a DataLoader per
    prediction, and in `class_gradient` runs one backward pass per distinct label.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            classes = model.eval()(x[:1]).shape[1]
        super().__init__(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        self.forwards = 1  # the one that told the number of classes
        self.backwards = 0

    def predict(self, x: np.ndarray, batch_size: int = CHUNK, training_mode: bool = False, **kwargs) -> np.ndarray:
        """Logits (n, classes); `batch_size` only ever grows, to at least `CHUNK`."""
        self.forwards += len(x)
        with torch.no_grad():
            parts = self._tensor(x).split(max(batch_size, CHUNK))
            return torch.cat([self.model(part) for part in parts]).cpu().numpy()

    def class_gradient(self, x: np.ndarray, label=None, training_mode: bool = False, **kwargs) -> np.ndarray:
        """Gradient of each image's chosen logit, (n, 1, *image), or of all logits, (n, classes, *image)."""
        chosen = range(self.nb_classes) if label is None else [label]
        return np.stack([self._logit_gradient(x, which) for which in chosen], axis=1)

    def loss_gradient(self, x: np.ndarray, y: np.ndarray, training_mode: bool = False, **kwargs) -> np.ndarray:
        """Gradient of ART's loss (the mean cross-entropy of the batch)."""
        self.forwards += len(x)
        self.backwards += len(x)
        return super().loss_gradient(np.asarray(x, dtype=np.float32), y, training_mode=training_mode, **kwargs)

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(self.device)

    def _logit_gradient(self, x: np.ndarray, label: int | np.ndarray) -> np.ndarray:
        self.forwards += len(x)
        self.backwards += len(x)
        labels = torch.as_tensor(np.broadcast_to(label, len(x)).copy(), dtype=torch.int64, device=self.device)
        gradients = []
        for part, which in zip(self._tensor(x).split(CHUNK), labels.split(CHUNK), strict=True):
            part.requires_grad_()
            chosen = self.model(part).gather(1, which[:, None]).sum()
            gradients.append(torch.autograd.grad(chosen, part)[0])
        return torch.cat(gradients).cpu().numpy()


def as_result(estimator: CountingClassifier, x_adv: np.ndarray, like: Tensor, **more) -> AttackResult:
    """Wrap what an ART attack returned."""
    adversarial = torch.from_numpy(np.asarray(x_adv, dtype=np.float32)).to(like.device)
    return AttackResult(adversarial, estimator.forwards, estimator.backwards, **more)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators ART draws from, and put them back afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

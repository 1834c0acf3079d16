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

from attacks.evaluation import Evaluator
from attacks.losses import cross_entropy, logit
from attacks.result import AttackResult


class CountingClassifier(PyTorchClassifier):
    """`PyTorchClassifier` that evaluates as the native attacks do: in float32, in blocks, counted.

    ART's own passes float64 on under NumPy 2 (its Boundary attack then fails), builds a DataLoader per
    prediction, and in `class_gradient` runs one backward pass per distinct label.
    """

    def __init__(self, network: Evaluator, x: Tensor) -> None:
        super().__init__(
            model=network.model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=network.logits(x[:1]).shape[1],
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        self.network = network

    def predict(self, x: np.ndarray, batch_size: int = 0, training_mode: bool = False, **kwargs) -> np.ndarray:
        """Logits (n, classes); batches are the evaluator's."""
        return self.network.logits(self._tensor(x)).cpu().numpy()

    def class_gradient(self, x: np.ndarray, label=None, training_mode: bool = False, **kwargs) -> np.ndarray:
        """Gradient of each image's chosen logit, (n, 1, *image), or of all logits, (n, classes, *image)."""
        chosen = range(self.nb_classes) if label is None else [label]
        objectives = [logit(self._classes(which, len(x))) for which in chosen]
        _, *gradients = self.network.gradients(self._tensor(x), *objectives)
        return torch.stack(gradients, dim=1).cpu().numpy()

    def loss_gradient(self, x, y, training_mode: bool = False, **kwargs):
        """Gradient of ART's loss, the mean cross-entropy of the batch."""
        labels = y.argmax(1) if y.ndim > 1 else y
        objective = cross_entropy(self._classes(labels, len(x)))
        gradient = self.network.gradients(self._tensor(x), objective)[1] / len(x)
        # some of ART's attacks for PyTorch hand over tensors and want tensors back
        return gradient if isinstance(x, Tensor) else gradient.cpu().numpy()

    def _tensor(self, x: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float32, device=self.device)

    def _classes(self, classes: int | np.ndarray | Tensor, n: int) -> Tensor:
        return torch.as_tensor(classes, dtype=torch.int64, device=self.device).expand(n)


def as_result(network: Evaluator, x_adv: np.ndarray, like: Tensor, **more) -> AttackResult:
    """Wrap what an ART attack returned."""
    adversarial = torch.from_numpy(np.asarray(x_adv, dtype=np.float32)).to(like.device)
    return AttackResult(adversarial, network.forwards, network.backwards, **more)


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

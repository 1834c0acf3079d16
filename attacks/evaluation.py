"""Logits and input gradients of a network under attack: in blocks, counted, the same in every batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Input values evaluated at a time. On a CPU a block of ResNet-56 with gradients then takes about
# 0.7 GiB, and one of Mnist A stays in the cache.
_BLOCK_VALUES = {"cpu": 2**17, "cuda": 2**22}

# Matrix products round the last few rows of a batch differently. Blocks padded to a multiple of eight
# leave no such rows, so an image has the same logits and gradients whatever it is batched with.
_MULTIPLE = 8

Cotangent = Callable[[Tensor, slice], Tensor]
"""(logits of a block (b, classes), rows of the block) -> gradient of the objective by these logits."""


class Evaluator:
    """A network in eval mode, as a context; afterwards it is in the mode it was in before.

    Attributes:
        forwards, backwards: images passed forward, and images a gradient was taken for, so far.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        values = max(1, x[0].numel()) if len(x) else 1
        per_block = _BLOCK_VALUES["cuda" if x.is_cuda else "cpu"] // values
        self.block = max(_MULTIPLE, per_block // _MULTIPLE * _MULTIPLE)
        self.forwards = 0
        self.backwards = 0
        self.model = model

    def __enter__(self) -> Evaluator:
        self._were_training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for module in self._were_training:
            module.training = True

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, …)."""
        self.forwards += len(x)
        if not len(x):
            return x.new_zeros(0, 1)
        parts = [self.model(_padded(part))[: len(part)] for part in x.split(self.block)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def predict(self, x: Tensor) -> Tensor:
        """Predicted classes (n,)."""
        return self.logits(x).argmax(1)

    def gradients(self, x: Tensor, *cotangents: Cotangent) -> tuple[Tensor, ...]:
        """Logits (n, classes) and, for each cotangent, the gradient of its objective by `x`.

        One forward pass in all and one backward pass per cotangent.
        """
        self.forwards += len(x)
        self.backwards += len(x) * len(cotangents)
        blocks = []
        start = 0
        for part in x.split(self.block):
            rows = slice(start, start + len(part))
            blocks.append(self._block_gradients(part, rows, cotangents))
            start = rows.stop
        return tuple(torch.cat(pieces) for pieces in zip(*blocks, strict=True))

    def _block_gradients(self, part: Tensor, rows: slice, cotangents: tuple[Cotangent, ...]) -> list[Tensor]:
        leaf = _padded(part).detach().requires_grad_()
        with torch.enable_grad():
            out = self.model(leaf)
        logits = out.detach()[: len(part)]
        results = [logits]
        for i, cotangent in enumerate(cotangents):
            by_logits = torch.zeros_like(out)
            by_logits[: len(part)] = cotangent(logits, rows)
            more = i + 1 < len(cotangents)
            results.append(torch.autograd.grad(out, leaf, by_logits, retain_graph=more)[0][: len(part)])
        return results


def _padded(part: Tensor) -> Tensor:
    lacking = -len(part) % _MULTIPLE
    return torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part


def one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """Rows of `like`'s shape (n, classes) with a 1 at each of `classes` (n,).

    Raises:
        ValueError: as `check_classes`.
    """
    check_classes(classes, like)
    return torch.zeros_like(like).scatter_(1, classes[:, None], 1.0)


def check_classes(classes: Tensor, logits: Tensor) -> None:
    """Check that a network has classes (n,), where its logits (n, classes) are on a CPU: a GPU would have to wait.

    Raises:
        ValueError: one of them is higher than its highest.
    """
    if logits.device.type == "cpu" and len(classes) and (highest := int(classes.max())) >= logits.shape[1]:
        raise ValueError(f"class {highest} is none of the network's, which are 0 to {logits.shape[1] - 1}")


def check_images(x: Tensor, y: Tensor, targets: Tensor | None = None) -> None:
    """Check what every attack is given.

    Raises:
        ValueError: `x` is not float32 in [0, 1] with a batch axis, or `y` or `targets` is not int64 (n,), or negative.
    """
    if x.dtype != torch.float32 or x.ndim < 2:
        raise ValueError(f"x must be float32 images (n, channels, height, width), not {x.dtype} {tuple(x.shape)}")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"x must lie in [0, 1], not in [{float(x.min()):g}, {float(x.max()):g}]")
    for name, classes in (("y", y), ("targets", targets)):
        if classes is not None and (classes.dtype != torch.int64 or classes.shape != (len(x),)):
            raise ValueError(
                f"{name} must be int64 classes of shape ({len(x)},), not {classes.dtype} {tuple(classes.shape)}"
            )
        if classes is not None and len(classes) and int(classes.min()) < 0:
            raise ValueError(f"{name} must be classes from 0 up, not {int(classes.min())}")

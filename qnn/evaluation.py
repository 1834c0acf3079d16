"""What a network says of images, and how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.data import Batches, Split

EVALUATION_BATCH = 1000


@torch.no_grad()
def predict(net: nn.Module, images: Tensor, *, batch_size: int = EVALUATION_BATCH) -> Tensor:
    """Logits (n, classes) of float32 images, a batch at a time, in eval mode, on the images' device."""
    net.eval()
    return torch.cat([net(part) for part in images.split(batch_size)])


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Accuracy and mean cross-entropy on a split."""
    net = net.to(device).eval()
    correct, loss = 0, 0.0
    for images, labels in Batches(split, EVALUATION_BATCH, device=device):
        logits = net(images)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": correct / len(split), "loss": loss / len(split)}

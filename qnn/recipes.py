"""What a training is asked for: a recipe, and the plain objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

TrainingPrecision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: called with parameter groups.
        scheduler: called with the optimiser, and with `total_steps` where it steps per batch.
        scheduler_interval: ``epoch`` or ``step``.
        weight_decay: L2 coefficient (added to the gradient) of the parameters whose names match
            `decayed`, a regular expression; no other parameter decays.
        crop, flip: augmentation, see `Batches`.
        steps_per_epoch: None for one pass over the data.
        stop_below_lr: end the training once the learning rate falls below this.
        precision: of the convolutions and linear layers, and of what is between them and the quantisers:
            ``32-true``, or ``bf16-mixed``, faster where the hardware has bfloat16. Weights, quantisers and losses are
            float32 in either case, as is the trained network.

    Raises:
        ValueError: unknown precision.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[[Iterable[Any]], Optimizer]
    scheduler: Callable[..., LRScheduler] | None = None
    scheduler_interval: str = "epoch"
    weight_decay: float = 0.0
    decayed: str = ".*"
    crop: int = 0
    flip: bool = False
    steps_per_epoch: int | None = None
    stop_below_lr: float = 0.0
    precision: TrainingPrecision = "32-true"

    def __post_init__(self) -> None:
        if self.precision not in get_args(TrainingPrecision):
            raise ValueError(f"precision={self.precision} is unknown: use {' or '.join(get_args(TrainingPrecision))}")


@dataclass(frozen=True)
class Step:
    """Where a training is: the epoch, of how many, and the number of the batch in it, all from 0."""

    epoch: int
    epochs: int
    number: int


class CrossEntropy(nn.Module):
    """The plain objective. An objective returns `loss`, `logits` of the batch, and further figures to log.

    What an objective keeps from step to step are its buffers: they are stored with the checkpoint.
    """

    def forward(self, net: nn.Module, images: Tensor, labels: Tensor, step: Step) -> dict[str, Tensor]:
        logits = net(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

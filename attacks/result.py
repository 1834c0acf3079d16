"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class AttackResult:
    """Adversarial images and what they cost.

    Attributes:
        x_adv: shape and range of the attacked images; an image the attack gave up on is returned clean.
        forwards: images passed forward through the network, in total.
        backwards: images a gradient was taken for, in total.
        perturbation: the universal perturbation (channels, height, width), where there is one.
        extra: further figures of the attack as a whole, such as UAP's passes.
        snapshots: images after chosen iterations, by iteration, from attacks that keep them.
        patch: in [0, 1]: a universal patch (channels, k, k), or each image's own (n, channels, k, k);
            images that resist theirs are returned with it.
        corners: row and column of the top left pixel of each image's patch, (n, 2), int64.
    """

    x_adv: Tensor
    forwards: int
    backwards: int
    perturbation: Tensor | None = None
    extra: dict[str, float] = field(default_factory=dict)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    patch: Tensor | None = None
    corners: Tensor | None = None

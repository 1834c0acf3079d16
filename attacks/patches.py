"""What patch attacks share: where a patch may lie, how it is laid on images, and the searches for one patch or many.

A patch P covers a square M of an image x at a place ℓ: A(x, P, ℓ) = (1 − M) x + M ((1 − opacity) x + opacity P).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.evaluation import Cotangent, Evaluator, check_classes, check_images
from attacks.losses import exact_cross_entropy, margin, runner_up
from attacks.native.randomness import per_image_generators
from attacks.parameters import check_choices, check_parameters
from attacks.result import AttackResult

Placement = Literal["corners", "random", "anywhere", "fixed"]
Loss = Literal["cross_entropy", "margin"]

# Top, left, height and width of what PBAT (Rao et al. 2020) keeps free of patches in images of 32×32.
_CENTRE_BOX = (11, 11, 10, 10)
_CENTRE_BOX_IN = 32

_GRADIENTS: dict[str, Callable[..., Cotangent]] = {"cross_entropy": exact_cross_entropy, "margin": margin}


def check_settings(attack: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Check the choices and ranges of an attack's settings.

    Raises:
        ValueError: says the name, the value and what it must be.
    """
    check_choices(attack, settings)
    check_parameters(settings)
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"attack.{name}=None is out of range: it must be a number")


def check_patchable(x: Tensor, y: Tensor, targets: Tensor | None = None) -> None:
    """Check the images and classes a patch attack is given.

    Raises:
        ValueError: as `check_images`, or images without channels, height and width.
    """
    check_images(x, y, targets)
    if x.ndim != 4:
        raise ValueError(f"x must be images (n, channels, height, width), not {tuple(x.shape)}")


def centre_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right (exclusive) of the main object's box: PBAT's, scaled to the image.

    >>> centre_box(32, 32), centre_box(224, 224)
    ((11, 11, 21, 21), (77, 77, 147, 147))
    """
    top, left, tall, wide = _CENTRE_BOX
    down, across = height / _CENTRE_BOX_IN, width / _CENTRE_BOX_IN
    return round(top * down), round(left * across), round((top + tall) * down), round((left + wide) * across)


@dataclass(frozen=True, eq=False)
class Placing:
    """Where square patches may lie in images of one shape, and how they are laid there.

    Attributes:
        allowed: (height − size + 1, width − size + 1), True where the top left pixel of a patch may be.
        size: side of the patches in pixels.
        opacity: share of the patch in the pixels it covers, in (0, 1].
    """

    allowed: Tensor
    size: int
    opacity: float

    @classmethod
    def on(cls, x: Tensor, size: int, placement: Placement, row: int, column: int, opacity: float) -> Placing:
        """Places in images like `x` (n, c, h, w).

        Raises:
            ValueError: the patch is larger than the image, or no place is allowed.
        """
        height, width = x.shape[2:]
        allowed = _allowed(height, width, size, placement, row, column)
        return cls(allowed.to(x.device), size, opacity)

    @functools.cached_property
    def places(self) -> Tensor:
        """Rows and columns of all m allowed places, (m, 2)."""
        return self.allowed.nonzero()

    def draw(self, generators: Sequence[Generator]) -> Tensor:
        """A place for each image from its own generator, (n, 2)."""
        picks = torch.empty(len(generators), dtype=torch.int64, device=self.allowed.device)
        for pick, generator in zip(picks, generators, strict=True):
            pick.random_(len(self.places), generator=generator)
        return self.places[picks]

    def draw_many(self, n: int, generator: Generator) -> Tensor:
        """Places for n images from one generator, (n, 2)."""
        return self.places[torch.randint(len(self.places), (n,), generator=generator, device=self.allowed.device)]

    def holds(self, corners: Tensor) -> Tensor:
        """Which of the places (n, 2), inside the image or not, are allowed, (n,)."""
        last = torch.tensor(self.allowed.shape, device=corners.device) - 1
        inside = ((corners >= 0) & (corners <= last)).all(1)
        nearest = torch.minimum(corners.clamp(min=0), last)
        return inside & self.allowed[nearest[:, 0], nearest[:, 1]]

    def compose(self, x: Tensor, patch: Tensor, corners: Tensor) -> Tensor:
        """`x` (n, c, h, w) with a patch (c, k, k), or each image with its own (n, c, k, k), at `corners` (n, 2)."""
        within = torch.arange(self.size, device=x.device)
        pixels = (
            torch.arange(len(x), device=x.device).view(-1, 1, 1, 1),
            torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1),
            (corners[:, :1] + within)[:, None, :, None],
            (corners[:, 1:] + within)[:, None, None, :],
        )
        return x.index_put(pixels, (1 - self.opacity) * x[pixels] + self.opacity * patch)

    def compose_turned(self, x: Tensor, patch: Tensor, corners: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
        """As `compose`, each patch turned and scaled about the centre of its square, bilinearly.

        A turned or enlarged patch reaches beyond its square, and is cut off at the border of the image.

        Args:
            angles: in degrees, (n,).
            scales: 1 is the patch's own size, (n,).
        """
        grid = F.affine_grid(_to_patch(x, corners, self.size, angles, scales), list(x.shape), align_corners=False)
        with_mask = torch.cat([patch, torch.ones_like(patch[..., :1, :, :])], dim=-3)
        laid = F.grid_sample(with_mask.expand(len(x), -1, -1, -1), grid, align_corners=False)
        return x * (1 - self.opacity * laid[:, -1:]) + self.opacity * laid[:, :-1]


def _allowed(height: int, width: int, size: int, placement: Placement, row: int, column: int) -> Tensor:
    if size > min(height, width):
        raise ValueError(
            f"attack.size={size} does not fit into images of {height}×{width}:"
            f" use at most {_largest_size(height, width, placement)}"
        )
    last_row, last_column = height - size, width - size
    allowed = torch.ones(last_row + 1, last_column + 1, dtype=torch.bool)
    if placement == "anywhere":
        return allowed
    if placement == "fixed":
        if row > last_row or column > last_column:
            raise ValueError(
                f"attack.row={row} and attack.column={column} put a patch of {size}×{size} beyond an image of"
                f" {height}×{width}: use at most {last_row} and {last_column}"
            )
        fixed = torch.zeros_like(allowed)
        fixed[row, column] = True
        return fixed
    top, left, bottom, right = centre_box(height, width)
    rows, columns = torch.arange(last_row + 1)[:, None], torch.arange(last_column + 1)
    clear_rows = (rows + size <= top) | (rows >= bottom)
    clear_columns = (columns + size <= left) | (columns >= right)
    allowed = clear_rows & clear_columns if placement == "corners" else clear_rows | clear_columns
    if not allowed.any():
        raise ValueError(
            f"attack.size={size} leaves no place beside the centre of images of {height}×{width}: use at most"
            f" {_largest_size(height, width, placement)}, or attack.placement=anywhere"
        )
    return allowed


def _largest_size(height: int, width: int, placement: Placement) -> int:
    """Side of the largest patch that has a place."""
    if placement in ("anywhere", "fixed"):
        return min(height, width)
    top, left, bottom, right = centre_box(height, width)
    beside = max(top, height - bottom), max(left, width - right)
    return min(beside) if placement == "corners" else min(height, width, max(beside))


def _to_patch(x: Tensor, corners: Tensor, size: int, angles: Tensor, scales: Tensor) -> Tensor:
    """Affine maps (n, 2, 3) from an image's coordinates in [−1, 1] to those of the patch lying in it."""
    half = torch.tensor([x.shape[3] / 2, x.shape[2] / 2], device=x.device)
    centres = corners.flip(1) + size / 2
    radians = torch.deg2rad(angles)
    turned = torch.stack([radians.cos(), radians.sin(), -radians.sin(), radians.cos()], 1).view(-1, 2, 2)
    linear = turned * (2 / (size * scales))[:, None, None]
    return torch.cat([linear * half, linear @ (half - centres)[:, :, None]], 2)


@dataclass(frozen=True, eq=False)
class Objective:
    """What a patch raises: a loss away from the labels, or its negative towards the targets.

    Attributes:
        goal: labels, or targets if `targeted`, (n,).
        loss: ``cross_entropy`` of the goal, or ``margin``: largest other logit minus that of the goal.
    """

    goal: Tensor
    targeted: bool
    loss: Loss

    def __getitem__(self, rows: Tensor) -> Objective:
        return Objective(self.goal[rows], self.targeted, self.loss)

    @property
    def sign(self) -> int:
        return -1 if self.targeted else 1

    def cotangent(self) -> Cotangent:
        """Its gradient by the logits, summed over images."""
        return _GRADIENTS[self.loss](self.goal, sign=self.sign)

    def values(self, logits: Tensor) -> Tensor:
        """Of logits (n, classes), (n,)."""
        check_classes(self.goal, logits)
        if self.loss == "cross_entropy":
            return self.sign * F.cross_entropy(logits, self.goal, reduction="none")
        own, other = (logits.gather(1, which[:, None])[:, 0] for which in (self.goal, runner_up(logits, self.goal)))
        return self.sign * (other - own)

    def reached(self, logits: Tensor) -> Tensor:
        """Which images are broken: not the label, or the target, (n,)."""
        return (logits.argmax(1) == self.goal) == self.targeted


def objective_of(y: Tensor, targets: Tensor | None, loss: Loss) -> Objective:
    return Objective(y if targets is None else targets, targets is not None, loss)


def sign_step(patch: Tensor, gradient: Tensor, step: float) -> Tensor:
    """A patch in [0, 1] one step further along the sign of the gradient."""
    return (patch + step * gradient.sign()).clamp_(0, 1)


def grey_patch(x: Tensor, size: int) -> Tensor:
    """A patch (c, size, size) of 0.5 for images like `x`."""
    return torch.full((x.shape[1], size, size), 0.5, device=x.device)


def fill_uniform(values: Tensor, generators: Sequence[Generator]) -> None:
    """Fill each row of `values` with numbers of [0, 1) from its own generator."""
    for row, generator in zip(values, generators, strict=True):
        row.uniform_(generator=generator)


@dataclass(frozen=True, eq=False)
class Best:
    """The best patch of each search so far: one that breaks its image first, then the largest objective.

    Attributes:
        patch: (n, c, k, k).
        corners: (n, 2).
        value: of the objective, (n,); NaN where nothing was found yet.
        broken: (n,).
    """

    patch: Tensor
    corners: Tensor
    value: Tensor
    broken: Tensor

    @classmethod
    def none(cls, n: int, grey: Tensor) -> Best:
        return cls(
            grey.repeat(n, 1, 1, 1),
            torch.zeros(n, 2, dtype=torch.int64, device=grey.device),
            torch.full((n,), math.nan, device=grey.device),
            torch.zeros(n, dtype=torch.bool, device=grey.device),
        )

    def update(self, rows: Tensor, found: Best) -> None:
        """Take over, of what was found for `rows`, what is better."""
        higher = ~(found.value <= self.value[rows])  # NaN gives way to anything
        better = torch.where(found.broken == self.broken[rows], higher, found.broken)
        chosen = rows[better]
        self.patch[chosen], self.corners[chosen] = found.patch[better], found.corners[better]
        self.value[chosen], self.broken[chosen] = found.value[better], found.broken[better]


@dataclass(frozen=True, eq=False)
class Scene:
    """Images (n, c, h, w), where patches may lie on them, and what these are to do to a network."""

    network: Evaluator
    placing: Placing
    images: Tensor
    objective: Objective

    def __getitem__(self, rows: Tensor) -> Scene:
        return Scene(self.network, self.placing, self.images[rows], self.objective[rows])

    def lay(self, corners: Tensor) -> Callable[[Tensor], Tensor]:
        """A patch, or one for each image -> the images with it at `corners` (n, 2)."""
        return functools.partial(self.placing.compose, self.images, corners=corners)

    def evaluate(self, patch: Tensor, corners: Tensor) -> Best:
        """Patches (n, c, k, k) at their places, with what they achieve; one forward pass."""
        logits = self.network.logits(self.lay(corners)(patch))
        return Best(patch, corners, self.objective.values(logits), self.objective.reached(logits))

    def gradients(self, lay: Callable[[Tensor], Tensor], patch: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) of the images `lay(patch)`, and the gradient of the objective's sum by the patch.

        The network's gradient by the images is pulled back through `lay`, whatever that does; one pass
        forward and one back.
        """
        leaf = patch.detach().requires_grad_()
        with torch.enable_grad():
            laid = lay(leaf)
        logits, by_images = self.network.gradients(laid.detach(), self.objective.cotangent())
        return logits, torch.autograd.grad(laid, leaf, by_images.nan_to_num(0.0))[0]


Attempt = Callable[[Scene, Tensor, Tensor, Sequence[Generator]], Best]
"""(images to break, first patches (n, c, k, k), first places (n, 2), a generator for each) -> what was found."""


def attack_each(scene: Scene, num_random_init: int, seed: int, attempt: Attempt, *, early_stop: bool) -> AttackResult:
    """A patch for each image: attempts from random patches and places, up to the first success with `early_stop`."""
    x, placing = scene.images, scene.placing
    generators = per_image_generators(seed, len(x), x.device)
    grey = grey_patch(x, placing.size)
    best = Best.none(len(x), grey)
    unbroken = torch.arange(len(x), device=x.device)
    for _ in range(max(1, num_random_init)):
        if not len(unbroken):
            break
        own = [generators[i] for i in unbroken.tolist()]
        corners = placing.draw(own)
        patch = grey.repeat(len(own), 1, 1, 1)
        if num_random_init:
            fill_uniform(patch, own)
        found = attempt(scene[unbroken], patch, corners, own)
        best.update(unbroken, found)
        if early_stop:
            unbroken = unbroken[~found.broken]
    return per_image_result(scene, best)


def per_image_result(scene: Scene, best: Best) -> AttackResult:
    """The images, each with the best patch found for it."""
    network, x_adv = scene.network, scene.lay(best.corners)(best.patch)
    return AttackResult(x_adv, network.forwards, network.backwards, patch=best.patch, corners=best.corners)


def crafting_set(
    x: Tensor,
    y: Tensor,
    targets: Tensor | None,
    craft_on: tuple[Tensor, Tensor] | None,
    loss: Loss,
    *,
    universal: bool = True,
) -> tuple[Tensor, Objective]:
    """Images to craft patches on, and the objective there.

    For a universal patch those of `craft_on`, if given; else `x` itself. With targets (0,) for no images
    there is no class to craft for, so no image either.

    Raises:
        ValueError: images or labels that are none, or of another shape than `x`; for a universal patch
            targets of several classes; `craft_on` for any other.
    """
    if not universal and craft_on is not None:
        raise ValueError("a patch for each image is crafted on it alone: leave craft_on out (attack.craft=attacked)")
    if universal and targets is not None and len(targets.unique()) > 1:
        raise ValueError("a universal patch has one target class: give all images the same target")
    if craft_on is None:
        return x, objective_of(y, targets, loss)
    images, labels = craft_on
    check_patchable(images, labels)
    if images.shape[1:] != x.shape[1:]:
        raise ValueError(f"craft_on has images of shape {tuple(images.shape[1:])}, x of {tuple(x.shape[1:])}")
    if targets is None:
        return images, objective_of(labels, None, loss)
    if not len(targets):
        return images[:0], objective_of(labels[:0], targets, loss)
    return images, objective_of(labels, targets[:1].expand(len(images)), loss)


def craft(
    scene: Scene,
    patch: Tensor,
    laying: Callable[[Scene], Callable[[Tensor], Tensor]],
    update: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    max_iter: int,
    generator: Generator,
) -> Tensor:
    """A universal patch (c, k, k) after `max_iter` steps, each on `batch_size` images drawn anew.

    Args:
        laying: chosen images -> how a patch is laid on them.
        update: (patch, gradient of the objective's sum) -> next patch.
    """
    n = len(scene.images)
    for _ in range(max_iter if n else 0):
        chosen = scene[torch.randperm(n, generator=generator, device=patch.device)[:batch_size]]
        _, gradient = chosen.gradients(laying(chosen), patch)
        patch = update(patch, gradient)
    return patch


def fooling_rate(scene: Scene, patch: Tensor, seed: int) -> float:
    """Share of the images that a universal patch (c, k, k) breaks, at places that follow from the seed alone."""
    n = len(scene.images)
    if not n:
        return 0.0
    corners = scene.placing.draw(per_image_generators(seed, n, patch.device))
    return int(scene.evaluate(patch, corners).broken.sum()) / n


def universal_result(scene: Scene, x: Tensor, patch: Tensor, rate: float, seed: int) -> AttackResult:
    """`x` with one patch (c, k, k) for all images, each at a place of its own, drawn from the seed."""
    corners = scene.placing.draw(per_image_generators(seed, len(x), x.device))
    return AttackResult(
        scene.placing.compose(x, patch, corners),
        scene.network.forwards,
        scene.network.backwards,
        extra={"fooling_rate": rate},
        patch=patch,
        corners=corners,
    )

"""Training against adversarial patches across bit widths: what each defence does in a step.

`Defence` is one step with its choices: the widths it trains, where its adversarial images come from and at
which width, and what is added to the loss. The defences of `conf/defence` are settings of it:
plain quantisation-aware training, PBAT (Rao et al. 2020), DWQ (Fu et al. 2021), QADT-R, re-implemented from its
abstract, and TriQDef (arXiv 2508.12132).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnn.precision import Precision
from qnn.recipes import Step
from qnn.regularizers import FeatureDisalignment, GradientInconsistency, GradientNoise, Regularizer, stage_ends
from qnn.switchable import set_width, widths_of

Order = Literal["cycle", "cycle_shuffled", "random", "epoch", "all", "lowest"]
AttackWidth = Literal["trained", "full", "mixed", "adaptive"]

_NEWEST = 0.1


class Attacked(Protocol):
    """What is used of an attack's result."""

    x_adv: Tensor


@dataclass(frozen=True)
class Schedule:
    """Which widths are trained when (DBWT, dynamic bit-width training).

    Attributes:
        widths: the active ones, as in ``("FP", "8", "2")``; none for a network of one width.
        order: ``cycle`` (one per step, in turn; each epoch begins one further than the one before it),
            ``cycle_shuffled`` (in a fresh order each round), ``random`` (drawn for each step, as in DWQ), ``epoch``
            (one per epoch, in turn), ``all`` in every step, or ``lowest`` (that one alone: the others are there to be
            attacked at).
        enters: the share of the training after which a width becomes active; 0 for those not named.
    """

    widths: tuple[str, ...] = ()
    order: Order = "cycle_shuffled"
    enters: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order={self.order} is unknown: use {', '.join(get_args(Order))}")
        unknown = sorted(set(self.enters or {}) - set(self.widths))
        if unknown:
            raise ValueError(f"enters names widths that are not trained: {', '.join(unknown)}")
        if self.widths and min(map(self._entry, self.widths)) > 0:
            raise ValueError("enters leaves no width to begin with: one must enter at 0")

    def _entry(self, width: str) -> float:
        return (self.enters or {}).get(width, 0.0)

    def never_trained(self, epochs: int, steps_per_epoch: int | None = None) -> tuple[str, ...]:
        """The widths that have no turn in any step; for ``random`` and ``lowest``, those that never enter.

        Args:
            steps_per_epoch: None: at least as many as there are widths.
        """
        # an epoch in which each of the widths could have had a turn has no new ones later
        counted = len(self.widths) if steps_per_epoch is None else min(steps_per_epoch, len(self.widths))
        turns = self.active if self.order in ("random", "lowest") else self.trained
        steps = (Step(epoch, epochs, number) for epoch in range(max(1, epochs)) for number in range(counted))
        had = {width for step in steps for width in turns(step)}
        return tuple(width for width in self.widths if width not in had)

    @property
    def ever_trained(self) -> tuple[str, ...]:
        """The widths that a long enough training trains."""
        return tuple(sorted(self.widths, key=_bits)[:1]) if self.order == "lowest" else self.widths

    def active(self, step: Step) -> tuple[str, ...]:
        """The widths that have entered."""
        return tuple(width for width in self.widths if step.epoch >= self._entry(width) * step.epochs)

    def trained(self, step: Step) -> tuple[str, ...]:
        """The widths of a step. ``random`` draws from torch's generator; the others depend on the step alone."""
        active = self.active(step)
        if not active or self.order == "all":
            return active
        if self.order == "lowest":
            return (min(active, key=_bits),)
        if self.order == "random":
            return (active[int(torch.randint(len(active), ()))],)
        if self.order == "epoch":
            return (active[step.epoch % len(active)],)
        if self.order == "cycle":
            return (active[(step.epoch + step.number) % len(active)],)
        turn, place = divmod(step.number, len(active))
        shuffle = torch.Generator().manual_seed(1_000_003 * step.epoch + turn)
        return (active[int(torch.randperm(len(active), generator=shuffle)[place])],)


class Defence(nn.Module):
    """A training objective: cross-entropy of clean and of adversarial images, and regularisers.

    Args:
        widths: trained widths of a switchable network; None, or that width alone, for a network of one width.
        order, enters: see `Schedule`.
        adversary: ``adversary(net, images, labels, seed=…)`` whose result has `x_adv`; None: clean training.
        share: of each batch that is replaced by adversarial images.
        clean_weight, adversarial_weight: of the mean cross-entropy of the clean and the adversarial images.
        attack_width: where adversarial images are made: at the ``trained`` width of the step; at the highest
            active (``full``); at the trained one with probability ½ and else at another active one, drawn for
            every evaluation (``mixed``, the A-QAPA of QADT-R); or drawn in proportion to how often images have
            lately succeeded at each (``adaptive``).
        regularizers: added to the loss, each with its own weight; they see adversarial images.
        gradient_noise: noise in the backward pass of the training loss; None for none.

    Raises:
        ValueError: an unknown choice, or a share outside [0, 1].
    """

    success: Tensor

    def __init__(
        self,
        *,
        widths: Sequence[str | int] | None = None,
        order: Order = "cycle_shuffled",
        enters: Mapping[str, float] | None = None,
        adversary: Callable[..., Attacked] | None = None,
        share: float = 0.5,
        clean_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        attack_width: AttackWidth = "trained",
        regularizers: Sequence[Regularizer] = (),
        gradient_noise: GradientNoise | None = None,
    ) -> None:
        super().__init__()
        if attack_width not in get_args(AttackWidth):
            raise ValueError(f"attack_width={attack_width} is unknown: use {', '.join(get_args(AttackWidth))}")
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} is out of range: it must be a number in [0, 1]")
        if regularizers and adversary is None:
            raise ValueError("the regularisers see adversarial images only: give an adversary")
        names = tuple(dict.fromkeys(str(Precision.parse(width)) for width in widths or ()))
        if len(names) == 1:
            names, enters = (), None
        entries = {str(Precision.parse(width)): entry for width, entry in (enters or {}).items()}
        self.schedule = Schedule(names, order, entries)
        self.adversary, self.share, self.attack_width = adversary, share, attack_width
        self.clean_weight, self.adversarial_weight = clean_weight, adversarial_weight
        self.regularizers, self.gradient_noise = tuple(regularizers), gradient_noise
        self.register_buffer("success", torch.ones(len(names)))

    @property
    def trained_widths(self) -> tuple[str, ...]:
        """The widths that are trained, and so are validated; none for a network of one width."""
        return self.schedule.ever_trained

    def check(self, net: nn.Module, epochs: int, steps_per_epoch: int | None = None) -> None:
        """Raise ValueError if a network cannot be trained like this, or not at all its widths in so many epochs.

        Args:
            steps_per_epoch: None: at least as many as there are widths.
        """
        if lacking := sorted(set(self.schedule.widths) - set(widths_of(net))):
            raise ValueError(f"widths {', '.join(lacking)} are to be trained, but the network does not run at them")
        if late := self.schedule.never_trained(epochs, steps_per_epoch):
            length = f"{epochs} epochs" if steps_per_epoch is None else f"{epochs} epochs of {steps_per_epoch} steps"
            raise ValueError(f"{length} are too few: widths {', '.join(late)} would never be trained")
        if self.gradient_noise is not None or any(isinstance(term, FeatureDisalignment) for term in self.regularizers):
            stage_ends(net)

    def forward(self, net: nn.Module, images: Tensor, labels: Tensor, step: Step) -> dict[str, Tensor]:
        """`loss`, `logits` of the images as they were trained on, and the parts of the loss by name."""
        active, trained = self.schedule.active(step), self.schedule.trained(step)
        count = round(self.share * len(images)) if self.adversary is not None else 0
        inputs = images
        if count:
            attacked = self._attack(net, images[:count], labels[:count], trained, active)
            inputs = torch.cat([attacked, images[count:]])
        weighted: dict[str, tuple[float, Tensor]] = {}
        for width in trained or (None,):
            logits = self._forward_at(width, net, inputs)
            self._note_success(width, logits[:count], labels[:count])
            share = 1 / max(1, len(trained))
            for name, weight, rows in (
                ("adversarial_loss", self.adversarial_weight, slice(count)),
                ("clean_loss", self.clean_weight, slice(count, None)),
            ):
                if len(labels[rows]):
                    value = share * F.cross_entropy(logits[rows], labels[rows])
                    weighted[name] = (weight, weighted[name][1] + value if name in weighted else value)
        for regularizer in self.regularizers if count else ():
            value = regularizer(net, inputs[:count], labels[:count], trained, active)
            weighted[regularizer.name] = (regularizer.weight, value)
        if trained:
            set_width(net, trained[-1])
        loss = torch.stack([weight * value for weight, value in weighted.values()]).sum()
        return {"loss": loss, "logits": logits, **{name: value.detach() for name, (_, value) in weighted.items()}}

    def _forward_at(self, width: str | None, net: nn.Module, inputs: Tensor) -> Tensor:
        if width is not None:
            set_width(net, width)
        if self.gradient_noise is None:
            return net(inputs)
        with self.gradient_noise.in_backward_of(net):
            return net(inputs)

    def _attack(
        self, net: nn.Module, images: Tensor, labels: Tensor, trained: tuple[str, ...], active: tuple[str, ...]
    ) -> Tensor:
        assert self.adversary is not None
        view = _AtDrawnWidth(net, lambda: self._draw(trained, active)) if trained else net
        seed = int(torch.randint(2**31, ()))
        return self.adversary(view, images, labels, seed=seed).x_adv.detach()

    def _draw(self, trained: tuple[str, ...], active: tuple[str, ...]) -> str:
        own = trained[int(torch.randint(len(trained), ()))]
        others = [width for width in active if width != own]
        if self.attack_width == "full":
            return max(active, key=_bits)
        if self.attack_width == "adaptive":
            chances = self.success[[self.schedule.widths.index(width) for width in active]].clamp(min=0.01)
            return active[int(torch.multinomial(chances, 1))]
        if self.attack_width == "mixed" and others and torch.rand(()) < 0.5:
            return others[int(torch.randint(len(others), ()))]
        return own

    @torch.no_grad()
    def _note_success(self, width: str | None, logits: Tensor, labels: Tensor) -> None:
        if width is not None and len(labels):
            rate = (logits.argmax(1) != labels).float().mean()
            self.success[self.schedule.widths.index(width)].lerp_(rate, _NEWEST)


def _bits(width: str) -> tuple[float, float]:
    """What widths are ordered by: the lower of weights and activations, then the higher; FP is infinite."""
    precision = Precision.parse(width)
    low, high = sorted(math.inf if bits is None else bits for bits in (precision.weights, precision.activations))
    return low, high


def qadt_r(
    *,
    widths: Sequence[str | int],
    adversary: Callable[..., Attacked],
    a_qapa: bool = True,
    dbwt: bool = True,
    gir: Literal["inconsistency", "noise", "none"] = "inconsistency",
    warm_up: float = 0.1,
    gir_weight: float = 0.5,
    gir_sigma: float | None = None,
) -> Defence:
    """QADT-R as we read its abstract, with its three parts to be switched off one by one.

    Args:
        a_qapa: make patches at the trained width and at others; off: at the highest width only, that is
            without quantisation.
        dbwt: train the widths in turn; off: train the lower of two alone.
        gir: ``inconsistency`` (a regulariser), ``noise`` (on the gradients of the training) or ``none``.
        warm_up: the share of the training in which widths with weights or activations below 8 bits are not yet
            trained (with `dbwt`); the highest width is.
        gir_sigma: None: 0.05 for the regulariser, 0.1 for the noise.
    """
    choices = {"inconsistency": 0.05, "noise": 0.1, "none": 0.0}
    if gir not in choices:
        raise ValueError(f"gir={gir} is unknown: use {', '.join(choices)}")
    sigma = choices[gir] if gir_sigma is None else gir_sigma
    if not dbwt and len(widths) > 2:
        raise ValueError(
            "dbwt=false trains the lowest width alone, so the others would be left as they are: give it one width and"
            " FP, as defence=qadt_r_fixed does"
        )
    names = [str(Precision.parse(width)) for width in widths]
    return Defence(
        widths=names,
        order="cycle_shuffled" if dbwt else "lowest",
        enters={name: warm_up for name in names if dbwt and _bits(name)[0] < 8 and name != max(names, key=_bits)},
        adversary=adversary,
        attack_width="mixed" if a_qapa else "full",
        regularizers=(GradientInconsistency(gir_weight, sigma),) if gir == "inconsistency" else (),
        gradient_noise=GradientNoise(sigma) if gir == "noise" else None,
    )


class _AtDrawnWidth(nn.Module):
    """A network whose width is drawn anew for every forward pass."""

    def __init__(self, net: nn.Module, draw: Callable[[], str]) -> None:
        super().__init__()
        self.net, self.draw = net, draw

    def forward(self, x: Tensor) -> Tensor:
        set_width(self.net, self.draw())
        return self.net(x)

"""What defences add to the training loss: terms that keep the gradients or features of two widths apart.

All look at no more than `images` images, because the gradient of a gradient costs several passes, and at the network
in eval mode, as an attacker does, but for its batch norms, which take the statistics of these images. With running
statistics, which are constants to the optimiser, a training learns to let them go wrong, which lowers the term and
costs it nothing: a ResNet-20 was right on 91 % of its training images and, in eval mode, on 27 % of the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from qnn.similarity import feature_map, gradient_map, structural_similarity_loss
from qnn.switchable import set_width


class Regularizer(Protocol):
    """A term of the loss: its mean over images, to be multiplied by `weight`; 0 unless two widths are active."""

    name: str
    weight: float

    def __call__(
        self, net: nn.Module, x_adv: Tensor, labels: Tensor, trained: Sequence[str], active: Sequence[str]
    ) -> Tensor: ...


class GradientInconsistency:
    """The positive part of the cosine of the input gradients at two widths (GIR, read as a regulariser; our choice).

    QADT-R's abstract says only that "controlled gradient perturbations" are injected. Here
    mean_i max(0, cos(g_b + σ‖g_b‖ξ/√d, g_b′)) with b the trained width, b′ another active one and ξ ~ N(0, 1).
    """

    name = "gradient_inconsistency"

    def __init__(self, weight: float = 0.5, sigma: float = 0.05, images: int = 32) -> None:
        self.weight, self.sigma, self.images = weight, sigma, images

    def __call__(
        self, net: nn.Module, x_adv: Tensor, labels: Tensor, trained: Sequence[str], active: Sequence[str]
    ) -> Tensor:
        others = [width for width in active if width not in trained[:1]]
        if not others:
            return x_adv.new_zeros(())
        other = others[int(torch.randint(len(others), ()))]
        own, theirs = (
            gradient.flatten(1)
            for gradient in input_gradients(net, x_adv[: self.images], labels[: self.images], (trained[0], other))
        )
        spread = self.sigma * own.norm(dim=1, keepdim=True) / own.shape[1] ** 0.5
        return F.cosine_similarity(own + spread * torch.randn_like(own), theirs).clamp(min=0).mean()


class GradientDisalignment:
    """GPDP of TriQDef: structural similarity of the input gradients, mean over all pairs of active widths.

    `alpha`, `beta` and `cell` are those of `qnn.similarity.structural_similarity_loss`.
    """

    name = "gradient_disalignment"

    def __init__(
        self, weight: float = 0.5, alpha: float = 0.5, beta: float = 1.0, images: int = 32, cell: int = 4
    ) -> None:
        self.weight, self.images = weight, images
        self.similarity = partial(structural_similarity_loss, alpha=alpha, beta=beta, cell=cell)

    def __call__(
        self, net: nn.Module, x_adv: Tensor, labels: Tensor, trained: Sequence[str], active: Sequence[str]
    ) -> Tensor:
        if len(active) < 2:
            return x_adv.new_zeros(())
        gradients = input_gradients(net, x_adv[: self.images], labels[: self.images], active)
        return _mean_over_pairs([gradient_map(g) for g in gradients], self.similarity)


class FeatureDisalignment:
    """FDP of TriQDef: structural similarity of features at the stage ends, mean over pairs of widths and layers.

    `alpha`, `beta` and `cell` are those of `qnn.similarity.structural_similarity_loss`.
    """

    name = "feature_disalignment"

    def __init__(
        self, weight: float = 0.8, alpha: float = 0.5, beta: float = 1.0, images: int = 32, cell: int = 4
    ) -> None:
        self.weight, self.images = weight, images
        self.similarity = partial(structural_similarity_loss, alpha=alpha, beta=beta, cell=cell)

    def __call__(
        self, net: nn.Module, x_adv: Tensor, labels: Tensor, trained: Sequence[str], active: Sequence[str]
    ) -> Tensor:
        if len(active) < 2:
            return x_adv.new_zeros(())
        by_width = [stage_features(net, x_adv[: self.images], width) for width in active]
        layers = [
            _mean_over_pairs([feature_map(f) for f in layer], self.similarity) for layer in zip(*by_width, strict=True)
        ]
        return torch.stack(layers).mean()


class GradientNoise:
    """Noise on the gradients that pass the stage ends in training (GIR, read literally; our choice).

    The forward pass is the identity; backward g + σ · rms(g) · ξ with ξ ~ N(0, 1).
    """

    def __init__(self, sigma: float = 0.1) -> None:
        self.sigma = sigma

    @contextmanager
    def in_backward_of(self, net: nn.Module) -> Iterator[None]:
        """Forward passes within this context get noise in their backward pass."""
        with _after_stages(net, lambda _, __, output: _NoisyBackward.apply(output, self.sigma)):
            yield


class _NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sigma: float) -> Tensor:
        ctx.sigma = sigma
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad + ctx.sigma * grad.square().mean().sqrt() * torch.randn_like(grad), None


def input_gradients(net: nn.Module, x: Tensor, labels: Tensor, widths: Sequence[str]) -> list[Tensor]:
    """The gradient of the summed cross-entropy by `x` at each width, differentiable by the weights."""
    gradients = []
    with _on_batch_statistics(net):
        for width in widths:
            set_width(net, width)
            leaf = x.detach().requires_grad_()
            loss = F.cross_entropy(net(leaf), labels, reduction="sum")
            gradients.append(torch.autograd.grad(loss, leaf, create_graph=True)[0])
    return gradients


def stage_features(net: nn.Module, x: Tensor, width: str) -> list[Tensor]:
    """The outputs of the modules that `net.stage_ends` names, (n, channels, height, width) each."""
    features: list[Tensor] = []
    set_width(net, width)
    with _on_batch_statistics(net), _after_stages(net, lambda _, __, output: features.append(output)):
        net(x)
    return features


def _mean_over_pairs(maps: Sequence[Tensor], similarity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([similarity(a, b).mean() for a, b in itertools.combinations(maps, 2)]).mean()


@contextmanager
def _after_stages(net: nn.Module, hook) -> Iterator[None]:
    with ExitStack() as stack:
        for name in stage_ends(net):
            stack.callback(net.get_submodule(name).register_forward_hook(hook).remove)
        yield


def stage_ends(net: nn.Module) -> tuple[str, ...]:
    """The modules that end a network's stages; raises ValueError if it does not name any."""
    ends = getattr(net, "stage_ends", None)
    if not ends:
        raise ValueError(f"{type(net).__name__} does not say where its stages end: give it a property `stage_ends`")
    return tuple(ends)


@contextmanager
def _on_batch_statistics(net: nn.Module) -> Iterator[None]:
    """Eval mode, but for batch norms, which take the statistics of the batch and leave the running ones alone."""
    were_training = [module for module in net.modules() if module.training]
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    net.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        net.eval()
        for norm in norms:
            norm.track_running_stats = True
        for module in were_training:
            module.training = True

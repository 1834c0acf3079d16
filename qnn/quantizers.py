"""DoReFa quantisers with straight-through gradients (Zhou et al. 2016; seed paper §3.5, eq. 24-27).

All arithmetic is float32, also under autocast: bfloat16 cannot hold 12- or 16-bit levels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qnn.precision import Precision


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Exactly the value of `hard`, with the gradient of `soft` alone; `soft` must be finite."""
    return hard.detach() + (soft - soft.detach())


class _RoundToLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, steps: int) -> Tensor:
        return torch.round(x * steps) / steps

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def quantize_unit(x: Tensor, bits: int) -> Tensor:
    """Round `x` in [0, 1] to the 2^bits levels i / (2^bits - 1); halves go to even; gradient 1 (eq. 24).

    >>> quantize_unit(torch.tensor([0.1, 0.5, 0.9]), bits=1)
    tensor([0., 0., 1.])
    """
    return _RoundToLevels.apply(x, 2**bits - 1)


class _ScaledSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        scale = w.abs().mean()
        return torch.where(w >= 0, scale, -scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class QuantizerModule(nn.Module):
    """What a quantiser puts into a network; a network of several widths has one of each width in its place."""


class DoReFaWeight(QuantizerModule):
    """Quantise a weight tensor over the whole tensor (eq. 25, 26).

    One bit: E|w| · sign(w) with sign(0) = +1 and gradient 1 (no gradient through E|w|).
    k > 1 bits: 2 q_k(tanh w / (2 max|tanh w|) + ½) − 1 in [−1, 1]; the gradient flows through tanh
    and through the maximum.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, w: Tensor) -> Tensor:
        with torch.autocast(w.device.type, enabled=False):
            w = w.float()
            if self.bits == 1:
                return _ScaledSign.apply(w)
            bounded = torch.tanh(w)
            unit = bounded / (2 * bounded.abs().max()) + 0.5
            return 2 * quantize_unit(unit, self.bits) - 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


_BELOW_0 = -torch.finfo(torch.float32).tiny
_ABOVE_1 = 1 + torch.finfo(torch.float32).eps


class _ClipToLevels(torch.autograd.Function):
    """`quantize_unit(x.clamp(0, 1))` in one buffer, with a backward pass in one kernel; `steps` None: no rounding."""

    @staticmethod
    def forward(ctx, x: Tensor, steps: int | None) -> Tensor:
        ctx.save_for_backward(x)
        clipped = x.clamp(0, 1)
        if steps is None:
            return clipped
        return clipped.round_() if steps == 1 else clipped.mul_(steps).round_().div_(steps)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        # hardtanh's gradient is 0 at its bounds, so the bounds lie one float outside [0, 1]
        return torch.ops.aten.hardtanh_backward(grad, x, _BELOW_0, _ABOVE_1), None


def clip_to_levels(x: Tensor, bits: int) -> Tensor:
    """q_k(clip(x, 0, 1)) (eq. 27): gradient 1 inside [0, 1], 0 outside."""
    return _ClipToLevels.apply(x, 2**bits - 1)


class DoReFaActivation(QuantizerModule):
    """`clip_to_levels` of float32 values."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return clip_to_levels(x.float(), self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class ClipWeight(QuantizerModule):
    """DoReFa's weight mapping without rounding: tanh w / max|tanh w| in [−1, 1]."""

    def forward(self, w: Tensor) -> Tensor:
        bounded = torch.tanh(w)
        return bounded / bounded.abs().max()


class ClipActivation(QuantizerModule):
    """DoReFa's activation range without rounding: clip(x, 0, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return _ClipToLevels.apply(x, None)


class _InUnits(nn.Module):
    """A parameter that is learnt as a multiple of a unit."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, multiple: Tensor) -> Tensor:
        return multiple * self.unit

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.unit


def scale_clipped_norms(net: nn.Module, scale: float, *, in_units: bool = False) -> None:
    """Let the batch norms whose output is clipped to [0, 1], perhaps behind a ReLU, start with a smaller scale.

    With PyTorch's, which is 1, a sixth of the activations begin above 1, where their gradient is 0. A scale below one
    quantisation step would round most of them to 0, so that it is `scale` or one step, whichever is more.

    Args:
        in_units: weight and bias are learnt as multiples of that scale, until `learn_norms_plainly`. A learning rate
            then changes them relative to where they start as much as it does PyTorch's, not 1 / scale² times as much.
    """
    for layers in net.modules():
        if isinstance(layers, nn.Sequential):
            kept = [layer for layer in layers if not isinstance(layer, nn.ReLU)]
            for norm, activation in pairwise(kept):
                if isinstance(norm, nn.BatchNorm2d) and isinstance(activation, DoReFaActivation | ClipActivation):
                    step = 0.0 if isinstance(activation, ClipActivation) else 1 / (2**activation.bits - 1)
                    nn.init.constant_(norm.weight, unit := max(scale, step))
                    if in_units:
                        for name in ("weight", "bias"):
                            parametrize.register_parametrization(norm, name, _InUnits(unit))


def learn_norms_plainly(net: nn.Module) -> None:
    """Undo `in_units` of `scale_clipped_norms`; what the norms compute stays."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and parametrize.is_parametrized(norm):
            for name in ("weight", "bias"):
                parametrize.remove_parametrizations(norm, name, leave_parametrized=True)


class Quantizer(Protocol):
    """What a network asks for when it is built; the modules given are `QuantizerModule`, or the identity.

    Attributes:
        topology: the one that goes with it: ``quantized`` (the seed paper's) or ``fp`` (the FP network's,
            whose ReLUs are followed by the activation quantiser).
    """

    topology: Literal["fp", "quantized"]

    def weight(self) -> nn.Module: ...

    def activation(self) -> nn.Module: ...


class DoReFa:
    """DoReFa at the given bit widths; the identity where a width is FP.

    Args:
        bits: ``FP``, ``k`` or ``w1a4`` (see `Precision.parse`).
    """

    def __init__(self, bits: str | int) -> None:
        self.precision = Precision.parse(bits)
        self.topology: Literal["fp", "quantized"] = "fp" if self.precision.is_full else "quantized"

    def weight(self) -> nn.Module:
        bits = self.precision.weights
        return nn.Identity() if bits is None else DoReFaWeight(bits)

    def activation(self) -> nn.Module:
        bits = self.precision.activations
        return nn.Identity() if bits is None else DoReFaActivation(bits)


class ClipOnly:
    """Control: DoReFa's ranges at full precision, so that what is left of an effect is not rounding.

    Raises:
        ValueError: `bits` is not FP.
    """

    topology: Literal["fp", "quantized"] = "quantized"

    def __init__(self, bits: str | int) -> None:
        if not Precision.parse(bits).is_full:
            raise ValueError(f"quantizer=clip_only does not round, so it needs bits=FP, not bits={bits}")

    def weight(self) -> nn.Module:
        return ClipWeight()

    def activation(self) -> nn.Module:
        return ClipActivation()

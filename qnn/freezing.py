"""The network under attack: frozen, so that nothing is computed twice."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qnn.layers import QuantConv2d, QuantLinear, quantize_once


def freeze(net: nn.Module, *, channels_last: bool = True, compile: bool = False) -> nn.Module:
    """A copy for inference and attack: eval mode, no parameter gradients, weights quantised once.

    A batch norm that directly follows a convolution is folded into it, and convolutions run
    channels-last. The copy computes what `net.eval()` computes up to float32 rounding; where that
    meets the threshold of an activation quantiser, a level may differ.

    Args:
        channels_last: memory layout of the convolutions; faster on CPUs (`benchmarks/freezing.md`).
        compile: pass the copy through `torch.compile`; on a CPU each new batch size is compiled anew.
    """
    frozen = quantize_once(copy.deepcopy(net)).eval().requires_grad_(False)
    for name, norm_name in list(_convolutions_before_batch_norm(frozen)):
        conv = cast(nn.Conv2d, frozen.get_submodule(name))
        norm = cast(nn.BatchNorm2d, frozen.get_submodule(norm_name))
        frozen.set_submodule(name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        frozen.set_submodule(norm_name, nn.Identity())
    if channels_last:
        frozen = frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, layer in list(frozen.named_modules()):
            if type(layer) is nn.MaxPool2d and _halves(layer):
                frozen.set_submodule(name, _HalvingMaxPool(2))
    return _compiled(frozen) if compile else frozen


def _compiled(net: nn.Module) -> nn.Module:
    # on CPUs torch 2.13 gets the strides of channels-last convolutions wrong when the batch size is dynamic
    on_cpu = all(parameter.device.type == "cpu" for parameter in net.parameters())
    return cast(nn.Module, torch.compile(net, dynamic=not on_cpu))


class _HalvingMaxPool(nn.MaxPool2d):
    """2×2 max pooling; where no gradient is wanted and the layout allows, rows first and then columns.

    That is four times faster on a CPU than `nn.MaxPool2d`, which also notes where each maximum lay.
    """

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        whole = height % 2 == width % 2 == 0
        if torch.is_grad_enabled() or not whole or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        rows = x.permute(0, 2, 3, 1).view(n, height // 2, 2, width * channels)
        columns = torch.maximum(rows[:, :, 0], rows[:, :, 1]).view(n, height // 2, width // 2, 2, channels)
        return torch.maximum(columns[:, :, :, 0], columns[:, :, :, 1]).permute(0, 3, 1, 2)


def _halves(pool: nn.MaxPool2d) -> bool:
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1)) and not (pool.return_indices or pool.ceil_mode)
    return plain and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not any(module.children()) or isinstance(module, QuantConv2d | QuantLinear)


def _convolutions_before_batch_norm(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution whose output goes into a batch norm and nowhere else, and of that batch norm."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return
    try:
        nodes = list(_LayerTracer().trace(net, concrete_args=_defaults(net)).nodes)
    except Exception:  # what a stranger's forward does under tracing is not ours to foresee: nothing is folded
        return
    called = Counter(str(node.target) for node in nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = str(before.target), str(node.target)
        once = called[conv] == called[norm] == 1 and not {conv, norm} & read
        if once and _foldable(net.get_submodule(conv), net.get_submodule(norm)):
            yield conv, norm


def _defaults(net: nn.Module) -> dict[str, Any]:
    """The arguments an attack does not give, so that the branches they choose are the ones traced."""
    parameters = inspect.signature(net.forward).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return type(conv) in (nn.Conv2d, QuantConv2d) and type(norm) is nn.BatchNorm2d and norm.running_mean is not None

"""Networks on disk: `weights.safetensors` beside a `network.json` that says what they are.

A packed network holds its quantised weights instead of the weights that were trained, as codes of as many
bits as they have; it computes the same and takes less space, but cannot be trained further.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qnn import models
from qnn.layers import quantize_once, quantized_layers
from qnn.packing import blank, decode, encode
from qnn.quantizers import ClipOnly, DoReFa, DoReFaWeight, Quantizer
from qnn.switchable import switchable
from qnn.uniform import Uniform

WEIGHTS, DESCRIPTION = "weights.safetensors", "network.json"
QUANTIZERS: dict[str, Callable[[str], Quantizer]] = {"dorefa": DoReFa, "clip_only": ClipOnly, "uniform": Uniform}


class CheckpointError(ValueError):
    """A stored network that is absent, damaged or not the one asked for."""


def save_network(folder: Path, net: nn.Module, description: dict[str, Any]) -> None:
    """Write the state of `net` and its description (plain JSON values).

    The description gains a `fingerprint`, from the weights, if it has none: what tells networks apart in the tracking
    store.
    """
    _write(folder, _state(net))
    _describe(folder, {"fingerprint": _sha256(folder / WEIGHTS)[:16], **description})


def save_packed(folder: Path, net: nn.Module, description: dict[str, Any]) -> None:
    """Write what `net` computes with, packed: codes for the weights of k-bit layers, all else at full precision.

    The description gains `packed`, which maps the name of each such weight to its `bits` and `shape`, and the
    `sha256` of the weights' file.

    Raises:
        ValueError: weights that are not finite.
    """
    layout = _layout(net)
    state = _state(quantize_once(copy.deepcopy(net)))
    for name, form in layout.items():
        state |= _named(name, encode(state.pop(name), form["bits"]))
    _write(folder, state)
    _describe(folder, {**description, "packed": layout, "sha256": _sha256(folder / WEIGHTS)})


def _write(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(state))


def _describe(folder: Path, description: dict[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}


def _layout(net: nn.Module) -> dict[str, dict[str, Any]]:
    """Which weights are packed, and how: those that DoReFa quantises."""
    return {
        f"{name}.weight": {"bits": layer.weight_quantizer.bits, "shape": list(layer.weight.shape)}
        for name, layer in quantized_layers(net)
        if isinstance(layer.weight_quantizer, DoReFaWeight)
    }


def _named(name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def read_description(folder: Path) -> dict[str, Any]:
    """The description of a stored network.

    Raises:
        CheckpointError: there is none, or it is not JSON.
    """
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no stored network: {DESCRIPTION} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{path} is not a description of a network")
    return described


def load_weights(net: nn.Module, folder: Path) -> nn.Module:
    """Load the stored state into `net` and return it; a packed one takes the place of its weight quantisers too.

    Raises:
        CheckpointError: file absent, damaged, cut short, or of another network (says which tensors differ).
    """
    described = read_description(folder)
    packed = "packed" in described
    layout = _layout(net) if packed else {}
    state = _read(folder, str(described.get("sha256")) if packed else None)
    wanted, found = _forms(_packed_state(net, layout)), _forms(state)
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise CheckpointError(f"{folder / WEIGHTS} is of another network: it differs in {', '.join(odd[:4])}")
    if packed and described["packed"] != layout:
        raise CheckpointError(f"{folder / DESCRIPTION} names other packed weights than {WEIGHTS} holds")
    for name, form in layout.items():
        parts = {part: state.pop(f"{name}.{part}") for part in blank(**form)}
        state[name] = decode(parts, **form)
    net.load_state_dict(state)
    if packed:
        for _, layer in quantized_layers(net):
            layer.weight_quantizer = nn.Identity()
    return net


def _built(
    model: Callable[..., nn.Module],
    quantizer: Callable[[str], Quantizer],
    described: dict[str, Any],
    settings: dict[str, Any],
) -> nn.Module:
    def build(bits: str) -> nn.Module:
        return model(quantizer(bits), classes=len(described["classes"]), **settings)

    if "widths" in described:
        return switchable(build, described["widths"], norms=described["norms"])
    return build(described["bits"])


def _read(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        if sha256 is not None and _sha256(path) != sha256:
            raise CheckpointError(f"{path} is damaged or cut short (its SHA-256 is not the one in {DESCRIPTION})")
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no stored network: {WEIGHTS} is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error})") from error


def _packed_state(net: nn.Module, layout: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """Tensors of the names, dtypes and shapes that a stored `net` has."""
    state = dict(net.state_dict())
    for name, form in layout.items():
        del state[name]
        state |= _named(name, blank(**form))
    return state


def _forms(state: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def is_own(described: dict[str, Any]) -> bool:
    """Whether a description is that of a network whose model and quantiser are this package's."""
    module, _, name = str(described["net"].get("_target_")).rpartition(".")
    return module == models.__name__ and name in models.__all__ and str(described.get("quantizer")) in QUANTIZERS


def rebuild(folder: Path) -> nn.Module:
    """The stored network, in eval mode, for one of this package's models and quantisers.

    Raises:
        CheckpointError: damaged, or described as anything but a class of `qnn.models`.
    """
    described = read_description(folder)
    settings = described.get("net")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder} describes no network")
    if not is_own(described):
        raise CheckpointError(f"{folder} describes a network that is not one of {', '.join(models.__all__)}")
    settings = dict(settings)
    model = getattr(models, settings.pop("_target_").rpartition(".")[2])
    try:
        net = _built(model, QUANTIZERS[described["quantizer"]], described, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} describes a network that cannot be built ({error!r})") from error
    return load_weights(net, folder).eval()

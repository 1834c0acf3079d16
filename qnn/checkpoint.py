"""Networks on disk: `weights.safetensors` beside a `network.json` that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from qnn import models
from qnn.quantizers import QUANTIZERS

WEIGHTS, DESCRIPTION = "weights.safetensors", "network.json"


class CheckpointError(ValueError):
    """A stored network that is absent, damaged or not the one asked for."""


def save_network(folder: Path, net: nn.Module, description: dict[str, Any]) -> None:
    """Write the state of `net` and its description (plain JSON values)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True))


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
    """Load the stored state into `net` and return it.

    Raises:
        CheckpointError: file absent, cut short, or of another network (says which tensors differ).
    """
    path = folder / WEIGHTS
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no stored network: {WEIGHTS} is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error})") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise CheckpointError(f"{path} is of another network: it differs in {', '.join(odd[:4])}")
    net.load_state_dict(state)
    return net


def rebuild(folder: Path) -> nn.Module:
    """The stored network, in eval mode, for one of this package's models and quantisers.

    Raises:
        CheckpointError: damaged, or described as anything but a class of `qnn.models`.
    """
    described = read_description(folder)
    settings = described.get("net")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder} describes no network")
    settings = dict(settings)
    module, _, name = str(settings.pop("_target_", "")).rpartition(".")
    quantizer = QUANTIZERS.get(str(described.get("quantizer")))
    if module != models.__name__ or name not in models.__all__ or quantizer is None:
        raise CheckpointError(f"{folder} describes a network that is not one of {', '.join(models.__all__)}")
    try:
        net = getattr(models, name)(quantizer(described["bits"]), classes=len(described["classes"]), **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} describes a network that cannot be built ({error!r})") from error
    return load_weights(net, folder).eval()

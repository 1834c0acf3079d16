"""One network that runs at several bit widths: shared weights, with quantisers and batch norms of each width.

Widths are written as `qnn.precision.Precision` writes them: ``FP``, ``4``, ``w4a8``.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qnn.precision import Precision
from qnn.quantizers import QuantizerModule

Norms = Literal["switchable", "shared"]


class Switchable(nn.Module):
    """One module per width, of which that of the active width computes."""

    def __init__(self, by_width: dict[str, nn.Module]) -> None:
        super().__init__()
        self.by_width = nn.ModuleDict(by_width)
        self.active = next(iter(by_width))

    def forward(self, x: Tensor) -> Tensor:
        return self.by_width[self.active](x)

    def extra_repr(self) -> str:
        return f"active={self.active}"


def switchable(build: Callable[[str], nn.Module], widths: Sequence[str], *, norms: Norms = "switchable") -> nn.Module:
    """The network that `build` gives for the first width, able to run at all of them (`set_width`).

    Args:
        build: an untrained network of a width; the same but for its quantisers at every width.
        norms: ``switchable``: a batch norm for each width (as DWQ and slimmable networks have);
            ``shared``: one for all.

    Raises:
        ValueError: no width, or the networks differ in more than their quantisers.
    """
    names = list(dict.fromkeys(str(Precision.parse(width)) for width in widths))
    if not names:
        raise ValueError("a network needs at least one width")
    nets = {name: build(name) for name in names}
    net = nets[names[0]]
    places = {name: {place for place, _ in other.named_modules()} for name, other in nets.items()}
    if any(found != places[names[0]] for found in places.values()):
        raise ValueError(
            f"the networks at {', '.join(names)} have different layers: use quantizer=uniform or"
            " model.net.topology=quantized; a network of your own must have the same ones at every width"
        )
    for place in sorted(places[names[0]]):
        alternatives = {name: other.get_submodule(place) for name, other in nets.items()}
        if _is_switched(alternatives.values(), norms):
            net.set_submodule(place, Switchable(alternatives))
        elif _differ(alternatives.values()):
            kind = type(alternatives[names[-1]]).__name__
            raise ValueError(f"{place} differs between widths: derive {kind} from qnn.quantizers.QuantizerModule")
    return net


def _is_switched(alternatives: Iterable[nn.Module], norms: Norms) -> bool:
    switched = (QuantizerModule, _BatchNorm) if norms == "switchable" else QuantizerModule
    return any(isinstance(module, switched) for module in alternatives)


def _differ(alternatives: Iterable[nn.Module]) -> bool:
    return len({(type(module), getattr(module, "bits", None)) for module in alternatives}) > 1


def _switches(net: nn.Module) -> Iterator[tuple[str, Switchable]]:
    return ((name, module) for name, module in list(net.named_modules()) if isinstance(module, Switchable))


def widths_of(net: nn.Module) -> tuple[str, ...]:
    """The widths that `net` can run at, in order; empty for a network of one width."""
    first = next(_switches(net), None)
    return () if first is None else tuple(first[1].by_width)


def set_width(net: nn.Module, width: str) -> None:
    """Run `net` at a width from now on.

    Raises:
        ValueError: it has no such width.
    """
    if width not in widths_of(net):
        raise ValueError(f"the network runs at {', '.join(widths_of(net)) or 'one width only'}, not at {width}")
    for _, switch in _switches(net):
        switch.active = width


def at_width(net: nn.Module, width: str) -> nn.Module:
    """A copy of `net` that runs at one width and has no other."""
    chosen = copy.deepcopy(net)
    set_width(chosen, width)
    for name, switch in _switches(chosen):
        chosen.set_submodule(name, switch.by_width[width])
    return chosen


def at_every_width(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network of one width as one of `net`: what `net` has once per width is the same at each.

    What fits nowhere keeps its name.
    """
    names = {name: re.sub(r"\.by_width\.[^.]+", "", name) for name in net.state_dict()}
    spread = {name: state[single] for name, single in names.items() if name not in state and single in state}
    return {**{name: value for name, value in state.items() if name not in {*names.values()} - {*names}}, **spread}


class MeanProbability(nn.Module):
    """Several networks as one: the logarithm of the mean of their class probabilities."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        logs = torch.stack([torch.log_softmax(net(x), 1) for net in self.nets])
        return logs.logsumexp(0) - math.log(len(self.nets))


class RandomWidth(nn.Module):
    """Several networks of which one, drawn anew, classifies each image (random precision inference of DWQ)."""

    def __init__(self, nets: Iterable[nn.Module], *, seed: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.randint(len(self.nets), (len(x),), generator=self.generator)
        rows = [(drawn == number).nonzero().flatten().to(x.device) for number in range(len(self.nets))]
        order = torch.cat(rows)
        logits = torch.cat([net(x[chosen]) for net, chosen in zip(self.nets, rows, strict=True)])
        return logits[order.argsort()]


def nearest_higher(widths: Sequence[str], width: str) -> str:
    """The lowest of `widths` that is below `width` neither in weights nor in activations.

    >>> nearest_higher(["w4aFP", "8", "FP"], "6"), nearest_higher(["w2a8", "8", "FP"], "4")
    ('8', '8')

    Raises:
        ValueError: there is none.
    """
    wanted = _bits(width)
    higher = [other for other in widths if all(has >= least for has, least in zip(_bits(other), wanted, strict=True))]
    if not higher:
        raise ValueError(f"no trained width is above {width}: the network has {', '.join(widths)}")
    return min(higher, key=lambda other: sorted(_bits(other)))


def _bits(width: str) -> tuple[float, float]:
    """Of weights and activations; FP is infinite."""
    precision = Precision.parse(width)
    weights, activations = (math.inf if b is None else b for b in (precision.weights, precision.activations))
    return weights, activations


@torch.no_grad()
def add_width(net: nn.Module, width: str, build: Callable[[str], nn.Module], images: Sequence[Tensor]) -> None:
    """Have `net` run at a width that it was not trained at, and leave it active and in eval mode.

    Its batch norms and ranges are those of the nearest higher width, measured anew on batches of unlabelled images.
    """
    source = nearest_higher(widths_of(net), width)
    fresh = build(width)
    added = []
    for name, switch in _switches(net):
        module = fresh.get_submodule(name)
        state = switch.by_width[source].state_dict()
        if state.keys() == module.state_dict().keys():
            module.load_state_dict(state)
            if "range" in state:
                module.get_buffer("range").zero_()  # it starts at the range of the first batch
        switch.by_width[width] = module.to(images[0].device)
        added.append(module)
    set_width(net, width)
    _recalibrate(net, added, images)


def _recalibrate(net: nn.Module, modules: Sequence[nn.Module], images: Sequence[Tensor]) -> None:
    net.eval()
    momenta = {}
    for module in modules:
        module.train()
        if isinstance(module, _BatchNorm):
            momenta[module] = module.momentum
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    for batch in images:
        net(batch)
    net.eval()
    for module, momentum in momenta.items():
        module.momentum = momentum

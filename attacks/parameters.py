"""Ranges of the attacks' hyper-parameters: a name means the same in every attack."""

from __future__ import annotations

import inspect
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

_UNIT = "a number in [0, 1]"
_SHARE = "a number in (0, 1]"
_POSITIVE = "a number above 0"
_NOT_NEGATIVE = "a number of at least 0"
_COUNT = "a whole number of at least 1"
_COUNT_OR_NONE = "a whole number of at least 0"
_SCALE_IN_0_1 = "a number in (0, 1)"
_ANGLE = "a number of degrees in [0, 180]"

_HOLDS: dict[str, Callable[[Any], bool]] = {
    _UNIT: lambda v: 0 <= v <= 1,
    _SHARE: lambda v: 0 < v <= 1,
    _POSITIVE: lambda v: v > 0,
    _NOT_NEGATIVE: lambda v: v >= 0,
    _COUNT: lambda v: v >= 1,
    _COUNT_OR_NONE: lambda v: v >= 0,
    _SCALE_IN_0_1: lambda v: 0 < v < 1,
    _ANGLE: lambda v: 0 <= v <= 180,
}

RANGES = {
    "eps": _UNIT,
    "attacker_eps": _UNIT,
    "eps_step": _POSITIVE,
    "num_random_init": _COUNT_OR_NONE,
    "logit_scale": _POSITIVE,
    "theta": _SHARE,
    "gamma": _SHARE,
    "confidence": _NOT_NEGATIVE,
    "learning_rate": _POSITIVE,
    "initial_const": _POSITIVE,
    "binary_search_steps": _COUNT,
    "max_halving": _COUNT,
    "max_doubling": _COUNT,
    "max_iter": _COUNT,
    "delta": _SCALE_IN_0_1,
    "epsilon": _SCALE_IN_0_1,
    "step_adapt": _SCALE_IN_0_1,
    "p_init": _SCALE_IN_0_1,
    "num_trial": _COUNT,
    "sample_size": _COUNT,
    "init_size": _COUNT,
    "min_epsilon": _NOT_NEGATIVE,
    "size": _COUNT,
    "row": _COUNT_OR_NONE,
    "column": _COUNT_OR_NONE,
    "opacity": _SHARE,
    "stride": _COUNT,
    "batch_size": _COUNT,
    "rotation": _ANGLE,
    "scale_min": _POSITIVE,
    "scale_max": _POSITIVE,
}

_OPTIONAL = {"eps_step"}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check each named hyper-parameter against its range.

    Raises:
        ValueError: says the name, the value and the range.
    """
    for name, value in parameters.items():
        # a radius in L2 has no such bound as one in L∞
        wanted = _POSITIVE if name == "eps" and parameters.get("norm") == 2 else RANGES.get(name)
        if wanted is None or (value is None and name in _OPTIONAL):
            continue
        kind = numbers.Integral if wanted in (_COUNT, _COUNT_OR_NONE) else numbers.Real
        number = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not _HOLDS[wanted](value):
            raise ValueError(f"attack.{name}={value} is out of range: it must be {wanted}")


def accepted_parameters(attack: Callable[..., Any]) -> dict[str, bool]:
    """Keyword parameters of an attack function, each with whether it must be given."""
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(attack).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_choices(attack: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Check those parameters that an attack function annotates as `Literal` or `bool`.

    Raises:
        ValueError: says the name, the value and the choices.
    """
    hints = typing.get_type_hints(attack)
    for name, value in parameters.items():
        hint = hints.get(name)
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else (value,)
        choices = (True, False) if hint is bool else choices
        if value not in choices:
            raise ValueError(f"attack.{name}={value} is unknown to {attack.__name__}: use {_either(choices)}")


def _either(choices: tuple[Any, ...]) -> str:
    return " or ".join(map(str, choices))

import inspect
import math
import typing
from typing import Literal

import numpy as np
import pytest

import attacks.art
import attacks.native
from attacks.parameters import RANGES, accepted_parameters, check_choices, check_parameters

UNIT = ["eps", "attacker_eps"]
SHARES = ["theta", "gamma", "opacity"]
OPEN = ["delta", "epsilon", "step_adapt", "p_init"]
COUNTS = ["binary_search_steps", "max_halving", "max_doubling", "max_iter", "num_trial", "sample_size", "init_size"]
COUNTS += ["size", "stride", "batch_size"]
COUNTS_OR_NONE = ["num_random_init", "row", "column"]
POSITIVE = ["learning_rate", "initial_const", "eps_step", "logit_scale", "scale_min", "scale_max"]
ANGLES = ["rotation"]
NOT_NEGATIVE = ["confidence", "min_epsilon"]


def cases(*groups: tuple[list[str], list[object]]) -> list[tuple[str, object]]:
    return [(name, value) for names, values in groups for name in names for value in values]


@pytest.mark.parametrize(
    ("name", "value"),
    cases(
        (UNIT, [0, 0.3, 1, np.float32(0.3), np.int64(1)]),
        (SHARES, [1e-3, 1]),
        (OPEN, [1e-3, 0.999]),
        (COUNTS, [1, 5000, np.int64(6), np.uint8(3)]),
        (COUNTS_OR_NONE, [0, 1, 20, np.int32(0)]),
        (POSITIVE, [1e-9, 1e6]),
        (NOT_NEGATIVE, [0, 7]),
        (ANGLES, [0, 22.5, 180]),
    ),
)
def test_values_in_range(name: str, value: float):
    check_parameters({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    cases(
        (UNIT, [-0.1, 1.5]),
        (SHARES, [0, 1.01, -0.5]),
        (OPEN, [0, 1]),
        (COUNTS, [0, 2.5, -3, 6.0, np.float64(6)]),
        (COUNTS_OR_NONE, [-1, 0.5, 0.0]),
        (POSITIVE, [0, -1]),
        (NOT_NEGATIVE, [-1e-6]),
        (ANGLES, [-1, 181]),
        (list(RANGES), [math.nan, math.inf, "x", "0.1", True, np.True_]),
    ),
)
def test_values_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=rf"attack\.{name}={value} is out of range: it must be a"):
        check_parameters({name: value})


def test_the_first_wrong_value_is_found_among_right_ones():
    with pytest.raises(ValueError, match=r"attack\.gamma=2"):
        check_parameters({"theta": 0.5, "gamma": 2, "max_iter": 3})


def test_a_radius_in_l2_is_bounded_by_nothing_but_0():
    check_parameters({"norm": 2, "eps": 5.0})
    with pytest.raises(ValueError, match=r"attack\.eps=5\.0 is out of range"):
        check_parameters({"norm": "inf", "eps": 5.0})
    for eps in (0, -1.0, math.inf):
        with pytest.raises(ValueError, match=rf"attack\.eps={eps} is out of range: it must be a number above 0"):
            check_parameters({"norm": 2, "eps": eps})


def test_a_step_may_be_left_to_the_attack():
    check_parameters({"eps": 0.1, "eps_step": None})


def test_names_without_a_range_pass():
    check_parameters({"seed": -1, "targets": "anything"})


def test_every_range_is_tested_here():
    assert {*UNIT, *SHARES, *OPEN, *COUNTS, *COUNTS_OR_NONE, *POSITIVE, *NOT_NEGATIVE, *ANGLES} == set(RANGES)


def test_accepted_parameters_tell_which_must_be_given():
    def attack(model, x, y, *, eps, steps=3, targets=None):
        pass

    assert accepted_parameters(attack) == {"eps": True, "steps": False, "targets": False}


def test_choices_are_those_of_the_annotation():
    def attack(model, x, y, *, rule: Literal["one", 2] = "one", eps: float = 0.1):
        pass

    check_choices(attack, {"rule": "one", "eps": "anything", "unheard_of": None})
    check_choices(attack, {"rule": 2})
    with pytest.raises(ValueError, match=r"attack\.rule=three is unknown to attack: use one or 2"):
        check_choices(attack, {"rule": "three"})


# what no range and no choice is for: images, switches, and what is handed on to ART
FREE = {"targets", "start", "seed", "craft_on", "snapshots", "all_passes", "early_stop", "art_defects", "params"}
ALL = [getattr(module, name) for module in (attacks.art, attacks.native) for name in module.__all__]


def defaults_of(attack) -> dict[str, object]:
    parameters = inspect.signature(attack).parameters.values()
    return {
        p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not p.empty
    }


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.__module__)
def test_defaults_of_the_attacks_lie_in_their_ranges_and_choices(attack):
    defaults = defaults_of(attack)
    check_parameters({**defaults, "eps": min(defaults.get("eps", 0), 1)})  # UAP's, as ART's, is no bound
    check_choices(attack, defaults)
    hints = typing.get_type_hints(attack)
    chosen = {name for name in defaults if typing.get_origin(hints[name]) is Literal}
    assert defaults.keys() <= RANGES.keys() | chosen | FREE


@pytest.mark.parametrize("name", sorted({*attacks.art.__all__} & {*attacks.native.__all__}))
def test_both_backends_have_the_same_defaults(name: str):
    art, native = (defaults_of(getattr(module, name)) for module in (attacks.art, attacks.native))
    differing = {key for key in art if native[key] != art[key]}
    assert differing <= {"art_defects"}

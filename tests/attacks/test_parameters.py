import math

import pytest

import attacks.art
from attacks.parameters import RANGES, accepted_parameters, check_parameters

UNIT = ["eps", "attacker_eps"]
SHARES = ["theta", "gamma"]
OPEN = ["delta", "epsilon", "step_adapt"]
COUNTS = ["binary_search_steps", "max_halving", "max_doubling", "max_iter", "num_trial", "sample_size", "init_size"]
POSITIVE = ["learning_rate", "initial_const"]
NOT_NEGATIVE = ["confidence", "min_epsilon"]


def cases(*groups: tuple[list[str], list[object]]) -> list[tuple[str, object]]:
    return [(name, value) for names, values in groups for name in names for value in values]


@pytest.mark.parametrize(
    ("name", "value"),
    cases(
        (UNIT, [0, 0.3, 1]),
        (SHARES, [1e-3, 1]),
        (OPEN, [1e-3, 0.999]),
        (COUNTS, [1, 5000]),
        (POSITIVE, [1e-9, 1e6]),
        (NOT_NEGATIVE, [0, 7]),
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
        (COUNTS, [0, 2.5, -3]),
        (POSITIVE, [0, -1]),
        (NOT_NEGATIVE, [-1e-6]),
        (list(RANGES), [math.nan, math.inf, "x", "0.1", True, None]),
    ),
)
def test_values_out_of_range_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=rf"attack\.{name}={value} is out of range: it must be a"):
        check_parameters({name: value})


def test_the_first_wrong_value_is_found_among_right_ones():
    with pytest.raises(ValueError, match=r"attack\.gamma=2"):
        check_parameters({"theta": 0.5, "gamma": 2, "max_iter": 3})


def test_names_without_a_range_pass():
    check_parameters({"seed": -1, "targets": "anything"})


def test_every_range_is_tested_here():
    assert {*UNIT, *SHARES, *OPEN, *COUNTS, *POSITIVE, *NOT_NEGATIVE} == set(RANGES)


def test_accepted_parameters_tell_which_must_be_given():
    def attack(model, x, y, *, eps, steps=3, targets=None):
        pass

    assert accepted_parameters(attack) == {"eps": True, "steps": False, "targets": False}


@pytest.mark.parametrize("name", attacks.art.__all__)
def test_defaults_of_the_attacks_lie_in_their_ranges(name: str):
    attack = getattr(attacks.art, name)
    defaults = {key: attack.__kwdefaults__[key] for key in accepted_parameters(attack)}
    check_parameters(defaults)
    assert defaults.keys() - {"targets", "seed"} <= RANGES.keys()

import re

import pytest

from qnn.precision import Precision

STUDY_BITS = ("FP", "1", "2", "4", "8", "12", "16")


@pytest.mark.parametrize(
    ("bits", "weights", "activations", "name"),
    [
        ("FP", None, None, "FP"),
        ("fp", None, None, "FP"),
        (1, 1, 1, "1"),
        ("1", 1, 1, "1"),
        (" 8 ", 8, 8, "8"),
        (16, 16, 16, "16"),
        ("w1a4", 1, 4, "w1a4"),
        ("W16A2", 16, 2, "w16a2"),
        ("wFPa1", None, 1, "wFPa1"),
        ("w1afp", 1, None, "w1aFP"),
        ("w4a4", 4, 4, "4"),
        ("wFPaFP", None, None, "FP"),
    ],
)
def test_accepted_forms(bits: str | int, weights: int | None, activations: int | None, name: str):
    precision = Precision.parse(bits)
    assert precision == Precision(weights, activations)
    assert str(precision) == name
    assert precision.is_full == (name == "FP")


@pytest.mark.parametrize("bits", STUDY_BITS)
def test_study_bits_survive_a_round_trip(bits: str):
    assert str(Precision.parse(bits)) == bits


@pytest.mark.parametrize("weights", [None, 1, 7, 16])
@pytest.mark.parametrize("activations", [None, 1, 7, 16])
def test_names_parse_back(weights: int | None, activations: int | None):
    precision = Precision(weights, activations)
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize(
    "bits", [0, 17, -1, 1.5, "abc", "w0a4", "w4a17", "", True, None, "w4", "a4", "4,4", "w1a4x", "w-1a4"]
)
def test_anything_else_is_refused_with_its_value(bits: object):
    with pytest.raises(ValueError, match=re.escape(f"bits={bits} is not a bit width")):
        Precision.parse(bits)  # type: ignore[arg-type]

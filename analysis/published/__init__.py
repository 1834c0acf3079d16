"""The seed paper's numbers as data (Shrestha & Großmann, ASTESJ 9(6), 2024, doi 10.25046/aj090604).

Table 6 and the hyper-parameters of Table 5 as far as the paper's text gives them; its Tables 2, 3 and 7
were published as images, so no numbers of them are kept here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
DATA_OF_MODEL = {"mnist_a": "mnist", "resnet20": "cifar10"}


def table6() -> pd.DataFrame:
    """Columns `model`, `bits`, `attack`, `adversarial_accuracy`, `l2`, `linf`."""
    return pd.read_csv(HERE / "table6.csv", dtype={"bits": str})


def hyperparameters(model: str, attack: str) -> dict[str, float]:
    """The published hyper-parameters of an attack on a model; empty if there are none."""
    listed = pd.read_csv(HERE / "hyperparameters.csv")
    chosen = listed[(listed["model"] == model) & (listed["attack"] == attack)]
    return dict(zip(chosen["parameter"], chosen["value"].astype(float), strict=True))

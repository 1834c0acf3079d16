"""Published numbers as data: the seed paper's, and TriQDef's, which stand beside our patch study.

Shrestha & Großmann (ASTESJ 9(6), 2024, doi 10.25046/aj090604): Table 6 and the hyper-parameters of Table 5 as far as
the paper's text gives them; its Tables 2, 3 and 7 were published as images, so no numbers of them are kept here.

TriQDef (ICLR 2026, arXiv 2508.12132): read from the tables on its first author's project page. No table of
QADT-R is public; TriQDef, its authors' next paper, is not QADT-R.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
IMAGES = 3000  # three runs of 1,000 images behind every rate
TEST_IMAGES = 10_000  # of MNIST and of CIFAR-10
DATA_OF_MODEL = {"mnist_a": "mnist", "resnet20": "cifar10"}

# §7.2, Observation 2: FP adversarial accuracy under FGSM with ε = 0.1 (MNIST) and 0.025 (CIFAR-10)
SMALL_EPS_FGSM = {"mnist_a": 0.831, "resnet20": 0.127}
# §7.2, Observation 1.2: Boundary images of 3,000 that the authors could not recognise
UNRECOGNISABLE = {("mnist_a", "FP"): 0, ("mnist_a", "1"): 180, ("resnet20", "FP"): 0, ("resnet20", "1"): 280}


def table6() -> pd.DataFrame:
    """Columns `model`, `bits`, `attack`, `adversarial_accuracy`, `l2`, `linf`."""
    return pd.read_csv(HERE / "table6.csv", dtype={"bits": str})


def hyperparameters(model: str, attack: str) -> dict[str, float]:
    """The published hyper-parameters of an attack on a model; empty if there are none."""
    return dict(_hyperparameters().get((model, attack), {}))


@functools.cache
def _hyperparameters() -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in pd.read_csv(HERE / "hyperparameters.csv").itertuples():
        found.setdefault((str(row.model), str(row.attack)), {})[str(row.parameter)] = float(str(row.value))
    return found


def triqdef() -> pd.DataFrame:
    """TriQDef's tables, columns `quantity`, `data`, `model`, `setting`, `defence`, `attack`, `bits`, `value`.

    Quantities: ``success_rate`` of patches, `setting` ``seen`` or ``unseen`` in training (what was varied is not
    told), ``clean_accuracy``, and ``cosine``, ``edge_iou`` and ``hog_cosine`` of input gradients at two widths, with
    `bits` as in ``FP-4``. ``patchattack`` is the black-box attack of Yang et al. (2020). Two rows of DWQ and one of
    TriQDef, here ``seen`` by their place in the table, are printed with the word "Unseen".
    """
    return pd.read_csv(HERE / "triqdef.csv", keep_default_na=False)

"""From runs to cells: one row per cell of the study, replicates summed up, nothing mixed.

Runs belong to the same cell only if every setting of theirs is the same but the seed. Settings that
differ between cells of one model are spelt out in the cells' `variant`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd

from analysis import published
from analysis.statistics import wilson_interval

STUDY_BITS = ("FP", "1", "2", "4", "8", "12", "16")
ATTACKS = ("fgsm", "jsma", "uap", "cw", "boundary")
DISTANCES = ("l0", "l1", "l2", "linf")
TIDY = [
    "model", "bits", "attack", "variant", "n", "seeds", "adversarial_accuracy", "adversarial_accuracy_low",
    "adversarial_accuracy_high", "l0", "l1", "l2", "linf", "gave_up", "paper_adversarial_accuracy", "paper_l2",
    "paper_linf", "data", "seed_list", "n_total", "adversarial_accuracy_sd", "l0_sd", "l1_sd", "l2_sd", "linf_sd",
    "l2_median", "clean_accuracy", "seconds", "superseded_runs",
]  # fmt: skip

_AXES = ["params.data", "params.model", "params.bits", "params.attack"]
_OF_BITS = {"params.weight_bits", "params.activation_bits", "params.network"}
_REPLICATE = "params.seed"
_OF_ATTACK = re.compile(r"params\.(variant|backend|attack\..*)")

# what the paper's tool did, where there are other ways; which of ART's Boundary attacks it ran is not known
_AS_PUBLISHED = {
    "quantizer": {"dorefa"},
    "model.net.topology": {"auto"},
    "variant": {"single_step", "top2", "fgsm", "line_search", "closest", "first"},
    "attack.target": {"None"},
    "attack.craft": {"attacked"},
    "attack.all_passes": {"False"},
    "attack.art_defects": {"True"},
}


def newest(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep the newest run of each fingerprint, with the number of older ones as `superseded`."""
    ordered = runs.sort_values("started", ascending=False)
    counts = ordered.groupby("fingerprint")["started"].transform("size")
    return ordered.assign(superseded=counts - 1).drop_duplicates("fingerprint")


def cell_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, columns `TIDY`, sorted by data, model, attack, variant and bits.

    `n`: images attacked per seed (the smallest, should a network have had fewer correct ones);
    `adversarial_accuracy`: mean over seeds, with the 95 % Wilson interval of all `n_total` images and
    the standard deviation between seeds; distances: mean over seeds of each run's mean over successful
    images; `gave_up`: images returned clean, summed over seeds; paper columns: only where data and
    hyper-parameters are the paper's.
    """
    if runs.empty:
        return pd.DataFrame(columns=TIDY)
    runs = newest(runs)
    params = [name for name in runs.columns if name.startswith("params.")]
    # plain objects: pandas takes hundreds of small groups apart much faster than columns of its own text type
    texts = runs[params].fillna("").astype(str).astype(object)
    runs = pd.concat([runs.drop(columns=params), texts], axis=1).copy()
    runs = runs.sort_values(_REPLICATE, key=lambda seeds: seeds.astype(int), kind="stable")
    settings = [name for name in params if name != _REPLICATE]
    runs = runs.assign(variant=_variants(runs, settings))
    table = _with_published(_summed_up(runs, settings))
    return table.sort_values(["data", "model", "attack", "variant", "bits"], key=_order, ignore_index=True).reindex(
        columns=TIDY
    )


def _variants(runs: pd.DataFrame, settings: list[str]) -> pd.Series:
    """The attack's variant, and behind it each setting that varies among one model's runs of the same bits.

    A setting that goes with the bits, such as a recipe with more epochs for few bits, needs no words.
    """
    labels = runs["params.variant"].copy()
    free = [name for name in settings if name not in {*_AXES, *_OF_BITS, "params.variant"}]
    for keys, own in (
        ([*_AXES[:2], "params.attack"], [name for name in free if _OF_ATTACK.fullmatch(name)]),
        (_AXES[:2], [name for name in free if not _OF_ATTACK.fullmatch(name)]),
    ):
        for _, group in runs.groupby(keys):
            for name in own:
                if (group.groupby("params.bits")[name].nunique() > 1).any():
                    labels[group.index] += ", " + name.removeprefix("params.") + "=" + group[name]
    return labels.str.replace("n_requested=", "n=", regex=False)


def _summed_up(runs: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """One row per cell: the runs whose settings are the same are its replicates."""
    kept = (runs["metrics.adversarial_accuracy"] * runs["metrics.n"]).round()
    cells = runs.assign(kept=kept).groupby(settings, sort=False)
    table = cells.agg(
        variant=("variant", "first"),
        n=("metrics.n", "min"),
        n_total=("metrics.n", "sum"),
        kept=("kept", "sum"),
        seeds=(_REPLICATE, "size"),
        seed_list=(_REPLICATE, " ".join),
        gave_up=("metrics.gave_up", "sum"),
        superseded_runs=("superseded", "sum"),
    ).astype(dict.fromkeys(("n", "n_total", "gave_up", "superseded_runs"), int))
    low, high = wilson_interval(table["kept"], table["n_total"])
    table = table.assign(adversarial_accuracy_low=low, adversarial_accuracy_high=high)
    for name in ("adversarial_accuracy", *DISTANCES, "l2_median", "clean_accuracy", "seconds"):
        known = f"metrics.{name}" in runs
        table[name] = cells[f"metrics.{name}"].mean() if known else np.nan
        table[f"{name}_sd"] = cells[f"metrics.{name}"].std() if known else np.nan
    table = table.reset_index()
    table["as_published"] = [is_as_published(run) for run in table.to_dict("records")]
    return table.rename(columns={name: name.removeprefix("params.") for name in _AXES})


def _with_published(table: pd.DataFrame) -> pd.DataFrame:
    paper = published.table6().rename(
        columns={name: f"paper_{name}" for name in ("adversarial_accuracy", "l2", "linf")}
    )
    merged = table.merge(paper, on=["model", "bits", "attack"], how="left")
    columns = [name for name in merged.columns if name.startswith("paper_")]
    merged[columns] = merged[columns].where(merged["as_published"], np.nan)
    return merged


def is_as_published(run: Mapping[Hashable, object]) -> bool:
    """Whether a run (a row of `analysis.store.load_runs`) attacked as the seed paper did, on its data."""
    model, attack = str(run["params.model"]), str(run["params.attack"])
    wanted = published.hyperparameters(model, attack)
    return (
        bool(wanted)
        and published.DATA_OF_MODEL.get(model) == run["params.data"]
        and all(_text(run, name) in {*usual, ""} for name, usual in _AS_PUBLISHED.items())
        and all(_is(_text(run, f"attack.{name}"), value) for name, value in wanted.items())
    )


def _text(run: Mapping[Hashable, object], name: str) -> str:
    value = run.get(f"params.{name}")
    return value if isinstance(value, str) else ""


def _is(text: str, value: float) -> bool:
    return bool(text) and bool(np.isclose(float(text), value))


def bits_order(bits: str) -> tuple[int, int, str]:
    """FP first, then by width, then mixed widths."""
    return (0, 0, "") if bits == "FP" else (1, int(bits), "") if bits.isdecimal() else (2, 0, bits)


def _order(column: pd.Series) -> pd.Series:
    if column.name == "bits":
        ranks = {bits: i for i, bits in enumerate(sorted(column.unique(), key=bits_order))}
        return column.map(ranks)
    if column.name == "attack":
        return column.map(lambda name: (ATTACKS.index(name) if name in ATTACKS else len(ATTACKS), name))
    return column

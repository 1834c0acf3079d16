"""Tables the papers do not have: stronger attacks, images given up, controls, agreement with the paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analysis import published
from analysis.cells import ATTACKS, STUDY_BITS
from analysis.grid import MODELS, select, sweeps
from analysis.quantities import AbsentError, Ours, Paper
from analysis.statistics import Estimate, rank_correlation
from analysis.study import Study
from analysis.tables import PaperTable, section_title

_NONE = "–"


def stronger_attacks(study: Study, ours: Ours) -> PaperTable:
    """Beside each cell of Table 6 what a stronger attack of the same budget leaves."""
    table = PaperTable(
        "stronger-attacks",
        "Adversarial accuracy under the paper's attack and under stronger ones of the same budget, image by image on"
        " attack seed 0. PGD: 100 steps, 5 restarts; Square: gradient-free, 1,000 queries; any: broken by none of"
        " the row's attacks; only Square: share broken by Square alone; no gradient: share of images whose input"
        " gradient is exactly zero. CW: line search with κ = 5 against Adam with κ = 0. Boundary: the paper's"
        " iterations against 1,000. Distances are mean L2 of successful images.",
        title="Is the robustness real?",
    )
    for model in MODELS:
        rows = {}
        for bits in STUDY_BITS:
            row = {
                **_same_budget(ours, model, bits, "fgsm"),
                ("FGSM", "no gradient"): _zero_gradients(study, model, bits),
                **_same_budget(ours, model, bits, "uap"),
                **_against(study, ours, model, bits, "cw", "stronger_cw", "Adam, κ = 0"),
                **_against(study, ours, model, bits, "boundary", "stronger_boundary", "1,000 iterations"),
            }
            if any(value != _NONE for value in row.values()):
                rows[bits] = row
        if rows:
            # the keys are pairs, of which pandas makes a column index of two levels
            frame = pd.DataFrame.from_dict(rows, orient="columns").T.fillna(_NONE)
            table.sections[section_title(model, published.DATA_OF_MODEL[model])] = frame
    return table


def _same_budget(ours: Ours, model: str, bits: str, attack: str) -> dict[tuple[str, str], str]:
    group = f"{attack.upper()}"
    try:
        kept = ours.kept_by_attack(model, bits, attack)
    except AbsentError:
        return {}
    names = {attack: "itself", "pgd, cross-entropy": "PGD", "pgd, margin": "PGD margin", "square": "Square"}
    cells = {(group, title): f"{kept[name].mean():.3f}" for name, title in names.items() if name in kept}
    if kept.shape[1] == 1:
        return cells
    if any(str(name).startswith("pgd") for name in kept):
        cells[group, "any"] = _with_interval(ours.strongest(model, bits, attack))
    if "square" in kept:
        others = kept.drop(columns="square").all(axis=1)
        cells[group, "only Square"] = f"{(others & ~kept['square']).mean():.3f}"
    cells[group, "n"] = f"{len(kept):,}"
    return cells


def _zero_gradients(study: Study, model: str, bits: str) -> str:
    runs = select(study, sweeps(model)["table6"])
    if runs.empty or "metrics.zero_gradients" not in runs:
        return _NONE
    mine = runs[(runs["params.attack"] == "fgsm") & (runs["params.bits"] == bits)].dropna(
        subset="metrics.zero_gradients"
    )
    if mine.empty:
        return _NONE
    return f"{mine['metrics.zero_gradients'].sum() / mine['metrics.n'].sum():.3f}"


def _against(
    study: Study, ours: Ours, model: str, bits: str, attack: str, sweep: str, title: str
) -> dict[tuple[str, str], str]:
    group = {"cw": "CW", "boundary": "Boundary"}[attack]
    cells = {
        (group, "paper's"): _value(lambda: ours.adversarial_accuracy(model, bits, attack)),
        (group, "its L2"): _value(lambda: ours.distance(model, bits, attack, "l2"), "{:.2f}"),
    }
    runs = select(study, sweeps(model)[sweep])
    mine = runs[runs["params.bits"] == bits] if len(runs) else runs
    if len(mine):
        cells[group, title] = f"{mine['metrics.adversarial_accuracy'].mean():.3f}"
        cells[group, "L2"] = f"{mine['metrics.l2'].mean():.2f}" if "metrics.l2" in mine else _NONE
        cells[group, "n"] = f"{int(mine['metrics.n'].sum()):,}"
    return cells


def _value(quantity: Callable[[], Estimate], form: str = "{:.3f}") -> str:
    try:
        return form.format(quantity().value)
    except AbsentError:
        return _NONE


def _with_interval(estimate: Estimate) -> str:
    return "{:.3f} ({:.3f} … {:.3f})".format(estimate.value, *estimate.interval)


def given_up(study: Study) -> PaperTable:
    """How much of the adversarial accuracy under CW and Boundary is images the attack returned clean."""
    table = PaperTable(
        "given-up",
        "Images that kept their label under CW and Boundary, and how many of them the attack had given up on and"
        " returned clean: they say nothing about the network. In brackets the paper's adversarial accuracy, which"
        " counts such images as correctly classified.",
        title="Robustness that is an attack giving up",
    )
    paper = Paper(published.table6())
    for model in MODELS:
        runs = select(study, sweeps(model)["table6"])
        rows: dict[str, dict[str, str]] = {}
        for keys, group in runs.groupby(["params.bits", "params.attack"]) if len(runs) else []:
            bits, attack = map(str, keys)
            if attack in ("cw", "boundary"):
                n = int(group["metrics.n"].sum())
                kept = round(float((group["metrics.adversarial_accuracy"] * group["metrics.n"]).sum()))
                up = int(group["metrics.gave_up"].sum())
                published_rate = paper.adversarial_accuracy(model, bits, attack).value
                text = f"{up:,} of {kept:,} kept, n = {n:,} ({published_rate:.3f})"
                rows.setdefault(bits, {})[attack] = text
        if rows:
            frame = pd.DataFrame(rows).T.reindex([bits for bits in STUDY_BITS if bits in rows]).fillna(_NONE)
            table.sections[section_title(model, published.DATA_OF_MODEL[model])] = frame
    return table


def agreement(ours: Ours) -> PaperTable:
    """Rank correlation of our Table 6 with the published one."""
    table = PaperTable(
        "agreement",
        "Rank correlation of our adversarial accuracies with the paper's Table 6: Spearman's ρ with a 95 % bootstrap"
        " interval over cells, Kendall's τ, and the mean absolute difference.",
        title="Agreement with the paper's Table 6",
    )
    paper = Paper(published.table6())
    pairs = []
    for model in MODELS:
        for bits in STUDY_BITS:
            for attack in ATTACKS:
                try:
                    mine = ours.adversarial_accuracy(model, bits, attack).value
                except AbsentError:
                    continue
                theirs = paper.adversarial_accuracy(model, bits, attack).value
                pairs.append({"model": model, "bits": bits, "attack": attack, "ours": mine, "paper": theirs})
    if not pairs:
        return table
    cells = pd.DataFrame(pairs)
    rows = {"all": _agreement(cells)}
    rows |= {section_title(str(model), ""): _agreement(part) for model, part in cells.groupby("model")}
    rows |= {f"{attack}": _agreement(part) for attack, part in cells.groupby("attack")}
    for keys, part in cells.groupby(["model", "attack"]):
        model, attack = map(str, keys)
        rows[f"{section_title(model, '')} {attack}"] = _agreement(part)
    table.sections["Cells"] = pd.DataFrame(rows).T
    return table


def _agreement(cells: pd.DataFrame) -> dict[str, str]:
    ours, paper = cells["ours"].to_numpy(), cells["paper"].to_numpy()
    rho = rank_correlation(ours, paper, np.random.default_rng(0))
    known = np.isfinite(rho.value)
    tau = kendalltau(ours, paper).statistic if len(cells) > 1 else float("nan")
    return {
        "cells": str(len(cells)),
        "ρ (95 %)": "{:+.2f} ({:+.2f} … {:+.2f})".format(rho.value, *rho.interval) if known else _NONE,
        "τ": f"{tau:+.2f}" if np.isfinite(tau) else _NONE,
        "mean absolute difference": f"{np.abs(ours - paper).mean():.3f}",
    }


def controls(study: Study) -> PaperTable:
    """FP, the controls that hold the topology fixed, and the widest quantised network side by side."""
    table = PaperTable(
        "controls",
        "What is left of the bit width's effect when the topology is held fixed: FP, the quantised topology at FP"
        " (dorefa), the same with DoReFa's ranges but no rounding (clip_only), and 16 and 8 bits. Adversarial"
        " accuracy with n and mean L2.",
        title="Controls",
    )
    for model in MODELS:
        listed = sweeps(model)
        own, fixed = (select(study, listed[name]) for name in ("table6", "controls"))
        if fixed.empty:
            continue
        rows: dict[str, dict[str, str]] = {}
        for keys, group in pd.concat([own, fixed]).groupby(
            ["params.bits", "params.quantizer", "params.model.net.topology", "params.attack"]
        ):
            bits, quantizer, topology, attack = map(str, keys)
            if bits in ("FP", "16", "8"):
                name = bits if topology == "auto" else f"FP, quantised topology, {quantizer}"
                text = f"{group['metrics.adversarial_accuracy'].mean():.3f}, L2 {group['metrics.l2'].mean():.2f}"
                rows.setdefault(name, {})[attack] = f"{text}, n = {int(group['metrics.n'].sum()):,}"
        order = sorted(rows, key=lambda name: (name != "FP", name.isdecimal(), name))
        table.sections[section_title(model, published.DATA_OF_MODEL[model])] = (
            pd.DataFrame(rows).T.reindex(index=order, columns=list(ATTACKS)).fillna(_NONE)
        )
    return table


def trainings(study: Study) -> pd.DataFrame:
    """One row per trained network: test accuracy, n of the test set, epochs, training seed, seconds."""
    columns = {
        "params.data": "data",
        "params.model": "model",
        "params.bits": "bits",
        "params.quantizer": "quantizer",
        "params.defence": "defence",
        "params.model.net.topology": "topology",
        "params.training.seed": "training_seed",
        "params.training.epochs": "epochs",
        "metrics.test_accuracy": "test_accuracy",
        "metrics.best_val_accuracy": "validation_accuracy",
        "metrics.seconds": "seconds",
        "commit": "commit",
    }
    return (
        study.train.reindex(columns=list(columns))
        .rename(columns=columns)
        .sort_values(["data", "model", "quantizer", "training_seed", "bits"], ignore_index=True)
    )

"""Tables the papers do not have: the study in short, stronger attacks, images given up, controls, agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analysis import published
from analysis.cells import ATTACKS, STUDY_BITS
from analysis.claims import OPEN, sign
from analysis.grid import CONTROLS, MODELS, select, sweeps
from analysis.quantities import AbsentError, Ours, Paper
from analysis.statistics import Estimate, difference, rank_correlation
from analysis.study import Study
from analysis.tables import PaperTable, bare, counted, in_short, section_title

_NONE = "–"
_FEWEST = 5


def headline(study: Study, ours: Ours) -> PaperTable:
    """Test accuracy, and what Table 6's attacks and the strongest ones at the same ε leave, on one page."""
    table = PaperTable(
        "headline",
        "Adversarial accuracy over all training and attack seeds, in round brackets its 95 % interval over images and"
        " seeds, in square brackets the paper's. Any attack: FGSM, PGD on two losses and Square at FGSM's ε, of which"
        " an image has to resist all; that and CW with Adam and κ = 0 on one training and attack seed.",
        title="Adversarial accuracy",
    )
    paper = Paper(published.table6())
    for model in MODELS:
        trained = select(study, sweeps(model)["table3"])
        of_bits = {bits: _training(part) for bits, part in (trained.groupby("params.bits") if len(trained) else [])}
        rows = {}
        for bits in STUDY_BITS:
            if cells := _in_short(ours, paper, model, bits):
                rows[bits] = {**of_bits.get(bits, {"epochs": _NONE, "test accuracy": _NONE}), **cells}
        if rows:
            section = section_title(model, published.DATA_OF_MODEL[model])
            table.sections[section] = pd.DataFrame.from_dict(rows, orient="index")
    return table


def _training(trained: pd.DataFrame) -> dict[str, str]:
    return {
        "epochs": ", ".join(sorted(trained["params.training.epochs"].unique(), key=int)),
        "test accuracy": f"{100 * trained['metrics.test_accuracy'].mean():.2f} %",
    }


def _in_short(ours: Ours, paper: Paper, model: str, bits: str) -> dict[str, str]:
    known = _known({attack: partial(ours.adversarial_accuracy, model, bits, attack) for attack in ATTACKS})
    if not known:
        return {}
    cells = {
        attack: f"{in_short(rate.value, rate.interval)} [{bare(paper.adversarial_accuracy(model, bits, attack).value)}]"
        for attack, rate in known.items()
    }
    strongest = _known({"any": partial(ours.strongest, model, bits, "fgsm")})
    adam = _against(ours, model, bits, "cw", "stronger_cw", "Adam").get(("CW", "Adam"), _NONE)
    return {
        f"FGSM, ε = {published.hyperparameters(model, 'fgsm')['eps']:g}": cells.get("fgsm", _NONE),
        "any attack": bare(strongest["any"].value) if strongest else _NONE,
        "JSMA": cells.get("jsma", _NONE),
        "UAP": cells.get("uap", _NONE),
        "CW": cells.get("cw", _NONE),
        "CW, Adam": adam.removeprefix("0"),
        "Boundary": cells.get("boundary", _NONE),
        "images": counted(_images(known)),
    }


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
                **_against(ours, model, bits, "cw", "stronger_cw", "Adam, κ = 0"),
                **_against(ours, model, bits, "boundary", "stronger_boundary", "1,000 iterations"),
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


def _against(ours: Ours, model: str, bits: str, attack: str, sweep: str, title: str) -> dict[tuple[str, str], str]:
    group = {"cw": "CW", "boundary": "Boundary"}[attack]
    try:
        usual, stronger = ours.side_by_side(model, bits, attack, sweep)
    except AbsentError:
        return {}
    cells = {}
    for images, rate, l2 in ((usual, "paper's", "its L2"), (stronger, title, "L2")):
        if len(images):
            cells[group, rate] = f"{1 - images['evaded'].mean():.3f}"
            broken = images.loc[images["success"], "l2"]
            cells[group, l2] = f"{broken.mean():.2f}" if len(broken) else _NONE
    cells[group, "n"] = f"{len(usual):,}"
    return cells


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
        f" interval over cells, Kendall's τ, and the mean absolute difference; no correlation of fewer than {_FEWEST}"
        " cells.",
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
    known = np.isfinite(rho.value) and len(cells) >= _FEWEST
    tau = kendalltau(ours, paper).statistic if known else float("nan")
    return {
        "cells": str(len(cells)),
        "ρ (95 %)": "{:+.2f} ({:+.2f} … {:+.2f})".format(rho.value, *rho.interval) if known else _NONE,
        "τ": f"{tau:+.2f}" if np.isfinite(tau) else _NONE,
        "mean absolute difference": f"{np.abs(ours - paper).mean():.3f}",
    }


def controls(ours: Ours) -> PaperTable:
    """What is left of the bit width's effect when the topology is held fixed."""
    table = PaperTable(
        "controls",
        "Adversarial accuracy of the controls, which have the quantised topology at full precision (dorefa), also with"
        " DoReFa's ranges but no rounding (clip_only), and how much of the bit width's effect is left beside them: each"
        " width minus FP, and minus each control, with 95 % intervals. *: beyond the interval and beyond the difference"
        " between training seeds. Widths and FP over all training and attack seeds, controls over one of each.",
        title="Controls",
    )
    for model in MODELS:
        levels, left = {}, {}
        for quantizer in CONTROLS[model]:
            known = _known({attack: partial(ours.control, model, quantizer, attack) for attack in ATTACKS})
            levels[f"{quantizer}{_n(known)}"] = {attack: _with_interval(e) for attack, e in known.items()}
        if not any(levels.values()):
            continue
        for bits in STUDY_BITS:
            width = _known({attack: partial(ours.adversarial_accuracy, model, bits, attack) for attack in ATTACKS})
            levels[f"{bits}{_n(width)}"] = {attack: _with_interval(e) for attack, e in width.items()}
            references = {"FP": partial(ours.adversarial_accuracy, model, "FP")}
            references |= {name: partial(ours.control, model, name) for name in CONTROLS[model]}
            for name, reference in references.items():
                others = _known({attack: partial(reference, attack) for attack in width})
                effects = {attack: difference(width[attack], other) for attack, other in others.items()}
                left[f"{bits} − {name}"] = {attack: _starred(effect) for attack, effect in effects.items()}
        del left["FP − FP"]
        heading = section_title(model, published.DATA_OF_MODEL[model])
        for what, rows in (("", levels), (", effects", left)):
            frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(ATTACKS))
            table.sections[heading + what] = frame.dropna(how="all").fillna(_NONE)
    return table


def _n(estimates: Mapping[str, Estimate]) -> str:
    return f", n = {counted(_images(estimates))}" if estimates else ""


def _images(estimates: Mapping[str, Estimate]) -> list[int]:
    return [estimate.n for estimate in estimates.values()]


def _known(quantities: Mapping[str, Callable[[], Estimate]]) -> dict[str, Estimate]:
    found = {}
    for name, quantity in quantities.items():
        with suppress(AbsentError):
            found[name] = quantity()
    return found


def _starred(effect: Estimate) -> str:
    text = "{:+.2f} ({:+.2f} … {:+.2f})".format(effect.value, *effect.interval)
    return text + "*" * (sign(effect) != OPEN)


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
